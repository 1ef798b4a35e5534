package backup_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() { roles["import"] = roleImport }

// export returns the archive of a snapshot.
func export(t *testing.T, opts backup.Options, stamp string) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, backup.ExportRuntimeBackup(t.Context(), opts, stamp, &b))
	return b.Bytes()
}

// emptyPlace is a store without anything but options for a backup directory that
// does not exist.
func emptyPlace(t *testing.T) *backuptest.Store {
	dir := t.TempDir()
	return &backuptest.Store{T: t, Dir: dir, Options: backup.Options{BackupDir: filepath.Join(dir, "backups")}}
}

func importInto(t *testing.T, s *backuptest.Store, data []byte) (*backup.Metadata, error) {
	t.Helper()
	return backup.ImportRuntimeBackup(t.Context(), s.Options, bytes.NewReader(data))
}

// An exported snapshot is imported as it was, is exported again to the same
// bytes, and can be restored.
func TestExportAndImport(t *testing.T) {
	for name, store := range map[string]func(*testing.T) *backuptest.Store{
		"whole store": backuptest.NewStore, "small": backuptest.NewSmallStore,
		"without Chroma": func(t *testing.T) *backuptest.Store {
			s := backuptest.NewBareStore(t)
			s.IncludeChroma, s.RegistryPath = false, ""
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := store(t)
			meta := s.Create()
			before := s.Snapshot(meta.Stamp).State()
			data := export(t, s.Options, meta.Stamp)
			require.Equal(t, data, export(t, s.Options, meta.Stamp), "the same snapshot, other bytes")
			require.Equal(t, before, s.Snapshot(meta.Stamp).State(), "exporting changed the snapshot")

			to := emptyPlace(t)
			imported, err := importInto(t, to, data)
			require.NoError(t, err)
			meta.Cost = nil // an import has none
			require.Equal(t, meta, imported)
			require.Equal(t, backuptest.ReadTree(t, s.SnapshotPath(meta.Stamp)), backuptest.ReadTree(t, to.SnapshotPath(meta.Stamp)))
			require.Equal(t, data, export(t, to.Options, meta.Stamp))
			to.RequireClean()

			s.BackupDir = to.BackupDir
			s.RemoveAll(s.DatabasePath)
			s.Restore(meta.Stamp)
			backuptest.RequireSound(t, s.DatabasePath)
		})
	}
}

// A snapshot that was renamed is exported under its own stamp.
func TestExportOfARenamedSnapshot(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	meta := s.Create()
	data := export(t, s.Options, meta.Stamp)
	require.NoError(t, os.Rename(s.SnapshotPath(meta.Stamp), s.SnapshotPath("before the move")))
	require.Equal(t, data, export(t, s.Options, "before the move"))
	imported, err := importInto(t, s, data)
	require.NoError(t, err)
	require.Equal(t, meta.Stamp, imported.Stamp)
	require.Len(t, s.RequireValid(), 2)
}

