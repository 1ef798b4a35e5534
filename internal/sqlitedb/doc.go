// Package sqlitedb is all that this module knows about SQLite. It copies a
// live database as it is at one moment, brings the copy into the form in which
// it is kept, checks copies, and locks a database that is about to be replaced.
//
// It promises that a live database is only read: its file is opened O_RDONLY, and
// no WAL is checkpointed. There are two exceptions. A journal that a crashed
// writer left is played back, as SQLite does, if nobody uses it; and Lock, which
// is about to replace the database, checkpoints. A connection of the host that
// has the database open keeps its locks.
//
// That last promise takes care, because of two hazards of POSIX locks:
//
//   - They belong to the process, not to the descriptor. So the locks of one
//     connection are no obstacle to another one of the same process, unless
//     both belong to the same copy of SQLite, which keeps its own account of
//     them. Two copies of SQLite in one process do not see each other's locks.
//   - Closing any descriptor of a file drops all locks that the process holds
//     on it. So a descriptor of a live database, or of its -shm, is never
//     closed while the file can be reached by a name. Whether a file is one of
//     these is decided by stat alone, before it is opened. See Files and
//     keptDescriptors.
//
// See fcntl(2), "Record locking and file descriptors", and
// sqlite.org/howtocorrupt.html, sections 2.2 and 2.2.1.
//
// The package must not know about backup directories, snapshots, metadata or
// the options of a call: it gets paths, directories and functions.
//
// To copy a database:
//
//	capture.go       Capture, Copy: the choice between the ways below
//	source.go        Source: a connection that reads and cannot write
//	name.go          CheckName: a database that its users open by another name
//	sidecars.go      what is beside a database and must not be touched
//	pinned.go        the copy of the files themselves, and why it is right
//	online.go        the copy through the online backup API
//	handle.go        the copy through a connection of the host
//	hostcopy.go      the copy that the host writes by itself
//	seal.go          Copy.Seal: the form in which a copy is kept
//	checksums.go     the checksums that pages of some databases carry
//
// To check a copy, and to replace a live database:
//
//	check.go         Check: integrity_check and quick_check
//	checkplan.go     what a schema computes, and whether a check can
//	checkapart.go    the check in parts, of what SQLite cannot check at once
//	checkhide.go     indexes that are left out of it
//	checkconn.go     the connections of checks, and their limits
//	checkdriver.go   functions and collations of these connections
//	checkhost.go     what the program registered
//	readahead.go     the file as SQLite reads it for a check
//	lock.go          Lock, CheckNotOpen
//	openers_*.go     which process has a file open
//
// Used by all of these:
//
//	conn.go          a connection without database/sql, URIs, result codes
//	header.go        the database header, IsRollbackForm
//	livefiles.go     Files: the inodes of a live database
//	descriptors_*.go descriptors of live databases, which stay open
package sqlitedb
