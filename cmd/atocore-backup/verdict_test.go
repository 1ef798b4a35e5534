package main

import (
	"database/sql"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
)

// A verified is what a list has about a snapshot besides its metadata.
type verified struct {
	Stamp      string
	Verified   *bool
	VerifiedAt *time.Time `json:"verified_at"`
	Protected  bool
	Note       string
}

func (s store) verified(t *testing.T, stamp string) verified {
	t.Helper()
	for _, e := range decode[[]verified](t, atocore(t, "list", "--backup-dir", s.backups)) {
		if e.Stamp == stamp {
			return e
		}
	}
	require.Fail(t, "it is not in the list", stamp)
	return verified{}
}

// A truth is what a report has besides the Python module's names.
type truth struct {
	report
	Intact          bool
	Findings, Notes []string
}

// breakDatabase makes a database one that works and to which SQLite objects: an
// index lacks a row.
func (s store) breakDatabase(t *testing.T) {
	t.Helper()
	require.NoError(t, s.live.Close())
	backuptest.InDatabase(t, s.db, func(db *sql.DB) {
		_, err := db.Exec(`PRAGMA journal_mode = delete; CREATE INDEX by_text ON notes (text); PRAGMA writable_schema = on;
			CREATE TABLE kept AS SELECT * FROM sqlite_schema WHERE name = 'by_text'; DELETE FROM sqlite_schema WHERE name = 'by_text'`)
		require.NoError(t, err)
	})
	backuptest.InDatabase(t, s.db, func(db *sql.DB) {
		_, err := db.Exec(`INSERT INTO notes VALUES ('hidden'); PRAGMA writable_schema = on;
			INSERT INTO sqlite_schema SELECT * FROM kept`)
		require.NoError(t, err)
	})
}

const brokenIndex = "db_integrity_check_failed: db/atocore.db: row 2 missing from index by_text"

// Creating with --verify ends with status 1 if the store has findings; the
// snapshot is there, and its metadata are the result.
func TestCreateVerify(t *testing.T) {
	s := newStore(t)
	create := func(args ...string) (outcome, string) {
		t.Helper()
		o := atocore(t, append(append([]string{"create"}, args...), s.flags()...)...)
		return o, decode[struct{ Stamp string }](t, o).Stamp
	}
	o, stamp := create("--verify", "--note", "before the upgrade")
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Contains(t, o.stderr, "valid.\n")
	e := s.verified(t, stamp)
	require.True(t, *e.Verified)
	require.Equal(t, "before the upgrade", e.Note)
	o, plain := create()
	require.Equal(t, exitDone, o.code)
	require.Nil(t, s.verified(t, plain).Verified)

	s.breakDatabase(t)
	o, broken := create("--verify")
	require.Equal(t, exitInvalid, o.code, o.stderr)
	require.Contains(t, o.stderr, "  "+brokenIndex+"\n")
	require.Contains(t, o.stderr, "It is intact")
	e = s.verified(t, broken)
	require.False(t, *e.Verified)
	require.False(t, e.VerifiedAt.IsZero())

	// Validating records the verdict, too.
	o = atocore(t, "validate", "--backup-dir", s.backups, plain)
	require.Equal(t, exitDone, o.code)
	require.True(t, *s.verified(t, plain).Verified)
	o = atocore(t, "validate", "--backup-dir", s.backups, broken)
	require.Equal(t, exitInvalid, o.code)
	r := decode[truth](t, o)
	require.True(t, r.Intact)
	require.False(t, r.Valid)
	require.Contains(t, r.Findings, brokenIndex)
	require.Equal(t, r.Findings, r.Errors)
	require.Empty(t, r.Notes)
}

