// Package faults proves what the library promises by making things go wrong
// around the real command and real processes: kills, power cuts, failing
// system calls, full disks, load, writers that ignore the guard and hostile
// places. It has no code but its tests, which are small by default; flags ask
// for the full counts:
//
//	go test ./internal/tests/faults -kills 500 -cuts 50 -restore-cuts 300 -inject-all -load 10m -leaks 1000 -timeout 2h
//
// They are for Linux. Tests that need root or a tool are skipped without it.
package faults
