//go:build race

package backuptest

// Race reports whether the race detector runs, which makes SQLite about ten times
// as slow. Tests that repeat something many times do it less often then.
const Race = true