// Without a terminal to ask on, a snapshot with findings is restored only with
// --despite-findings. The report is the result otherwise, and the message says
// how.
func TestRestoreDespiteFindings(t *testing.T) {
	s := newStore(t)
	s.breakDatabase(t)
	stamp := s.snapshot(t)
	require.NoError(t, os.WriteFile(s.registry, []byte(`{"projects": ["new"]}`), 0o600))
	into := filepath.Join(t.TempDir(), "new")

	for _, args := range [][]string{{"--yes", stamp}, {"--into", into, stamp}} {
		o := s.restore(t, args...)
		require.Equal(t, exitInvalid, o.code, o.stderr)
		require.Contains(t, decode[truth](t, o).Findings, brokenIndex)
		require.Contains(t, o.stderr, brokenIndex)
		require.Contains(t, o.stderr, "Give --despite-findings to restore it all the same.\n")
		requireFile(t, s.registry, `{"projects": ["new"]}`)
	}
	_, err := os.Stat(into)
	require.ErrorIs(t, err, os.ErrNotExist)

	o := s.restore(t, "--into", into, "--despite-findings", stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	requireNotes(t, filepath.Join(into, "atocore.db"), "first", "hidden")
	o = s.restore(t, "--yes", "--despite-findings", stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	requireFile(t, s.registry, `{"projects": []}`)
	safety := decode[restored](t, o).SafetyStamp
	require.NotEmpty(t, safety)
	o = atocore(t, "validate", "--backup-dir", s.backups, safety)
	require.Equal(t, exitInvalid, o.code)
	require.True(t, decode[truth](t, o).Intact)

	// Damage is refused all the same, and no way is named.
	s.snapshots(t).Snapshot(stamp).Write("config/registry.json", []byte("{}"))
	o = s.restore(t, "--yes", "--despite-findings", stamp)
	require.Equal(t, exitInvalid, o.code, o.stderr)
	require.NotContains(t, o.stderr, "despite")
	require.Empty(t, decode[truth](t, o).Findings)
}

// A drill of a snapshot with findings fails like its restore, unless it is wanted
// despite them.
func TestDrillDespiteFindings(t *testing.T) {
	s := newStore(t)
	s.breakDatabase(t)
	stamp := s.snapshot(t)
	o := atocore(t, "drill", "--backup-dir", s.backups, stamp)
	require.Equal(t, exitInvalid, o.code, o.stderr)
	require.Contains(t, decode[truth](t, o).Findings, brokenIndex)
	o = atocore(t, "drill", "--backup-dir", s.backups, "--despite-findings", stamp)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, stamp, decode[report](t, o).Stamp)
	require.False(t, *s.verified(t, stamp).Verified, "a drill records the verdict")
}

// The night after a database went bad somebody is told, and the last good snapshot
// stays however many bad ones follow; it is the latest, too.
func TestCorruptSourceOverNights(t *testing.T) {
	s := newStore(t)
	create := func(code int) string {
		t.Helper()
		o := atocore(t, append([]string{"create", "--verify"}, s.flags()...)...)
		require.Equal(t, code, o.code, o.stderr)
		return decode[struct{ Stamp string }](t, o).Stamp
	}
	good := create(exitDone)
	_, err := s.live.Exec("CREATE TABLE u (a); INSERT INTO u VALUES (hex(zeroblob(90000)))")
	require.NoError(t, err)
	require.NoError(t, s.live.Close())
	f, err := os.OpenFile(s.db, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, 9*4096), 5*4096)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	var bad []string
	for range 4 {
		bad = append(bad, create(exitInvalid))
	}

	o := atocore(t, append([]string{"prune", "--keep-last", "2"}, s.flags()...)...)
	require.Equal(t, exitDone, o.code, o.stderr)
	r := decode[pruning](t, o)
	require.Equal(t, []string{bad[1], bad[0]}, r.Removed)
	require.Equal(t, good, r.Kept[2].Stamp)
	require.Equal(t, []string{"newest snapshot that was found valid"}, r.Kept[2].Reasons)
	require.NotContains(t, o.stderr, "never verified")

	o = atocore(t, "drill", "--backup-dir", s.backups)
	require.Equal(t, exitDone, o.code, o.stderr)
	require.Equal(t, good, decode[report](t, o).Stamp)
	require.Contains(t, o.stderr, bad[3]+" (not valid when it was last checked)")
	o = s.restore(t, "--yes", "latest")
	require.Equal(t, exitDone, o.code, o.stderr)
	requireNotes(t, s.db, "first")
}

// A snapshot is protected from prunes until that is ended.
func TestProtect(t *testing.T) {
	s := newStore(t)
	stamp, _ := s.create(t)
	newest, _ := s.create(t)
	o := atocore(t, "protect", "--backup-dir", s.backups, stamp)
	require.Equal(t, outcome{exitDone, "", fmt.Sprintf("Snapshot %s is protected: no prune removes it.\n", stamp)}, o)
	require.True(t, s.verified(t, stamp).Protected)
	require.False(t, s.verified(t, newest).Protected)
	o = atocore(t, "prune", "--keep-last=1", "--backup-dir", s.backups)
	require.Equal(t, []string{"protected"}, decode[pruning](t, o).Kept[1].Reasons)

	o = atocore(t, "unprotect", "--backup-dir", s.backups, stamp)
	require.Equal(t, outcome{exitDone, "", fmt.Sprintf("Snapshot %s is not protected any more.\n", stamp)}, o)
	o = atocore(t, "prune", "--keep-last=1", "--backup-dir", s.backups)
	require.Equal(t, []string{stamp}, decode[pruning](t, o).Removed)
	require.Contains(t, o.stderr, "1 removed (1 of them never verified).\n")

	atocore(t, "protect", "--backup-dir", s.backups, stamp).requireStatus(t, exitMissing, stamp, "no such snapshot")
	atocore(t, "protect", "--backup-dir", s.backups, "../x").requireStatus(t, exitMissing, "../x")
	atocore(t, "unprotect", stamp).requireFailed(t, "unprotect: ", "--backup-dir")
	atocore(t, "protect", "--backup-dir", s.backups).requireFailed(t, "stamp")
}
