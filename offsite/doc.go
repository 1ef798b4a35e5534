// Package offsite keeps copies of snapshots on another machine: in any place that
// restic reaches (S3 and what speaks it, SFTP, restic's REST server, Azure, Google
// Cloud Storage, whatever rclone knows, a directory), encrypted, deduplicated,
// compressed and verifiable. It runs the program restic, 0.14 or newer, and needs
// nothing else.
//
// # What a push guarantees
//
// [Repository.Push] returns without an error only if restic has stored the copy
// and named it, or has it already. Then:
//
//   - The copy is complete by itself. It needs no other restic snapshot and
//     nothing of this machine, so any forget or prune of restic's, even by hand,
//     leaves every remaining copy whole.
//   - It is the snapshot that SHA256SUMS describes. A file was compared with its
//     line there when it was first stored, and is compared again when anything
//     suggests that the stored form has changed since. A snapshot whose files are
//     not those of SHA256SUMS is refused, and nothing is stored; but a file that
//     was stored before and has the same line is not read again, so Push does not
//     find damage of such a file in the snapshot, and the copy does not have it.
//   - It can be restored with restic and rdiff alone (see The copy).
//
// A process that is killed at any moment leaves either no copy or a whole one, and
// the next push works, also after a power cut. One exception is mended by the next
// push: restic stores a copy although it cannot read a file of the tree, and a process
// that is killed before it has forgotten that one leaves it.
//
// # What a pull guarantees
//
// [Repository.Pull] adds the snapshot to a backup directory by one rename, after
// every byte was compared with SHA256SUMS, SHA256SUMS with the hash that the push
// recorded as a tag, and the whole was validated as [backup.ValidateBackup] does.
// Otherwise nothing is added, and nothing is left. Content, modes and modification
// times are those of the snapshot that was pushed.
//
// What a repository holds is untrusted: whoever has its password may have written
// it. Lists, names, sizes and deltas are checked and bounded, no link is followed,
// and nothing is written outside of the backup directory. The hashes prove that a
// copy was not damaged; they are not signatures.
//
// # The copy
//
// A snapshot's files do not cost what they weigh, but what changed. restic splits
// files into pieces of about 1 MiB and stores each once; so a database of which
// one page in a hundred changed would be sent again nearly whole. Therefore files
// of 1 MiB and more are stored as a base and the differences that followed:
//
//	recipe.json                         which files there are: path, hash, size, mode, time
//	files/<path>                        every smaller file, SHA256SUMS and backup-metadata.json
//	large/<path>/base-<sha256>          a larger file as it was first pushed
//	large/<path>/0001-<sha256>.delta    the first difference, in librsync's delta format
//	large/<path>/0002-<sha256>.delta    the difference between that and what came next
//
// The hash in a name is that of the file which results, by the base or by all
// differences up to that one. `restic restore`, and then `rdiff patch` for each
// difference in their order, make the snapshot again with nothing of this package.
// There are at most 32 differences; then they are merged into one. When together
// they have more than 60 % of the file's size, the file becomes a new base.
//
// # The state
//
// BackupDir/.atocore-offsite/<repository id>/ holds restic's cache, and for each
// store a directory with that tree, so that a push finds the base to compare with.
// Most of the tree are hard links to the files of snapshots; when those are pruned,
// it takes up to the size of one more snapshot. All of it may be removed at any time
// while nothing runs: then the next push reads everything again, and stores it anew
// with a new base, of which restic sends what it does not have. The same happens if
// it is damaged, moved, or that of another repository.
//
// Nothing in the tree is trusted without having been hashed, when it was stored or
// now: index.json has the size, times and inode of every file as it was hashed, and a
// file that is not as it was is hashed again. Where systems do not tell these
// (Windows), and if the repository has no earlier copy of the tree, so that restic
// reads everything again, everything is hashed. After restic has read the tree, it is
// compared with the index once more.
//
// One push at a time uses a tree; a second one waits for it. The lock is inherited by
// restic, so that it also outlives this process. Windows has no such lock: do not run
// two pushes there.
//
// # Errors
//
// Match errors with errors.Is. Beside those of this package, there are those of
// package backup that the calls name.
package offsite
