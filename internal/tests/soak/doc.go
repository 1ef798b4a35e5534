// Package soak takes many snapshots of a database to which several processes,
// the snapshotting one among them, write as unkindly as they can, and checks each
// copy. It has no code but its tests, which are small by default:
//
//	go test ./internal/tests/soak -timeout 0 -snapshots 2000
package soak
