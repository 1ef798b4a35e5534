// Package concurrency takes snapshots in several processes and goroutines at
// once, some of which fail, stop or are killed. It has no code but its tests.
package concurrency
