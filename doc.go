// Package backup takes snapshots of an AtoCore machine store while the service
// that owns it keeps running. It also lists, validates, restores and prunes
// them.
//
// A machine store is a SQLite database, a project-registry JSON file and a
// Chroma vector-store directory. A snapshot is one plain directory,
// BackupDir/snapshots/<stamp>, that holds a copy of each, a metadata file and
// the SHA-256 of every file; docs/format.md describes it byte by byte.
//
// # Caveats
//
// Consistency between the database and the Chroma directory comes from the
// ingestion guard, which the host supplies as a [Locker]. A writer that ignores
// the guard is detected if it changes a file's size or times during the copy
// ([ErrSourceChanged]). This is a tripwire and not a lock.
//
// SQLite's locks belong to the process, not to a connection: if any part of a
// process closes a descriptor of a database file, that drops the locks of all
// other parts (sqlite.org/howtocorrupt.html, section 2.2). This package never
// does so, but it opens the database with modernc.org/sqlite. A host that has
// the database open through another SQLite library in the same process must
// pass its handle in Options.DB, or write the copy itself in Options.Capture;
// docs/hosts.md has code for several drivers.
//
// Keep store and backups on local disks of Linux. The package also builds on
// macOS and Windows and does what those systems allow, but it is not tested
// there, and on Windows creating and restoring are expected to fail.
//
// # Creating
//
// [CreateRuntimeBackup] captures the store into a staging directory beside
// snapshots/, hashes and syncs it, and publishes it with one rename. At every
// instant a snapshot is therefore either complete or invisible: after an error,
// a cancelled context, a full disk, a panic in a callback or a kill, there is
// no snapshot. Nothing is overwritten. When CreateRuntimeBackup returns without
// an error, the snapshot survives a power cut.
//
// The database copy is the state at one moment. A read transaction preserves
// that moment: writers of a WAL database continue meanwhile and its WAL grows;
// writers of a rollback-journal database wait. The guard is held while the
// store is being copied, and released before anything is hashed or synced. A
// database that is busy is waited for without the guard.
//
// The live store is only read: no WAL is checkpointed. A database that its users
// have open by another name, beside which their WAL is, is refused where that can
// be told; so is a journal in use.
//
// # Validating
//
// [ValidateBackup] compares every byte with the manifest, runs SQLite's checks
// on the databases and compares the files with the metadata. It fails closed:
// only a nil error means that every check that can be made here ran and passed.
// With Options.Verify, a create does the same to the snapshot that it made.
//
// The report answers three questions. A snapshot is intact if every byte is what
// was backed up; anything else is damage, which is never restored. A finding is
// what SQLite, or the JSON check of the registry, objects to although nothing
// shows damage: it was in the live store, and Options.DespiteFindings restores
// it. A note is what could not be checked here, for example an index with a
// collation of the host, and is no reason against the snapshot; see
// Options.Connect.
//
// The last verdict, protection from prunes and a note of the host's are kept in
// BackupDir/records, beside the snapshots, because a snapshot never changes. They
// are never required.
//
// The hashes are taken of the copy, or of the bytes that were just written to
// it. They prove that the copy has not changed since. They cannot prove that
// the disk returned the right bytes when the source was read, and they are not
// signatures: anyone who can change a snapshot can change its hashes.
//
// # Restoring
//
// [RestoreRuntimeBackup] puts a snapshot back while nobody has the store open.
// It validates the snapshot first, takes a snapshot of the present store, and
// exchanges all parts that differ or none: a journal beside the database lets the next call
// finish or undo a restore that was interrupted, and until then every function
// returns [ErrRestoreUnfinished]. Neither deletes what somebody has written to
// the store meanwhile; what is in the way is moved to directories that the
// result names. A restore that fails leaves nothing behind. If the paths are
// empty, a restore makes a copy of the store there, which serves as a drill.
// docs/restore.md is the guide for the person who has to restore a store.
//
// [LatestRuntimeBackup] returns the snapshot that a restore should take.
//
// [PruneRuntimeBackups] removes old snapshots by the retention rules of restic.
// It never removes the newest one, the newest one that was found valid, or one
// that [ProtectRuntimeBackup] protects.
//
// Several stores may share a backup directory. A snapshot records the path of its
// database and its host, and these calls look at the snapshots of one store only;
// a restore refuses those of another store unless Options.FromOtherStore is set.
//
// # Untrusted input
//
// Stamps, metadata, manifests, records and the trees of snapshots are treated as
// untrusted. No link in a snapshot is followed, nothing outside a snapshot is
// opened, and the amount of data read from any one file into memory is bounded.
//
// # Interchange
//
// The Python AtoCore module lists and validates these snapshots, and this
// package lists and validates snapshots of that module. Both use the same JSON
// names.
package backup
