// Package backuptest supports the tests of several packages with a machine
// store and checks of it, snapshots to be damaged, child processes, and a small
// Chroma directory that a real server wrote.
//
// Only tests, the test suites, the examples and the benchmark import it. It
// knows the public interface of the library and none of its internals.
package backuptest
