// Package backup takes safe, hot snapshots of an AtoCore machine store.
package backup
