// Package delta writes, reads and combines deltas in the format of librsync, so
// that a large file that changed in a few places is stored as a base and what
// changed, and so that rdiff(1) applies them without this package.
package delta
