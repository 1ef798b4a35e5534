package backup_test

// What the test files that move to the packages of the library need until they
// have moved. It goes with them.

import (
	"database/sql"
	"testing"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

const (
	metadataFile = backuptest.MetadataFile
	manifestFile = backuptest.ManifestFile
	dbFile       = backuptest.DBFile
)

type oldStore struct{ *backuptest.Store }

func newStore(t *testing.T) *oldStore { return &oldStore{backuptest.NewStore(t)} }

func (s *oldStore) create() *backup.Metadata { return s.Create() }

type specimen struct {
	t *testing.T
	backup.Options
	stamp string
}

func newSpecimen(t *testing.T) *specimen { return (&specimen{t: t}).of(backuptest.NewSnapshot(t)) }

func (s *specimen) of(n *backuptest.Snapshot) *specimen {
	s.Options, s.stamp = n.Options, n.Stamp
	return s
}

func (s *specimen) now() *backuptest.Snapshot {
	return &backuptest.Snapshot{T: s.t, Options: s.Options, Stamp: s.stamp}
}

func (s *specimen) copy(t *testing.T) *specimen    { return (&specimen{t: t}).of(s.now().Copy(t)) }
func (s *specimen) path(name string) string        { return s.now().Path(name) }
func (s *specimen) read(name string) []byte        { return s.now().Read(name) }
func (s *specimen) write(name string, data []byte) { s.now().Write(name, data) }
func (s *specimen) set(changes map[string]any)     { s.now().Set(changes) }
func (s *specimen) reseal()                        { s.now().Reseal() }
func (s *specimen) validate() *backup.Report       { return s.now().Validate() }

func requireReport(t *testing.T, r *backup.Report, err error) {
	t.Helper()
	backuptest.RequireReport(t, r, err)
}

func fileSize(t *testing.T, path string) int64 {
	t.Helper()
	return backuptest.FileSize(t, path)
}

func openDB(t *testing.T, path string, params ...string) *sql.DB {
	t.Helper()
	return backuptest.OpenDB(t, path, params...)
}

func inDatabase(t *testing.T, file string, do func(db *sql.DB)) {
	t.Helper()
	backuptest.InDatabase(t, file, do)
}