// A damaged snapshot is never exported, nor one that nothing proves intact, and
// the error has a report.
func TestExportOfADamagedSnapshot(t *testing.T) {
	base := backuptest.NewSmallStore(t).CreateSnapshot()
	for name, tt := range map[string]struct {
		damage func(s *backuptest.Snapshot)
		want   string
		begun  bool
	}{
		"database changed":      {func(s *backuptest.Snapshot) { s.Flip(backuptest.DBFile, 5000) }, "file_changed", true},
		"metadata changed":      {func(s *backuptest.Snapshot) { s.Set(map[string]any{"vector_store_note": "x"}) }, "file_changed", true},
		"database missing":      {func(s *backuptest.Snapshot) { s.Remove(backuptest.DBFile) }, "file_missing", false},
		"added":                 {func(s *backuptest.Snapshot) { s.Add("chroma/added", nil) }, "file_unknown", false},
		"link":                  {func(s *backuptest.Snapshot) { s.Link("chroma/link", "/etc/passwd") }, "file_not_regular", false},
		"manifest missing":      {func(s *backuptest.Snapshot) { s.Remove(backuptest.ManifestFile) }, "manifest_missing", false},
		"manifest malformed":    {func(s *backuptest.Snapshot) { s.Write(backuptest.ManifestFile, []byte("x\n")) }, "manifest_malformed", false},
		"metadata missing":      {func(s *backuptest.Snapshot) { s.Remove(backuptest.MetadataFile) }, "metadata_missing", false},
		"metadata not JSON":     {func(s *backuptest.Snapshot) { s.Write(backuptest.MetadataFile, []byte("{")) }, "metadata_invalid_json", false},
		"stamp of another time": {func(s *backuptest.Snapshot) { s.Set(map[string]any{"stamp": "20200101T000000Z"}); s.Reseal() }, "metadata_wrong_shape", false},
		"of the Python module":  {func(s *backuptest.Snapshot) { s.MakePython() }, "manifest_missing", false},
		"of a version to come":  {func(s *backuptest.Snapshot) { s.Set(map[string]any{"format_version": 2}); s.Reseal() }, "format_version_unsupported", false},
		"stamp is a staging one": {func(s *backuptest.Snapshot) {
			s.Set(map[string]any{"stamp": ".atocore-staging-0123456789abcdef"})
			s.Reseal()
		}, "metadata_wrong_shape", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := base.Copy(t)
			tt.damage(s)
			var b bytes.Buffer
			err := backup.ExportRuntimeBackup(t.Context(), s.Options, s.Stamp, &b)
			var invalid *backup.InvalidBackupError
			require.ErrorAs(t, err, &invalid)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.NotErrorIs(t, err, backup.ErrNoSnapshot)
			require.False(t, invalid.Report.Valid || invalid.Report.Intact)
			require.EqualValues(t, tt.want, invalid.Report.Problems[0].Code)
			require.Equal(t, tt.begun, b.Len() > 0)
			to := emptyPlace(t)
			_, err = importInto(t, to, b.Bytes())
			require.ErrorIs(t, err, backup.ErrInvalidArchive)
			to.RequireNoSnapshot()
		})
	}
}

// While a snapshot is exported, nobody removes it.
func TestExportHoldsTheSnapshot(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	old, _ := s.Create().Stamp, s.Create()
	calls := 0
	w := writerFunc(func(p []byte) (int, error) {
		if calls++; calls == 5 {
			require.ErrorIs(t, backup.RemoveRuntimeBackup(t.Context(), s.Options, old), backup.ErrBusy)
			pruned, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
			require.NoError(t, err)
			require.Equal(t, []backup.SkippedSnapshot{{Stamp: old, Reason: "in use"}}, pruned.Skipped)
		}
		return len(p), nil
	})
	require.NoError(t, backup.ExportRuntimeBackup(t.Context(), s.Options, old, w))
	require.Greater(t, calls, 5)
	require.NoError(t, backup.RemoveRuntimeBackup(t.Context(), s.Options, old))
}

