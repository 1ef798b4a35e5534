package backup_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A brokenStore is a way in which a live store can be wrong so that the service
// works, or may work, and SQLite or the JSON check objects.
type brokenStore struct {
	do       func(s *backuptest.Store)
	findings []string // in the form of Brief
}

var brokenStores = map[string]brokenStore{
	"rows that an index lacks": {func(s *backuptest.Store) {
		backuptest.LoseIndexEntries(s.T, s.DatabasePath, 3)
	}, []string{"db_integrity_check_failed: " + backuptest.DBFile}},
	"a page of zeros": {func(s *backuptest.Store) {
		overwrite(s.T, s.DatabasePath, 4096, make([]byte, 4096))
	}, []string{"db_integrity_check_failed: " + backuptest.DBFile, "db_open_failed: " + backuptest.DBFile}},
	"a registry that is not JSON": {func(s *backuptest.Store) {
		backuptest.Write(s.T, s.RegistryPath, "{,}")
	}, []string{"registry_invalid_json: " + backuptest.RegistryFile}},
	"Chroma's own database": {func(s *backuptest.Store) {
		backuptest.LoseIndexEntries(s.T, s.InChroma("chroma.sqlite3"), 1)
		overwrite(s.T, s.InChroma("chroma.sqlite3"), 4096, make([]byte, 4096))
	}, []string{"chroma_db_check_failed: " + backuptest.ChromaFile}},
}

// overwrite writes data into a file.
func overwrite(t *testing.T, path string, at int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(data, at)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// A store to which a check objects is copied, byte for byte. The snapshot is not
// valid, and intact. It is restored only if the caller wants it despite the
// findings; the error lists them and says how.
func TestRestoreDespiteFindings(t *testing.T) {
	for name, broken := range brokenStores {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // some wait for the registry to become JSON
			s := backuptest.NewSmallStore(t)
			broken.do(s)
			snapshot := s.CreateSnapshot()
			report := snapshot.RequireProblems(broken.findings...)
			require.True(t, report.Intact)

			// Something else is live by now.
			whole := backuptest.NewSmallStore(t)
			require.NoError(t, backuptest.Transfer(t.Context(), backuptest.OpenDB(t, whole.DatabasePath, "_pragma=journal_mode(delete)"), 1, 2, 3))
			for from, to := range map[string]string{whole.DatabasePath: s.DatabasePath, whole.RegistryPath: s.RegistryPath} {
				data, err := os.ReadFile(from)
				require.NoError(t, err)
				require.NoError(t, os.Remove(to))
				require.NoError(t, os.WriteFile(to, data, 0o600))
			}
			before := backuptest.ReadTree(t, s.Dir)

			_, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, snapshot.Stamp)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			var invalid *backup.InvalidBackupError
			require.ErrorAs(t, err, &invalid)
			require.True(t, invalid.Report.Intact)
			for _, p := range invalid.Report.Problems {
				require.ErrorContains(t, err, p.String())
			}
			require.ErrorContains(t, err, "every byte is what was backed up")
			require.ErrorContains(t, err, "despite its findings")
			require.Equal(t, before, backuptest.ReadTree(t, s.Dir), "something was touched")

			s.DespiteFindings = true
			log := s.Record()
			result := s.Restore(snapshot.Stamp)
			require.Contains(t, strings.Join(log.Lines(), "\n"), "restored_despite_findings stamp="+snapshot.Stamp)
			require.NotEmpty(t, result.SafetyStamp)
			requireRestored(t, snapshot, s.Options)
			s.RequireNoRemains()

			// Now the store is broken again. Another restore takes a safety snapshot
			// that has the same findings, and is intact.
			s.Disturb()
			result = s.Restore(snapshot.Stamp)
			if result.SafetyStamp == "" {
				require.NotEmpty(t, result.SetAside)
			} else {
				require.True(t, s.Snapshot(result.SafetyStamp).RequireProblems(broken.findings...).Intact)
			}
			requireRestored(t, snapshot, s.Options)

			// And into an empty place, as a drill does.
			place := s.Options
			place.DatabasePath = filepath.Join(s.Dir, "place", "atocore.db")
			place.RegistryPath = filepath.Join(s.Dir, "place", "project-registry.json")
			place.ChromaPath = filepath.Join(s.Dir, "place", "chroma")
			_, err = backup.RestoreRuntimeBackup(t.Context(), place, snapshot.Stamp)
			require.NoError(t, err)
			requireRestored(t, snapshot, place)
		})
	}
}

