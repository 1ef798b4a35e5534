// Package damage damages snapshots in every way that it can think of and checks
// that validating finds it. It has no code but its tests.
package damage
