package drill_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/drill"
	"github.com/atocore/backup/internal/backuptest"
)

// requireEmpty checks that no scratch directory is left.
func requireEmpty(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries)
}

// The store is in use, and the host's options are those of its other calls: none
// of the functions that stop its users is called, and no file of it is touched.
func TestDrillLeavesTheStoreAlone(t *testing.T) {
	s := backuptest.NewStore(t)
	stamp := s.Create().Stamp
	live := backuptest.OpenDB(t, s.DatabasePath, "_pragma=journal_mode(wal)")
	tx, err := live.BeginTx(t.Context(), nil)
	require.NoError(t, err)
	_, err = tx.Exec("UPDATE account SET balance = balance + 1")
	require.NoError(t, err)
	defer func() { require.NoError(t, tx.Rollback()) }()
	before := backuptest.ReadTree(t, filepath.Join(s.Dir, "data"))

	called := errors.New("this function is not to be called")
	opts := s.Options
	opts.DB, opts.Parts, opts.Verify, opts.Note = live, backup.PartChroma, true, "note"
	opts.InitDB = func(context.Context) error { return called }
	opts.Confirm = func(context.Context, []backup.RestorePart) error { return called }
	opts.Offline = func(context.Context) (func(context.Context) error, error) { return nil, called }
	opts.Locker = backup.LockerFunc(func(context.Context) (func(), error) { return nil, called })
	opts.RecordVerdicts = true
	var phases []backup.Phase
	opts.OnProgress = func(p backup.Progress) { phases = append(phases, p.Phase) }
	for _, capture := range []func(context.Context, string) error{nil, func(context.Context, string) error { return called }} {
		if opts.Capture = capture; capture != nil {
			opts.DB = nil
		}
		scratch := t.TempDir()
		result, err := drill.Run(t.Context(), opts, stamp, scratch)
		require.NoError(t, err)
		ok := true
		require.Equal(t, &drill.Result{Stamp: stamp, DBOK: true, RegistryOK: &ok, ChromaOK: &ok, Files: result.Files, Bytes: result.Bytes}, result)
		require.Greater(t, result.Files, int64(3))
		require.Greater(t, result.Bytes, int64(10_000))
		requireEmpty(t, scratch)
	}
	require.Contains(t, phases, backup.PhaseStage)
	require.Equal(t, before, backuptest.ReadTree(t, filepath.Join(s.Dir, "data")))
	require.Equal(t, []string{stamp}, s.Stamps(), "a drill takes no safety snapshot")
	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.True(t, *list[0].Verified, "the verdict is recorded")
}

func TestDrillRefuses(t *testing.T) {
	for name, test := range map[string]struct {
		harm    func(s *backuptest.Snapshot)
		stamp   string
		despite bool
		want    []error
		words   string
	}{
		"damage": {harm: func(s *backuptest.Snapshot) { s.Flip(backuptest.DBFile, 5000) }, despite: true,
			want: []error{backup.ErrInvalidBackup}, words: "file_changed"},
		"findings": {harm: func(s *backuptest.Snapshot) { s.LoseIndexEntries(2); s.SetDBSize(); s.Reseal() },
			want: []error{backup.ErrInvalidBackup}, words: "db_integrity_check_failed"},
		"no metadata": {harm: func(s *backuptest.Snapshot) { s.Remove(backuptest.MetadataFile) },
			want: []error{backup.ErrInvalidBackup}, words: "metadata"},
		"a database of no name": {harm: func(s *backuptest.Snapshot) { s.Set(map[string]any{"db_snapshot_path": ".."}) },
			want: []error{backup.ErrInvalidBackup}},
		"no snapshot":   {stamp: "20000101T000000Z", want: []error{backup.ErrNoSnapshot, backup.ErrInvalidBackup}},
		"not a name":    {stamp: "../x", want: []error{backup.ErrNoSnapshot}},
		"an empty name": {stamp: "", want: []error{backup.ErrNoSnapshot}},
	} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewSnapshot(t)
			stamp := test.stamp
			if test.harm != nil {
				test.harm(s)
				stamp = s.Stamp
			}
			scratch := t.TempDir()
			opts := s.Options
			opts.DespiteFindings = test.despite
			result, err := drill.Run(t.Context(), opts, stamp, scratch)
			require.Nil(t, result)
			for _, want := range test.want {
				require.ErrorIs(t, err, want)
			}
			var invalid *backup.InvalidBackupError
			require.True(t, !errors.Is(err, backup.ErrInvalidBackup) || errors.As(err, &invalid), "without a report: %v", err)
			require.Contains(t, err.Error(), "drill: ")
			require.Contains(t, err.Error(), test.words)
			requireEmpty(t, scratch)
		})
	}
}