// requireRestored checks that the files of a snapshot are in place, byte for
// byte.
func requireRestored(t *testing.T, s *backuptest.Snapshot, at backup.Options) {
	t.Helper()
	for _, name := range s.Files() {
		path, err := filepath.Rel("chroma", name)
		switch name {
		case backuptest.MetadataFile:
			continue
		case backuptest.DBFile:
			path = at.DatabasePath
		case backuptest.RegistryFile:
			path = at.RegistryPath
		default:
			require.NoError(t, err)
			path = filepath.Join(at.ChromaPath, path)
		}
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(s.Read(name), data), "%s differs", name)
	}
}

// unopenable takes a snapshot and makes its database one that SQLite cannot open
// at all, with a manifest that says that these are the bytes.
func unopenable(s *backuptest.Store) *backuptest.Snapshot {
	s.T.Helper()
	snapshot := s.CreateSnapshot()
	snapshot.Write(backuptest.DBFile, bytes.Repeat([]byte("rubbish "), 1024))
	snapshot.SetDBSize()
	snapshot.Reseal()
	require.True(s.T, snapshot.RequireProblems("db_open_failed: "+backuptest.DBFile).Intact)
	return snapshot
}

func TestRestoreOfWhatSQLiteCannotOpen(t *testing.T) {
	t.Parallel()
	s := backuptest.NewSmallStore(t)
	snapshot := unopenable(s)
	_, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, snapshot.Stamp)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	s.DespiteFindings = true
	result := s.Restore(snapshot.Stamp)
	require.NotEmpty(t, result.SafetyStamp)
	requireRestored(t, snapshot, s.Options)
	s.RequireNoRemains()

	// What is live is set aside then, because no snapshot can be taken of it.
	s.DespiteFindings = false
	s.Disturb()
	second := s.Restore(result.SafetyStamp)
	require.Len(t, second.SetAside, 3)
	require.Zero(t, backuptest.CountRows(t, s.DatabasePath))
}

// Damage is never restored, whatever the caller wants, and the error does not
// say that there is a way.
func TestRestoreOfDamageDespiteFindings(t *testing.T) {
	base := backuptest.NewSmallStore(t)
	backuptest.LoseIndexEntries(t, base.DatabasePath, 1)
	base.DespiteFindings = true
	stamp := base.Create().Stamp
	before := backuptest.ReadTree(t, filepath.Dir(base.DatabasePath))
	for name, damage := range map[string]func(s *backuptest.Snapshot){
		"database":           func(s *backuptest.Snapshot) { s.Flip(backuptest.DBFile, 5000) },
		"registry":           func(s *backuptest.Snapshot) { s.Write(backuptest.RegistryFile, []byte("{")) },
		"another file":       func(s *backuptest.Snapshot) { s.Add("notes", nil) },
		"no manifest":        func(s *backuptest.Snapshot) { s.Remove(backuptest.ManifestFile) },
		"metadata":           func(s *backuptest.Snapshot) { s.Set(map[string]any{"vector_store_note": "x"}) },
		"metadata, resealed": func(s *backuptest.Snapshot) { s.Set(map[string]any{"db_size_bytes": 1}); s.Reseal() },
		"none":               func(s *backuptest.Snapshot) { s.Remove("") },
	} {
		t.Run(name, func(t *testing.T) {
			s := base.Snapshot(stamp).Copy(t)
			damage(s)
			report := s.Validate()
			require.False(t, report.Intact)
			for _, p := range report.Problems {
				require.False(t, p.Finding, p)
			}
			opts := base.Options
			opts.BackupDir = s.BackupDir
			_, err := backup.RestoreRuntimeBackup(t.Context(), opts, stamp)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.NotContains(t, err.Error(), "set Despite")
			require.Equal(t, before, backuptest.ReadTree(t, filepath.Dir(base.DatabasePath)))
		})
	}
}