// A host that reads a snapshot's files by its own means keeps it from being removed.
func TestHold(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	old, _ := s.Create(), s.Create()
	type key struct{}
	ctx := context.WithValue(t.Context(), key{}, "of the call")
	remove := func() error { return backup.RemoveRuntimeBackup(t.Context(), s.Options, old.Stamp) }
	failed := errors.New("the copy failed")
	err := backup.HoldRuntimeBackup(ctx, s.Options, old.Stamp, func(ctx context.Context, dir string) error {
		require.Equal(t, "of the call", ctx.Value(key{}))
		require.Equal(t, old.BackupRoot, dir)
		require.ErrorIs(t, remove(), backup.ErrBusy)
		report, err := backup.ValidateBackup(ctx, s.Options, old.Stamp)
		require.NoError(t, err)
		require.True(t, report.Valid)
		s.Create()
		return failed
	})
	require.ErrorIs(t, err, failed)
	require.ErrorContains(t, err, old.Stamp)

	err = backup.HoldRuntimeBackup(ctx, s.Options, old.Stamp, func(context.Context, string) error { panic("of the host") })
	require.ErrorIs(t, err, backup.ErrPanic)
	require.NoError(t, remove())

	unused := func(context.Context, string) error { panic("called") }
	for _, stamp := range []string{old.Stamp, "", "..", "../snapshots", "a/b"} {
		require.ErrorIs(t, backup.HoldRuntimeBackup(ctx, s.Options, stamp, unused), backup.ErrNoSnapshot, stamp)
	}
	require.ErrorIs(t, backup.HoldRuntimeBackup(ctx, backup.Options{}, "x", unused), backup.ErrInvalidOptions)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// Nothing is ever replaced, and what is there is told apart from another
// snapshot of the same stamp before the rest is read.
func TestImportOfAStampThatExists(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	snapshot := s.CreateSnapshot()
	data := export(t, s.Options, snapshot.Stamp)
	for name, tt := range map[string]struct {
		change func(s *backuptest.Snapshot)
		same   bool
	}{
		"the same": {func(*backuptest.Snapshot) {}, true},
		"another":  {func(s *backuptest.Snapshot) { s.Add("chroma/more", nil); s.Reseal() }, false},
		"damaged":  {func(s *backuptest.Snapshot) { s.Flip(backuptest.DBFile, 4711) }, true},
		"empty":    {func(s *backuptest.Snapshot) { s.Remove(backuptest.ManifestFile) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			there := snapshot.Copy(t)
			tt.change(there)
			before := there.State()
			read := 0
			meta, err := backup.ImportRuntimeBackup(t.Context(), there.Options, readerFunc(func(p []byte) (int, error) {
				n := copy(p, data[read:])
				read += n
				return n, nil
			}))
			require.ErrorIs(t, err, backup.ErrSnapshotExists)
			require.ErrorIs(t, err, fs.ErrExist)
			require.Equal(t, tt.same, meta != nil)
			require.Less(t, read, len(data)/2, "it read on")
			// Staging came and went, which changes the times of the directory.
			after := there.State()
			before[there.BackupDir], after[there.BackupDir] = "", ""
			require.Equal(t, before, after)
		})
	}
	require.NoError(t, os.RemoveAll(snapshot.Path("")))
	require.NoError(t, os.WriteFile(snapshot.Path(""), nil, 0o600))
	_, err := importInto(t, s, data)
	require.ErrorIs(t, err, backup.ErrSnapshotExists)
	s.RequireNoStaging()
}

// What is no archive is refused and leaves nothing.
func TestImportRefuses(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	meta := s.Create()
	data := export(t, s.Options, meta.Stamp)
	other := strings.NewReplacer(meta.Stamp, "20200101T000000Z")
	for name, input := range map[string]string{
		"nothing":       "",
		"text":          strings.Repeat("text", 500),
		"compressed":    "\x1f\x8b\x08\x00 and so on",
		"cut off":       string(data[:len(data)-512]),
		"cut in half":   string(data[:len(data)/2]),
		"garbage after": string(data) + "x",
		"renamed":       other.Replace(string(data)),
		"changed":       string(flipped(data, bytes.Index(data, []byte("SQLite format 3"))+3000)),
	} {
		t.Run(name, func(t *testing.T) {
			to := emptyPlace(t)
			meta, err := importInto(t, to, []byte(input))
			require.Nil(t, meta)
			require.ErrorIs(t, err, backup.ErrInvalidArchive)
			to.RequireNoSnapshot()
		})
	}
}

// repacked returns an archive of the same entries with other metadata, and a
// manifest and names that agree with these.
func repacked(t *testing.T, data []byte, old, stamp string, changeMetadata func([]byte) []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	from, to := tar.NewReader(bytes.NewReader(data)), tar.NewWriter(&b)
	oldLine, newLine := "", ""
	for {
		h, err := from.Next()
		if err == io.EOF {
			require.NoError(t, to.Close())
			return b.Bytes()
		}
		require.NoError(t, err)
		body, err := io.ReadAll(from)
		require.NoError(t, err)
		switch strings.TrimPrefix(h.Name, old+"/") {
		case backuptest.MetadataFile:
			oldLine = backuptest.ManifestLine(body, backuptest.MetadataFile)
			body = changeMetadata(body)
			newLine = backuptest.ManifestLine(body, backuptest.MetadataFile)
		case backuptest.ManifestFile:
			require.Contains(t, string(body), oldLine)
			body = bytes.Replace(body, []byte(oldLine), []byte(newLine), 1)
		}
		h.Name = strings.Replace(h.Name, old, stamp, 1)
		h.Size = int64(len(body))
		require.NoError(t, to.WriteHeader(h))
		_, err = to.Write(body)
		require.NoError(t, err)
	}
}

// The stamp that an archive is imported under is one that a create makes for its
// time: not a name of anything else in a backup directory.
func TestImportRefusesStamps(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	meta := s.Create()
	data := export(t, s.Options, meta.Stamp)
	for _, stamp := range []string{".atocore-staging-0123456789abcdef", "20200101T000000Z", "x", "..", meta.Stamp + "-1", meta.Stamp + "-001", meta.Stamp + "-002"} {
		to := emptyPlace(t)
		imported, err := importInto(t, to, repacked(t, data, meta.Stamp, stamp, func(metadata []byte) []byte {
			field := []byte(`"stamp": "` + meta.Stamp)
			require.Contains(t, string(metadata), string(field))
			return bytes.Replace(metadata, field, []byte(`"stamp": "`+stamp), 1)
		}))
		if stamp == meta.Stamp+"-002" {
			require.NoError(t, err)
			require.Equal(t, stamp, imported.Stamp)
			continue
		}
		require.ErrorIs(t, err, backup.ErrInvalidArchive, stamp)
		to.RequireNoSnapshot()
	}
	for name, metadata := range map[string]string{"no JSON": "{", "of a version to come": `{"format_version": 2, "stamp": "x"}`, "of no shape": "{}"} {
		to := emptyPlace(t)
		_, err := importInto(t, to, repacked(t, data, meta.Stamp, meta.Stamp, func([]byte) []byte { return []byte(metadata) }))
		require.ErrorIs(t, err, backup.ErrInvalidArchive, name)
		to.RequireNoSnapshot()
	}
}

// flipped returns data with a bit of one byte changed.
func flipped(data []byte, at int) []byte {
	data = bytes.Clone(data)
	data[at] ^= 1
	return data
}

// A snapshot that the hashes prove intact is validated all the same. What is not
// valid is not imported, except findings, if the caller wants that.
func TestImportValidates(t *testing.T) {
	base := backuptest.NewSmallStore(t).CreateSnapshot()
	for name, tt := range map[string]struct {
		change func(s *backuptest.Snapshot)
		want   string
	}{
		"wrong size":     {func(s *backuptest.Snapshot) { s.Set(map[string]any{"db_size_bytes": 1}) }, "db_size_mismatch"},
		"path outside":   {func(s *backuptest.Snapshot) { s.Set(map[string]any{"db_snapshot_path": "/etc/passwd"}) }, "path_outside_snapshot"},
		"broken index":   {func(s *backuptest.Snapshot) { s.LoseIndexEntries(3) }, "db_integrity_check_failed"},
		"registry is no": {func(s *backuptest.Snapshot) { s.Write(backuptest.RegistryFile, []byte("{")) }, "registry_invalid_json"},
	} {
		t.Run(name, func(t *testing.T) {
			s := base.Copy(t)
			tt.change(s)
			s.Reseal()
			data := export(t, s.Options, s.Stamp)
			to := emptyPlace(t)
			_, err := importInto(t, to, data)
			var invalid *backup.InvalidBackupError
			require.ErrorAs(t, err, &invalid)
			require.EqualValues(t, tt.want, invalid.Report.Problems[0].Code)
			require.Equal(t, to.SnapshotPath(s.Stamp), invalid.Report.Path)
			require.NotErrorIs(t, err, backup.ErrNoSnapshot)
			to.RequireNoSnapshot()

			to.DespiteFindings = true
			_, err = importInto(t, to, data)
			if invalid.Report.Problems[0].Finding {
				require.NoError(t, err)
				require.Equal(t, []string{s.Stamp}, to.Stamps())
			} else {
				require.ErrorIs(t, err, backup.ErrInvalidBackup)
				to.RequireNoSnapshot()
			}
		})
	}
}

// What was recorded about a snapshot of this name is not about the one that is
// imported; its verdict and note are recorded if the host wants that.
func TestImportRecords(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	s.Note = "of the other machine"
	s.Verify = true
	meta := s.Create()
	require.NoError(t, backup.ProtectRuntimeBackup(t.Context(), s.Options, meta.Stamp, true))
	data := export(t, s.Options, meta.Stamp)
	s.Note, s.Verify = "", false
	one := func() backup.Snapshot {
		list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
		require.NoError(t, err)
		require.Len(t, list, 1)
		return list[0]
	}
	require.True(t, one().Protected)
	s.RemoveAll(s.SnapshotPath(meta.Stamp)) // by hand, so the record stays
	_, err := importInto(t, s, data)
	require.NoError(t, err)
	require.False(t, one().Protected)
	require.Empty(t, one().Note)
	require.Nil(t, one().Verified)

	s.RemoveAll(s.SnapshotPath(meta.Stamp))
	s.RecordVerdicts, s.Note = true, "from tape"
	_, err = importInto(t, s, data)
	require.NoError(t, err)
	require.Equal(t, "from tape", one().Note)
	require.True(t, *one().Verified)
}

// Whatever ends an import early, or a function of the host that panics, leaves
// nothing.
func TestImportIsInterrupted(t *testing.T) {
	from := backuptest.NewSmallStore(t)
	data := export(t, from.Options, from.Create().Stamp)
	phases := map[backup.Phase]bool{}
	to := emptyPlace(t)
	to.OnProgress = func(p backup.Progress) { phases[p.Phase] = true }
	_, err := importInto(t, to, data)
	require.NoError(t, err)
	for _, phase := range []backup.Phase{backup.PhaseImport, backup.PhaseSync, backup.PhaseValidateFiles, backup.PhaseValidateDatabase, backup.PhasePublish} {
		require.True(t, phases[phase], phase)
		for name, interrupt := range map[string]func(cancel func()){
			"cancelled": func(cancel func()) { cancel() },
			"panic":     func(func()) { panic("oops") },
		} {
			t.Run(fmt.Sprint(name, " at ", phase), func(t *testing.T) {
				to := emptyPlace(t)
				ctx, cancel := context.WithCancel(t.Context())
				to.OnProgress = func(p backup.Progress) {
					if p.Phase == phase && (phase != backup.PhaseImport || p.Bytes > int64(len(data)/2)) {
						interrupt(cancel)
					}
				}
				_, err := backup.ImportRuntimeBackup(ctx, to.Options, bytes.NewReader(data))
				require.Error(t, err)
				if name == "panic" {
					require.ErrorIs(t, err, backup.ErrPanic)
				} else {
					require.ErrorIs(t, err, context.Canceled)
				}
				to.RequireNoSnapshot()
			})
		}
	}
	broken := errors.New("broken connection")
	for name, r := range map[string]io.Reader{
		"reader fails":  io.MultiReader(bytes.NewReader(data[:len(data)/2]), iotest.ErrReader(broken)),
		"reader panics": io.MultiReader(bytes.NewReader(data[:len(data)/2]), readerFunc(func([]byte) (int, error) { panic(broken) })),
	} {
		to := emptyPlace(t)
		_, err := backup.ImportRuntimeBackup(t.Context(), to.Options, r)
		require.ErrorIs(t, err, broken, name)
		to.RequireNoSnapshot()
	}
	err = backup.ExportRuntimeBackup(t.Context(), from.Options, from.Stamps()[0], writerFunc(func([]byte) (int, error) { panic(broken) }))
	require.ErrorIs(t, err, backup.ErrPanic)
	require.ErrorIs(t, err, broken)
}

// roleImport imports the archive args[1] into args[0], and waits to be killed in
// the middle.
func roleImport(p *backuptest.Parent, args []string) error {
	f, err := os.Open(args[1])
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	said := false
	_, err = backup.ImportRuntimeBackup(context.Background(), backup.Options{
		BackupDir: args[0],
		OnProgress: func(at backup.Progress) {
			if !said && (string(at.Phase) != "import" || at.Bytes > info.Size()/2) && string(at.Phase) == args[2] {
				said = true
				p.Say("there")
				p.Hear()
			}
		},
	}, f)
	return err
}

// A process that is killed while it imports leaves staging only, which the next
// create removes.
func TestImportIsKilled(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	meta := s.Create()
	file := filepath.Join(t.TempDir(), "archive.tar")
	require.NoError(t, os.WriteFile(file, export(t, s.Options, meta.Stamp), 0o600))
	s.RemoveAll(s.BackupDir)
	for _, phase := range []string{"import", "sync", "validate_files", "publish"} {
		child := backuptest.Start(t, "import", s.BackupDir, file, phase)
		require.Equal(t, "there", child.Hear())
		child.Kill()
		require.Empty(t, s.Stamps(), phase)
		require.Len(t, s.Staging(), 1)
		made := s.Create().Stamp
		s.RequireClean()
		require.Equal(t, []string{made}, s.Stamps())
		s.RemoveAll(s.BackupDir)
	}
}

// An import is a create for everybody else: it is refused after a restore that
// was cut off, and where a create would be.
func TestImportRefusesPlaces(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	data := export(t, s.Options, s.Create().Stamp)
	s.BackupDir = s.InChroma("backups")
	_, err := importInto(t, s, data)
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	require.NoDirExists(t, s.BackupDir)
	_, err = importInto(t, &backuptest.Store{}, data)
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
}

// RemoveRuntimeBackup removes one snapshot with its record, and refuses what may
// be needed.
func TestRemove(t *testing.T) {
	for name, tt := range map[string]struct {
		prepare func(t *testing.T, s *snapshotSet, stamps []string)
		remove  int    // which of three snapshots
		want    string // the reason of the refusal, or empty
	}{
		"old":                               {nil, 0, ""},
		"newest":                            {nil, 2, "newest snapshot: create"},
		"newest valid":                      {func(t *testing.T, s *snapshotSet, stamps []string) { s.judge(stamps[1]) }, 1, "found valid"},
		"newest, and an older one is valid": {func(t *testing.T, s *snapshotSet, stamps []string) { s.judge(stamps[1]) }, 2, "newest snapshot: create"},
		"older than the newest valid":       {func(t *testing.T, s *snapshotSet, stamps []string) { s.judge(stamps[0], stamps[1]) }, 0, ""},
		"newest, not valid, and another valid": {func(t *testing.T, s *snapshotSet, stamps []string) {
			s.Snapshot(stamps[2]).Add("chroma/x", nil)
			s.judge(stamps[1], stamps[2])
		}, 2, ""},
		"newest, not valid, and no other valid": {func(t *testing.T, s *snapshotSet, stamps []string) {
			s.Snapshot(stamps[2]).Add("chroma/x", nil)
			s.judge(stamps[2])
		}, 2,
			"newest snapshot: create"},
		"protected": {func(t *testing.T, s *snapshotSet, stamps []string) {
			require.NoError(t, backup.ProtectRuntimeBackup(t.Context(), s.Options, stamps[0], true))
		}, 0, "protected: end"},
		"safety snapshot of the last restore": {func(t *testing.T, s *snapshotSet, stamps []string) {
			s.Snapshot(stamps[1]).Set(map[string]any{"safety_of": stamps[0]})
			s.Snapshot(stamps[1]).Reseal()
		}, 1, "safety snapshot"},
		"dated in the future": {func(t *testing.T, s *snapshotSet, stamps []string) {
			s.Snapshot(stamps[0]).Set(map[string]any{"created_at": "2099-01-01T00:00:00Z"})
			s.Snapshot(stamps[0]).Reseal()
		}, 0, ""},
		"without metadata": {func(t *testing.T, s *snapshotSet, stamps []string) {
			s.Snapshot(stamps[0]).Remove(backuptest.MetadataFile)
		}, 0, "no metadata"},
		"damaged": {func(t *testing.T, s *snapshotSet, stamps []string) { s.Snapshot(stamps[0]).Remove(backuptest.DBFile) }, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSnapshotSet(t)
			t.Cleanup(func() { os.RemoveAll(s.BackupDir) }) // before anything checks that all are valid
			stamps := s.putDays(3)
			if tt.prepare != nil {
				tt.prepare(t, s, stamps)
			}
			before := s.Stamps()
			err := backup.RemoveRuntimeBackup(t.Context(), s.Options, stamps[tt.remove])
			record := filepath.Join(s.BackupDir, "records", stamps[tt.remove]+".json")
			if tt.want != "" {
				require.ErrorIs(t, err, backup.ErrProtected)
				require.ErrorContains(t, err, tt.want)
				require.Equal(t, before, s.Stamps())
				return
			}
			require.NoError(t, err)
			require.NotContains(t, s.Stamps(), stamps[tt.remove])
			require.Len(t, s.Stamps(), 2)
			require.NoFileExists(t, record)
			s.RequireNoStaging()
			require.ErrorIs(t, backup.RemoveRuntimeBackup(t.Context(), s.Options, stamps[tt.remove]), backup.ErrNoSnapshot)
		})
	}
}

