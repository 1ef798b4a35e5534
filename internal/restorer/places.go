package restorer

import (
	"fmt"
	"path/filepath"

	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/sqlitedb"
)

// CheckPlaces refuses paths that would make a backup copy itself, or would
// make it open and close a live database file: closing any descriptor of such
// a file drops all POSIX locks that this process holds on it, the host's own
// included (fcntl(2), "Advisory record locking";
// sqlite.org/howtocorrupt.html, section 2.2). It also refuses parts that lie
// inside each other or among the snapshots, because a restore replaces the
// Chroma directory as a whole, and a prune removes snapshots. Paths are absolute.
func CheckPlaces(backups string, live Places, includeChroma bool) (faults []error) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	backupDir, database := fsat.RealPath(backups), fsat.RealPath(live.Database)
	registry, chroma := fsat.RealPath(live.Registry), fsat.RealPath(live.Chroma)
	if live.Chroma != "" {
		switch {
		case fsat.Within(backupDir, chroma):
			fault("the backup directory %s lies inside the Chroma directory %s", backups, live.Chroma)
		case fsat.Within(chroma, backupDir):
			fault("the Chroma directory %s lies inside the backup directory %s", live.Chroma, backups)
		}
		if fsat.Within(database, chroma) {
			fault("the database %s lies inside the Chroma directory %s", live.Database, live.Chroma)
		}
		if live.Registry != "" && fsat.Within(registry, chroma) {
			fault("the registry %s lies inside the Chroma directory %s", live.Registry, live.Chroma)
		}
	}
	snapshots := filepath.Join(backupDir, format.SnapshotsName)
	if fsat.Within(database, snapshots) {
		fault("the database %s lies inside %s", live.Database, snapshots)
	}
	if live.Registry != "" {
		if fsat.Within(registry, snapshots) {
			fault("the registry %s lies inside %s", live.Registry, snapshots)
		}
		for _, file := range sqlitedb.FilesThatAre(registry, database) {
			fault("the registry %s is the database file %s", live.Registry, file)
		}
	}
	for _, p := range [][2]string{{"database", database}, {"registry", registry}, {"Chroma directory", chroma}} {
		if IsReserved(filepath.Base(p[1])) {
			fault("the %s %s has a name that restores use for their own files", p[0], p[1])
		}
	}
	if base := filepath.Base(live.Database); base == string(filepath.Separator) {
		fault("the path of the database, %s, names no file", live.Database)
	}
	// A copy that SQLite cannot open cannot be checked.
	root := filepath.Join(backupDir, format.SnapshotsName, format.StampLayout+"-1000")
	deepest := len(filepath.Join(root, format.DBDir, filepath.Base(live.Database)))
	if includeChroma {
		deepest = max(deepest, len(filepath.Join(root, format.ChromaDir, format.ChromaDBName)))
	}
	if deepest > sqlitedb.LongestPath {
		fault("the path of the backup directory, %s, is %d bytes too long for SQLite to open a copy in it", backups, deepest-sqlitedb.LongestPath)
	}
	return faults
}
