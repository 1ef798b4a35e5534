package sqlitedb

import (
	"runtime/debug"
	"slices"

	"github.com/atocore/backup/internal/fsat"
)

// otherLibraries are the modules that bring a copy of SQLite of their own. Those
// that are built on modernc.org/sqlite/lib, as zombiezen.com/go/sqlite and
// github.com/glebarez/go-sqlite are, share the one of this package.
var otherLibraries = []string{
	"github.com/mattn/go-sqlite3",
	"github.com/ncruces/go-sqlite3",
	"crawshaw.io/sqlite",
	"github.com/bvinc/go-sqlite-lite",
	"github.com/eatonphil/gosqlite",
	"github.com/mutecomm/go-sqlcipher",
	"github.com/mutecomm/go-sqlcipher/v4",
	"github.com/tursodatabase/go-libsql",
}

// OtherLibrary returns the name of another SQLite library that is linked into
// this program, if this process has the database at path open already: it may
// have it open through that library, whose locks would be dropped when this
// package closes the file. It returns "" if there is no such library, if the
// database is not open, or if that cannot be determined; it can on Linux.
func OtherLibrary(path string) string {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	library := otherLibrary(build.Deps)
	if library == "" || !openHere(path) {
		return ""
	}
	return library
}

func otherLibrary(linked []*debug.Module) string {
	for _, module := range linked {
		if slices.Contains(otherLibraries, module.Path) {
			return module.Path
		}
	}
	return ""
}

// openHere reports whether this process has the file at path open, otherwise
// than through this package.
func openHere(path string) bool {
	info, err := fsat.Stat(path)
	return err == nil && !hasSource(info.ID()) && openedHere(path, info.ID())
}