// judge validates snapshots and records the verdicts.
func (s *snapshotSet) judge(stamps ...string) {
	s.T.Helper()
	opts := s.Options
	opts.RecordVerdicts = true
	for _, stamp := range stamps {
		_, err := backup.ValidateBackup(s.T.Context(), opts, stamp)
		if err != nil {
			require.ErrorIs(s.T, err, backup.ErrInvalidBackup)
		}
	}
}

// Snapshots of another store are not removed, nor any if it is not said of which.
func TestRemoveOfOtherStores(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(4)
	s.put("20200101T000000Z", map[string]any{"source_db_path": "/srv/other.db", "created_at": "2020-01-01T00:00:00Z"})
	require.ErrorIs(t, backup.RemoveRuntimeBackup(t.Context(), s.Options, "20200101T000000Z"), backup.ErrOtherStore)
	require.NoError(t, backup.RemoveRuntimeBackup(t.Context(), s.Options, stamps[0]))
	s.DatabasePath = ""
	require.ErrorIs(t, backup.RemoveRuntimeBackup(t.Context(), s.Options, stamps[1]), backup.ErrInvalidOptions)
	require.Len(t, s.Stamps(), 4)
}

// A removal that is cancelled before it begins does nothing.
func TestRemoveIsInterrupted(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(2)
	plain := s.Options
	ctx, cancel := context.WithCancel(t.Context())
	s.OnProgress = func(backup.Progress) { cancel() }
	require.ErrorIs(t, backup.RemoveRuntimeBackup(ctx, s.Options, stamps[0]), context.Canceled)
	require.Equal(t, stamps, s.Stamps())
	s.RequireNoStaging()
	require.NoError(t, backup.RemoveRuntimeBackup(t.Context(), plain, stamps[0]))
	require.Equal(t, stamps[1:], s.Stamps())
}

