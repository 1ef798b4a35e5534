// Package backup takes snapshots of an AtoCore machine store while the service
// that owns it goes on working, lists them, and says whether one can be
// trusted.
//
// A machine store is a SQLite database, a project-registry JSON file and a
// Chroma vector-store directory. A snapshot is one plain directory,
// BackupDir/snapshots/<stamp>, that holds a copy of each, a metadata file and
// the SHA-256 of every file; docs/format.md describes it byte by byte.
//
// # Caveats
//
// Consistency between the database and the Chroma directory comes from the
// ingestion guard, which the host gives as a [Locker]. A writer that ignores it
// is noticed when a file's size or times change during the copy
// ([ErrSourceChanged]), which is a tripwire and not a lock.
//
// SQLite's locks belong to the process, not to a connection: whichever part of
// a process closes a descriptor of a database file drops the locks of all
// others (sqlite.org/howtocorrupt.html, section 2.2). This package keeps to
// that, but it opens the database with modernc.org/sqlite. A host that has it
// open through another SQLite library in the same process must give its handle
// in Options.DB.
//
// Keep store and backups on local disks of Linux. On macOS and Windows the
// package builds, and does what those systems allow: nothing there is
// tested.
//
// # Creating
//
// [CreateRuntimeBackup] captures the store into a staging directory beside
// snapshots/, hashes and syncs it, and publishes it with one rename. So a
// snapshot is whole or invisible at every instant: an error, a cancelled
// context, a full disk, a panic in a callback or a kill leaves nothing to see.
// Nothing is overwritten. When it returns without an error, the snapshot
// survives a power cut.
//
// The database copy is the state at one moment. A read transaction holds that
// moment still: writers of a WAL database go on meanwhile and its WAL grows,
// those of a rollback-journal database wait. The guard is held while the store
// is being copied, and released before anything is hashed or synced.
//
// # Validating
//
// [ValidateBackup] compares every byte with the manifest, has SQLite check the
// databases and compares what is there with what the metadata record. It fails
// closed: only a nil error means that every check ran and passed.
//
// The hashes are taken of the copy, or of the bytes that were just written to
// it. They prove that the copy is still what was written then; they cannot prove that the disk gave the
// right bytes when the source was read. They are no signatures either: who can
// change a snapshot can change its hashes.
//
// # Restoring
//
// [RestoreRuntimeBackup] puts a snapshot back while nobody has the store open.
// It validates first, takes a snapshot of what is there, and exchanges all
// parts or none: a journal in the backup directory lets the next call finish or
// undo a restore that was cut off, and until then every function says so with
// [ErrRestoreUnfinished]. Into empty paths it makes a copy of the store, for a
// drill. docs/restore.md is for the person who has to do it.
//
// [PruneRuntimeBackups] removes old snapshots by rules that users of restic
// know. It never removes the newest one.
//
// # Untrusted input
//
// Stamps, metadata, manifests and the trees of snapshots are taken as
// untrusted. No link in a snapshot is followed, nothing outside it is opened,
// and what is read of any one file into memory is bounded.
//
// # Interchange
//
// The Python AtoCore module lists and validates these snapshots, and this
// package lists and validates its own. Their JSON has the same names.
package backup
