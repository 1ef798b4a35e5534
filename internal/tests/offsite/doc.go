// Package offsite pushes snapshots to real servers and pulls them back: to a
// directory, and to OpenStack Swift with its S3 API, which is asked in vain, cut
// off, damaged, and filled with forgeries, while processes are killed. It has no
// code but its tests, which are for Linux and small by default; flags ask for the
// full counts:
//
//	go test ./internal/tests/offsite -kills 200 -entries 2000000 -zeros 17179869184 -timeout 2h
//
// They need restic, and some of them rdiff and Swift, and are skipped without.
package offsite