// Nothing proves that a snapshot of the Python module is intact. It can be
// restored despite findings all the same, and the error says what that means.
func TestRestoreOfAPythonSnapshotDespiteFindings(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	snapshot := s.CreateSnapshot()
	snapshot.MakePython()
	report := snapshot.RequireProblems()
	require.True(t, report.Valid)
	require.False(t, report.Intact)
	snapshot.LoseIndexEntries(2)
	report = snapshot.RequireProblems("db_integrity_check_failed: " + backuptest.DBFile)
	require.False(t, report.Intact)
	require.True(t, report.Problems[0].Finding)

	_, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, snapshot.Stamp)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.ErrorContains(t, err, "nothing proves that the snapshot is intact")
	require.ErrorContains(t, err, "despite its findings")
	s.DespiteFindings = true
	s.Restore(snapshot.Stamp)
	requireRestored(t, snapshot, s.Options)

	snapshot.Set(map[string]any{"db_size_bytes": 1}) // that is damage
	_, err = backup.RestoreRuntimeBackup(t.Context(), s.Options, snapshot.Stamp)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.NotContains(t, err.Error(), "set Despite")
}

// A restore despite findings that is interrupted is finished or undone like any
// other: what is in place is compared with what was staged, not with what SQLite
// thinks of it.
func TestRestoreDespiteFindingsIsUndone(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	snapshot := unopenable(s)
	s.DespiteFindings = true
	for _, phase := range []backup.Phase{backup.PhaseStage, backup.PhaseSwap, backup.PhaseVerify} {
		ctx, cancel := context.WithCancel(t.Context())
		opts := s.Options
		opts.OnProgress = func(p backup.Progress) {
			if p.Phase == phase {
				cancel()
			}
		}
		_, err := backup.RestoreRuntimeBackup(ctx, opts, snapshot.Stamp)
		cancel()
		require.ErrorIs(t, err, context.Canceled, phase)
		require.False(t, errors.Is(err, backup.ErrRestoreUnfinished), phase)
		require.Zero(t, backuptest.CountRows(t, s.DatabasePath))
		s.RequireNoRemains()
	}
	s.Restore(snapshot.Stamp)
	requireRestored(t, snapshot, s.Options)
}

func init() { roles["restore"] = roleRestore }

// roleRestore restores the snapshot args[1] over the store in args[0] despite
// findings, and stops for a line when the phase args[2] begins.
func roleRestore(p *backuptest.Parent, args []string) error {
	opts := backuptest.OptionsIn(args[0])
	opts.DespiteFindings = true
	opts.OnProgress = func(progress backup.Progress) {
		if progress.Phase == backup.Phase(args[2]) {
			p.Say("there")
			p.Hear()
		}
	}
	_, err := backup.RestoreRuntimeBackup(context.Background(), opts, args[1])
	return err
}

// If it is killed, the next restore finishes or undoes it.
func TestRestoreDespiteFindingsIsKilled(t *testing.T) {
	for phase, outcome := range map[backup.Phase]string{backup.PhaseStage: "undone", backup.PhaseSwap: "undone", backup.PhaseVerify: "finished"} {
		t.Run(string(phase), func(t *testing.T) {
			s := backuptest.NewSmallStore(t)
			good := s.Create().Stamp
			snapshot := unopenable(s)
			// This process keeps descriptors of the databases, which another one
			// takes for those of a service.
			for _, path := range []string{s.DatabasePath, s.InChroma("chroma.sqlite3")} {
				require.NoError(t, os.Rename(backuptest.CopyOf(t, path), path))
			}
			child := backuptest.Start(t, "restore", s.Dir, snapshot.Stamp, string(phase))
			require.Equal(t, "there", child.Hear())
			child.Kill()
			_, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
			require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
			result := s.Restore(good)
			require.Equal(t, outcome, result.Recovered)
			require.Equal(t, snapshot.Stamp, result.RecoveredStamp)
			if outcome == "finished" { // so what it put there is what was replaced now
				require.NotEmpty(t, result.SetAside)
				require.Empty(t, result.SafetyStamp)
			}
			require.Zero(t, backuptest.CountRows(t, s.DatabasePath))
			s.RequireNoRemains()
		})
	}
}
