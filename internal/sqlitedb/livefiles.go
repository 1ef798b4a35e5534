package sqlitedb

import "github.com/atocore/backup/internal/fsat"

// Suffixes are what SQLite appends to the name of a database file for the
// files that belong to it: nothing for the database itself, and
// SidecarSuffixes.
var Suffixes = []string{"", "-wal", "-shm", "-journal"}

// SidecarSuffixes are Suffixes without the database itself.
var SidecarSuffixes = Suffixes[1:]

// Files are the inodes of a live database and of the files that SQLite keeps
// beside it. They are identified by stat alone, since no descriptor of one may
// be closed in this process.
type Files []fsat.Info

// FilesOf returns the files of the database at path that exist and can be
// looked at. For an empty path it returns nil.
func FilesOf(path string) (files Files) {
	if path == "" {
		return nil
	}
	path = fsat.RealPath(path)
	for _, suffix := range Suffixes {
		if info, err := fsat.Stat(path + suffix); err == nil {
			files = append(files, info)
		}
	}
	return files
}

// LongestPath is how long the path of a database may be, in bytes. SQLite refuses
// it if the path of its journal would have more than 512 (mxPathname in
// os_unix.c).
const LongestPath = 512 - len("-journal")

// FilesThatAre returns the paths of those files of the database that are the file
// at path, by their names or because they are links to it. Both paths must be
// without symbolic links. A file need not exist.
func FilesThatAre(path, database string) (files []string) {
	info, err := fsat.Stat(path)
	for _, suffix := range Suffixes {
		file, fileErr := fsat.Stat(database + suffix)
		if path == database+suffix || err == nil && fileErr == nil && file.SameFile(info) {
			files = append(files, database+suffix)
		}
	}
	return files
}

// Contains reports whether info describes one of the files, perhaps under
// another name. It returns false on systems without inode numbers.
func (f Files) Contains(info fsat.Info) bool {
	for _, file := range f {
		if file.SameFile(info) {
			return true
		}
	}
	return false
}