// ValidateDir says about a directory anywhere what ValidateBackup says in its
// place, and writes nothing.
func TestValidateDir(t *testing.T) {
	base := backuptest.NewSmallStore(t).CreateSnapshot()
	for name, change := range map[string]func(s *backuptest.Snapshot){
		"valid":    func(*backuptest.Snapshot) {},
		"damaged":  func(s *backuptest.Snapshot) { s.Flip(backuptest.DBFile, 5000) },
		"finding":  func(s *backuptest.Snapshot) { s.LoseIndexEntries(3); s.Reseal() },
		"Python's": func(s *backuptest.Snapshot) { s.MakePython() },
		"bare":     func(s *backuptest.Snapshot) { s.Remove(backuptest.MetadataFile) },
	} {
		t.Run(name, func(t *testing.T) {
			s := base.Copy(t)
			change(s)
			want, wantErr := backup.ValidateBackup(t.Context(), s.Options, s.Stamp)
			elsewhere := filepath.Join(t.TempDir(), s.Stamp)
			require.NoError(t, os.Rename(s.Path(""), elsewhere))
			before := backuptest.ReadTree(t, elsewhere)
			opts := backup.Options{RecordVerdicts: true, Verify: true}
			got, err := backup.ValidateDir(t.Context(), opts, elsewhere)
			backuptest.RequireReport(t, got, err)
			require.Equal(t, elsewhere, got.Path)
			want.Path = elsewhere
			want.Cost.Duration, got.Cost.Duration = 0, 0
			require.Equal(t, want, got)
			require.Equal(t, wantErr == nil, err == nil)
			require.Equal(t, before, backuptest.ReadTree(t, elsewhere))
			entries, err := os.ReadDir(filepath.Dir(elsewhere))
			require.NoError(t, err)
			require.Len(t, entries, 1, "something was written beside it")

			link := filepath.Join(t.TempDir(), "link")
			if os.Symlink(elsewhere, link) == nil {
				got, _ = backup.ValidateDir(t.Context(), opts, link)
				require.Equal(t, want.Problems, got.Problems)
			}
		})
	}
	for name, dir := range map[string]string{"empty": "", "a NUL byte": "a\x00b"} {
		_, err := backup.ValidateDir(t.Context(), backup.Options{}, dir)
		require.ErrorIs(t, err, backup.ErrInvalidOptions, name)
	}
	report, err := backup.ValidateDir(t.Context(), backup.Options{}, base.Path(backuptest.DBFile))
	require.ErrorIs(t, err, backup.ErrNoSnapshot)
	backuptest.RequireReport(t, report, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = backup.ValidateDir(ctx, backup.Options{}, base.Path(""))
	require.ErrorIs(t, err, context.Canceled)
}

// A disk that is mounted read-only is no obstacle.
func TestValidateDirOnAReadOnlyDisk(t *testing.T) {
	s := backuptest.NewSmallStore(t).CreateSnapshot()
	target := t.TempDir()
	backuptest.MountReadOnly(t, s.Path(""), target)
	report, err := backup.ValidateDir(t.Context(), backup.Options{}, target)
	require.NoError(t, err)
	require.True(t, report.Valid)
}
