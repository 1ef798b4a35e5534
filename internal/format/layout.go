// Package format implements the part of the on-disk format (docs/format.md)
// that consists of names and text: the files and directories of a snapshot,
// stamps, the names of staging directories, paths recorded in metadata, and the
// manifest SHA256SUMS.
//
// All that it reads is untrusted: no name or path that it accepts leads out of
// the directory that it is meant for. The package opens no files; it works on
// strings, readers and writers. It must not know what is in the metadata,
// nor what a finding means for a snapshot.
package format

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
)

// Version is the version of the on-disk format that this library writes, and
// the only one that it reads besides the Python module's, which has none.
const Version = 1

// The names of files and directories.
const (
	SnapshotsName = "snapshots"            // the directory of all snapshots, in the backup directory
	RecordsName   = "records"              // what is known about them, beside it
	MetadataName  = "backup-metadata.json" // in a snapshot
	ManifestName  = "SHA256SUMS"           // in a snapshot

	DBDir     = "db"     // the directory of the database copy in a snapshot
	ConfigDir = "config" // the directory of the registry copy; empty if there is no registry
	ChromaDir = "chroma" // the Chroma copy, if there is one

	ChromaDBName = "chroma.sqlite3" // Chroma's own database, in its directory

	// LostFound is what mkfs creates at the root of a volume, for fsck. In a Chroma
	// directory that is one, it is no part of the store.
	LostFound = "lost+found"
)

// MaxMetadataSize is the most that is read of a metadata file. A file that this
// library writes has about 1 KB plus the lengths of five paths.
const MaxMetadataSize = 1 << 20

// stagingPrefix begins the names of staging directories in a backup directory;
// 16 hexadecimal digits follow. A snapshot that is being removed gets such a
// name too.
const stagingPrefix = ".atocore-staging-"

// NewStagingName returns a random name for a staging directory.
func NewStagingName() string { return stagingPrefix + RandomHex() }

// IsStagingName reports whether name is of the form that [NewStagingName]
// returns.
func IsStagingName(name string) bool {
	id, ok := strings.CutPrefix(name, stagingPrefix)
	return ok && IsHexID(id)
}

// RandomHex returns 16 random hexadecimal digits. They keep names apart and are no
// secret. crypto/rand would end the whole process where a sandbox refuses
// getrandom(2) with another error than ENOSYS; math/rand/v2 has its seed from the
// kernel since the process began (AT_RANDOM in getauxval(3)).
func RandomHex() string { return fmt.Sprintf("%016x", rand.Uint64()) }

// IsHexID reports whether s is of the form that [RandomHex] returns: 16
// hexadecimal digits in lower case.
func IsHexID(s string) bool { return len(s) == 16 && strings.Trim(s, "0123456789abcdef") == "" }

// Relative returns the place of a recorded path below the recorded root, with
// slashes. ok is false if the path is not below the root. Both are untrusted;
// Relative compares their text and accesses no file.
func Relative(root, path string) (rel string, ok bool) {
	for _, part := range strings.Split(filepath.ToSlash(path), "/") {
		if part == ".." {
			return "", false
		}
	}
	if root == "" || strings.ContainsRune(path, 0) {
		return "", false
	}
	rel, err := filepath.Rel(filepath.Clean(root), filepath.Clean(path))
	if err != nil || rel == "." || !filepath.IsLocal(rel) {
		return "", false
	}
	return filepath.ToSlash(rel), true
}
