// Package offsite keeps copies of snapshots in a restic repository on another
// machine: encrypted, deduplicated and verifiable.
package offsite
