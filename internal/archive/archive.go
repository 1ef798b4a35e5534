// Package archive writes the directory of a snapshot as a tar archive, and reads
// such an archive into a directory.
//
// It promises that whatever it passes on was compared with the snapshot's
// SHA256SUMS: [Write] never completes an archive of anything else, and [Read]
// accepts none. Everything that is read is untrusted. Nothing is opened or
// created but directories and regular files, relative to their directory, and no
// more is held in memory than one buffer and the metadata.
//
// The package must not know what the metadata say, where a snapshot comes from,
// or where it goes.
package archive

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/atocore/backup/internal/format"
)

const (
	// maxDepth bounds the levels of directories, each of which is open while
	// something in it is written or read.
	maxDepth = 256
	// maxDirs bounds the number of directories, which the manifest does not name.
	maxDirs = 1 << 20
	// bufferSize is how much of a file is in memory.
	bufferSize = 256 << 10
	// blockSize is the unit of a tar archive; two blocks of zeros are its trailer
	// (POSIX.1-2017, pax, "ustar Interchange Format").
	blockSize   = 512
	trailerSize = 2 * blockSize
)

// dirMode and fileMode are the modes of the directories and files with a mode
// that the format fixes.
const (
	dirMode  fs.FileMode = 0o700
	fileMode fs.FileMode = 0o600
)

// modeOf returns the mode that a file or directory of a snapshot has in an
// archive and after it was read: the format's own, or that of the copy without
// the bits that give a program the rights of its owner, which older snapshots
// may have.
func modeOf(path string, mode fs.FileMode) fs.FileMode {
	isDir := mode.IsDir()
	free := strings.HasPrefix(path, format.ChromaDir+"/") || path == format.ChromaDir || !isDir && strings.HasPrefix(path, format.ConfigDir+"/")
	switch {
	case !free && isDir:
		return dirMode
	case !free:
		return fileMode
	case isDir:
		return mode.Perm() | mode&(fs.ModeSetgid|fs.ModeSticky)
	}
	return mode.Perm() | mode&fs.ModeSticky
}

// The bits of a header's mode beside the permissions (POSIX.1-2017, pax).
const (
	tarSticky = 0o1000
	tarSetgid = 0o2000
)

// toHeader returns the bits that a header has for a mode.
func toHeader(mode fs.FileMode) int64 {
	bits := int64(mode.Perm())
	if mode&fs.ModeSticky != 0 {
		bits |= tarSticky
	}
	if mode&fs.ModeSetgid != 0 {
		bits |= tarSetgid
	}
	return bits
}

// fromHeader is the inverse of toHeader. It drops all other bits.
func fromHeader(bits int64, isDir bool) fs.FileMode {
	mode := fs.FileMode(bits) & fs.ModePerm
	if bits&tarSticky != 0 {
		mode |= fs.ModeSticky
	}
	if bits&tarSetgid != 0 {
		mode |= fs.ModeSetgid
	}
	if isDir {
		mode |= fs.ModeDir
	}
	return mode
}

// A MismatchError is the error for a snapshot whose files are not those of its
// manifest.
type MismatchError struct {
	Kind format.Mismatch
	// Irregular is set, and Kind is not, for something other than a regular file
	// or a directory of the snapshot's own.
	Irregular bool
	// Path is relative to the snapshot; a directory's ends with a slash. It is
	// empty for a manifest that cannot be read.
	Path   string
	Detail string
}

// Error returns the difference in words.
func (m *MismatchError) Error() string {
	what := map[format.Mismatch]string{
		format.Missing: "is missing", format.Changed: "does not have the hash of the manifest", format.Unknown: "is not in the manifest",
		format.Malformed: "the manifest cannot be read",
	}[m.Kind]
	if m.Irregular {
		what = "is not a regular file"
	}
	text := what
	if m.Path != "" {
		text = fmt.Sprintf("%q %s", m.Path, what)
	}
	if m.Detail != "" {
		text += ": " + m.Detail
	}
	return text
}

// mayBeEmpty reports whether a snapshot may have the empty directory path, which
// ends with a slash.
func mayBeEmpty(path string) bool {
	return strings.HasPrefix(path, format.ChromaDir+"/") || path == format.ConfigDir+"/"
}