func TestDrillDespiteFindings(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	s.LoseIndexEntries(2)
	s.SetDBSize()
	s.Reseal()
	opts := s.Options
	opts.DespiteFindings = true
	scratch := t.TempDir()
	result, err := drill.Run(t.Context(), opts, s.Stamp, scratch)
	require.NoError(t, err)
	require.False(t, result.DBOK)
	require.True(t, *result.ChromaOK)
	require.NotEmpty(t, result.Findings)
	require.Contains(t, result.Findings[0], "db_integrity_check_failed")
	requireEmpty(t, scratch)
}

// A file of the snapshot that is the live database by another name is never
// opened: closing it would drop the locks of this process.
func TestDrillRefusesALinkToTheLiveDatabase(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	snapshot := s.CreateSnapshot()
	for _, name := range []string{backuptest.DBFile, backuptest.ChromaFile, "chroma/more"} {
		t.Run(name, func(t *testing.T) {
			snapshot := snapshot.Copy(t)
			file := snapshot.Path(name)
			_ = os.Remove(file)
			if err := os.Link(s.DatabasePath, file); err != nil {
				t.Skip("no hard links:", err)
			}
			scratch := t.TempDir()
			opts := s.Options
			opts.BackupDir = snapshot.BackupDir
			opts.OnProgress = func(p backup.Progress) { require.NotEqual(t, backup.PhaseStage, p.Phase) }
			_, err := drill.Run(t.Context(), opts, snapshot.Stamp, scratch)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Contains(t, err.Error(), "file_not_regular: "+name)
			requireEmpty(t, scratch)
		})
	}
}

func TestDrillNeedsAPlace(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	_, err := drill.Run(t.Context(), s.Options, s.Stamp, filepath.Join(t.TempDir(), "absent"))
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NotErrorIs(t, err, backup.ErrNoSnapshot)
	require.Contains(t, err.Error(), "absent")

	_, err = drill.Run(t.Context(), s.Options, s.Stamp, s.Path(""))
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	s.RequireProblems()

	_, err = drill.Run(t.Context(), backup.Options{}, s.Stamp, t.TempDir())
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
}

// Whatever happens at whatever phase, the scratch directory is removed.
func TestDrillIsCutOff(t *testing.T) {
	s := backuptest.NewSnapshot(t)
	for _, phase := range []backup.Phase{backup.PhaseValidateFiles, backup.PhaseValidateDatabase, backup.PhaseStage, backup.PhaseSwap, backup.PhaseVerify} {
		t.Run(string(phase), func(t *testing.T) {
			scratch := t.TempDir()
			reached := false
			opts := s.Options
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			opts.OnProgress = func(p backup.Progress) {
				if p.Phase == phase {
					reached = true
					cancel()
				}
			}
			_, err := drill.Run(ctx, opts, s.Stamp, scratch)
			require.True(t, reached)
			require.ErrorIs(t, err, context.Canceled)
			requireEmpty(t, scratch)

			opts.OnProgress = func(p backup.Progress) {
				if p.Phase == phase {
					panic("of the host")
				}
			}
			_, err = drill.Run(t.Context(), opts, s.Stamp, scratch)
			require.ErrorIs(t, err, backup.ErrPanic)
			require.Contains(t, err.Error(), "of the host")
			requireEmpty(t, scratch)
		})
	}
}

// Nobody removes the snapshot during a drill.
func TestDrillHoldsTheSnapshot(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("there are no locks")
	}
	s := backuptest.NewSmallStore(t)
	old, _ := s.Create().Stamp, s.Create().Stamp
	asked := 0
	opts := s.Options
	opts.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseStage {
			asked++
			result, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
			require.NoError(t, err)
			require.Empty(t, result.Removed)
		}
	}
	_, err := drill.Run(t.Context(), opts, old, t.TempDir())
	require.NoError(t, err)
	require.Positive(t, asked)
	require.Len(t, s.Stamps(), 2)
}
