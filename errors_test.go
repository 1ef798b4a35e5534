package backup_test

import (
	"context"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// exportedErrors returns the names of the package's exported error values.
func exportedErrors(t *testing.T) (names []string) {
	t.Helper()
	for _, file := range sourcesOf(t, ".") {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		require.NoError(t, err)
		for _, decl := range parsed.Decls {
			vars, ok := decl.(*ast.GenDecl)
			if !ok || vars.Tok != token.VAR {
				continue
			}
			for _, spec := range vars.Specs {
				for _, name := range spec.(*ast.ValueSpec).Names {
					if strings.HasPrefix(name.Name, "Err") {
						names = append(names, name.Name)
					}
				}
			}
		}
	}
	slices.Sort(names)
	return names
}

// The table in the package's documentation has every error, with what to do and
// a status.
func TestErrorTableIsComplete(t *testing.T) {
	parsed, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments)
	require.NoError(t, err)
	var listed []string
	for _, row := range regexp.MustCompile(`(?m)^\t(Err\w+) +\S.*\S +[45]\d\d$`).FindAllStringSubmatch(parsed.Doc.Text(), -1) {
		listed = append(listed, row[1])
	}
	slices.Sort(listed)
	names := exportedErrors(t)
	require.Greater(t, len(names), 10)
	require.Equal(t, names, listed)
}

// Every call that takes a stamp says with one error that there is no such
// snapshot.
func TestNoSnapshot(t *testing.T) {
	places := []struct {
		name, stamp string
		make        func(t *testing.T, s *backuptest.Store)
	}{
		{"unknown stamp", "20200101T000000Z", func(*testing.T, *backuptest.Store) {}},
		{"not a name", "../snapshots", func(*testing.T, *backuptest.Store) {}},
		{"empty", "", func(*testing.T, *backuptest.Store) {}},
		{"a file", "file", func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.WriteFile(s.SnapshotPath("file"), nil, 0o600))
		}},
		{"no directory of snapshots", "20200101T000000Z", func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.RemoveAll(filepath.Join(s.BackupDir, "snapshots")))
		}},
		{"no backup directory", "20200101T000000Z", func(t *testing.T, s *backuptest.Store) {
			require.NoError(t, os.RemoveAll(s.BackupDir))
		}},
	}
	for _, place := range places {
		for name, call := range map[string]func(context.Context, backup.Options, string) error{
			"validate": func(ctx context.Context, opts backup.Options, stamp string) error {
				report, err := backup.ValidateBackup(ctx, opts, stamp)
				require.False(t, report.Exists)
				require.ErrorIs(t, err, backup.ErrInvalidBackup)
				return err
			},
			"restore": func(ctx context.Context, opts backup.Options, stamp string) error {
				_, err := backup.RestoreRuntimeBackup(ctx, opts, stamp)
				return err
			},
			"restore to an empty place": func(ctx context.Context, opts backup.Options, stamp string) error {
				elsewhere := backuptest.OptionsIn(t.TempDir())
				elsewhere.BackupDir = opts.BackupDir
				_, err := backup.RestoreRuntimeBackup(ctx, elsewhere, stamp)
				return err
			},
			"remove": backup.RemoveRuntimeBackup,
			"protect": func(ctx context.Context, opts backup.Options, stamp string) error {
				return backup.ProtectRuntimeBackup(ctx, opts, stamp, true)
			},
			"export": func(ctx context.Context, opts backup.Options, stamp string) error {
				return backup.ExportRuntimeBackup(ctx, opts, stamp, io.Discard)
			},
		} {
			t.Run(place.name+"/"+name, func(t *testing.T) {
				s := backuptest.NewSmallStore(t)
				s.Create()
				place.make(t, s)
				err := call(t.Context(), s.Options, place.stamp)
				require.ErrorIs(t, err, backup.ErrNoSnapshot)
				require.ErrorIs(t, err, fs.ErrNotExist)
				require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
				require.ErrorContains(t, err, s.BackupDir)
				if invalid := new(backup.InvalidBackupError); errors.As(err, &invalid) {
					require.False(t, invalid.Report.Exists)
				} else {
					require.NotErrorIs(t, err, backup.ErrInvalidBackup)
				}
			})
		}
	}
	_, err := backup.ValidateDir(t.Context(), backup.Options{}, filepath.Join(t.TempDir(), "missing"))
	require.ErrorIs(t, err, backup.ErrNoSnapshot)
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = backup.LatestRuntimeBackup(t.Context(), backup.Options{BackupDir: t.TempDir()})
	require.ErrorIs(t, err, backup.ErrNoSnapshot)
}
