// Package mounts runs the whole cycle of a store, from the first snapshot to
// pruning, on the file systems that people have, and on some that answer badly.
// It has no code but its tests, which are for Linux; they need root, and for
// some file systems a tool, and are skipped with the reason elsewhere.
package mounts
