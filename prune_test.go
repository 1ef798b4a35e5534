package backup_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A snapshotSet is a backup directory with copies of one small snapshot. They
// have the names and ages that a test wants, and each validates.
type snapshotSet struct {
	*backuptest.Store
	model *backuptest.Snapshot
}

// newSnapshotSet returns an empty set. Its clock is backuptest.Noon.
func newSnapshotSet(t *testing.T) *snapshotSet {
	t.Helper()
	made := backuptest.NewBareStore(t)
	made.IncludeChroma = false
	made.RegistryPath = ""
	model := made.CreateSnapshot()
	return (&snapshotSet{Store: made, model: model}).empty(t)
}

// empty returns another set with copies of the same snapshot.
func (s *snapshotSet) empty(t *testing.T) *snapshotSet {
	t.Helper()
	c := &backuptest.Store{T: t, Dir: t.TempDir(), Options: s.Options}
	c.BackupDir = filepath.Join(c.Dir, "backups")
	c.Clock = backuptest.Noon
	t.Cleanup(c.RequireClean)
	return &snapshotSet{c, s.model}
}

// put adds a snapshot with these changes to its metadata, and returns it for
// further ones.
func (s *snapshotSet) put(stamp string, changes map[string]any) *backuptest.Snapshot {
	s.T.Helper()
	p := s.Snapshot(stamp)
	require.NoError(s.T, os.MkdirAll(filepath.Dir(p.Path("")), 0o700))
	require.NoError(s.T, os.CopyFS(p.Path(""), os.DirFS(s.model.Path(""))))
	p.Set(map[string]any{"stamp": stamp})
	p.Set(changes)
	p.Reseal()
	return p
}

// putDays adds a snapshot for each of the last n days and returns their stamps,
// oldest first.
func (s *snapshotSet) putDays(n int) (stamps []string) {
	s.T.Helper()
	for i := range n {
		created := backuptest.Noon.Time.AddDate(0, 0, i-n)
		stamps = append(stamps, stampOf(created))
		s.put(stamps[i], map[string]any{"created_at": created.Format(time.RFC3339)})
	}
	return stamps
}

// stampOf returns the stamp of the first snapshot of a second.
func stampOf(created time.Time) string { return created.UTC().Format("20060102T150405Z") }

func (s *snapshotSet) prune(keep backup.Retention) *backup.PruneResult {
	s.T.Helper()
	result, err := backup.PruneRuntimeBackups(context.Background(), s.Options, keep)
	require.NoError(s.T, err)
	return result
}

// Snapshots without readable metadata are skipped, because their age is
// unknown.
func TestPruneSkipsUnreadableMetadata(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(3)
	old := map[string]any{"created_at": "2020-01-01T00:00:00Z"}
	dir := func(name string) string { return filepath.Join(s.BackupDir, "snapshots", name) }

	s.put("bare", old).Remove(backuptest.MetadataFile)
	require.NoError(t, os.Mkdir(dir("empty"), 0o700))
	s.put("cut", old).Write(backuptest.MetadataFile, []byte("{"))
	s.put("shape", nil).Set(map[string]any{"created_at": "yesterday"})
	s.put("later", nil).Set(map[string]any{"format_version": 2})
	s.put("large", old).Write(backuptest.MetadataFile, bytes.Repeat([]byte(" "), 1<<20+1))
	d := s.put("directory", old)
	d.Remove(backuptest.MetadataFile)
	require.NoError(t, os.Mkdir(d.Path(backuptest.MetadataFile), 0o700))
	// Other damage does not make the age unknown.
	s.put("damaged", old).Flip(backuptest.DBFile, 5000)
	// Snapshots of the Python module are pruned like others.
	python := s.put("python", old)
	python.MakePython()

	unknown := backuptest.ReadTree(t, s.BackupDir)
	result := s.prune(backup.Retention{KeepLast: 1})
	require.Equal(t, []string{stamps[1], stamps[0], "python", "damaged"}, result.Removed)
	require.Equal(t, []backup.SkippedSnapshot{
		{"shape", "metadata: wrong_shape"},
		{"later", "metadata: unsupported_format"},
		{"large", "metadata: too_large"},
		{"empty", "no metadata"},
		{"directory", "metadata: not_a_file"},
		{"cut", "metadata: invalid_json"},
		{"bare", "no metadata"},
	}, result.Skipped)
	left := backuptest.ReadTree(t, s.BackupDir)
	for _, passed := range result.Skipped {
		require.Contains(t, left, "snapshots/"+passed.Stamp)
		for name := range left {
			if strings.HasPrefix(name, "snapshots/"+passed.Stamp+"/") {
				require.Equal(t, unknown[name], left[name])
			}
		}
		require.NoError(t, os.RemoveAll(dir(passed.Stamp))) // so that the check at the end passes
	}
}

func TestPruneOptions(t *testing.T) {
	s := newSnapshotSet(t)
	s.putDays(2)
	before := backuptest.ReadTree(t, s.BackupDir)
	for name, keep := range map[string]backup.Retention{
		"nothing":          {},
		"nothing, dry":     {DryRun: true},
		"last":             {KeepLast: -2},
		"hourly":           {KeepHourly: -2, KeepLast: 1},
		"daily":            {KeepDaily: -2, KeepLast: 1},
		"weekly":           {KeepWeekly: -2, KeepLast: 1},
		"monthly":          {KeepMonthly: -2, KeepLast: 1},
		"yearly":           {KeepYearly: math.MinInt, KeepLast: 1},
		"within":           {KeepWithin: -1, KeepLast: 1},
		"within, dry":      {KeepWithin: -1, KeepLast: 1, DryRun: true},
		"within and count": {KeepWithin: time.Hour, KeepLast: -3},
	} {
		t.Run(name, func(t *testing.T) {
			result, err := backup.PruneRuntimeBackups(t.Context(), s.Options, keep)
			require.ErrorIs(t, err, backup.ErrInvalidOptions)
			require.ErrorContains(t, err, "prune backups")
			require.Nil(t, result)
		})
	}
	_, err := backup.PruneRuntimeBackups(t.Context(), backup.Options{}, backup.Retention{KeepLast: 1})
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	require.Equal(t, before, backuptest.ReadTree(t, s.BackupDir))

	for name, keep := range map[string]backup.Retention{
		"last": {KeepLast: 9}, "hourly": {KeepHourly: 9}, "daily": {KeepDaily: 9}, "weekly": {KeepWeekly: 9},
		"monthly": {KeepMonthly: 9}, "yearly": {KeepYearly: 9}, "within": {KeepWithin: 1 << 60}, "no limit": {KeepLast: -1},
	} {
		t.Run("only "+name, func(t *testing.T) {
			require.Empty(t, s.prune(keep).Removed)
		})
	}
}

func TestPruneNothing(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "empty", "snapshots"), 0o755))
	keep := backup.Retention{KeepLast: 1}
	for _, backupDir := range []string{
		filepath.Join(dir, "no such"), filepath.Join(dir, "no", "such"), dir, filepath.Join(dir, "empty"),
	} {
		result, err := backup.PruneRuntimeBackups(t.Context(), backup.Options{BackupDir: backupDir, Clock: backuptest.Noon}, keep)
		require.NoError(t, err)
		require.Equal(t, &backup.PruneResult{}, result)
	}
	require.NoDirExists(t, filepath.Join(dir, "no such"), "prune created something")

	_, err := backup.PruneRuntimeBackups(t.Context(), backup.Options{BackupDir: t.TempDir() + "\x00"}, keep)
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	backuptest.Write(t, filepath.Join(dir, "file"), "")
	_, err = backup.PruneRuntimeBackups(t.Context(), backup.Options{BackupDir: filepath.Join(dir, "file")}, keep)
	require.Error(t, err)
}

func TestPruneJSON(t *testing.T) {
	for name, tt := range map[string]struct {
		result backup.PruneResult
		want   string
	}{
		"nothing": {backup.PruneResult{}, `{"kept":[],"removed":[],"never_verified":[],"skipped":[],"remains":[],"dry_run":false,"cost":{"duration_ns":0,"guarded_ns":0,"files":0,"bytes":0}}`},
		"everything": {
			backup.PruneResult{
				Kept: []backup.KeptSnapshot{
					{"20261124T120000Z", time.Date(2026, 11, 24, 14, 0, 0, 5000, time.FixedZone("", 7200)), []string{"newest snapshot", "last snapshot"}},
					{"α\xff\"\n", time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), []string{"within 1h0m0s"}},
				},
				Removed: []string{"b", "a\x1b"}, NeverVerified: []string{"a\x1b"},
				Skipped: []backup.SkippedSnapshot{{"c", "no metadata"}, {"d\xfe", "in use"}},
				Remains: []backup.Remnant{{"/e\xfe", "db/x: busy"}},
				DryRun:  true,
				Cost:    backup.Cost{Duration: time.Second, Files: 3, Bytes: 4},
			},
			`{"kept":[{"stamp":"20261124T120000Z","created_at":"2026-11-24T12:00:00.000005+00:00","reasons":["newest snapshot","last snapshot"]},` +
				`{"stamp":"\u03b1\udcff\"\n","created_at":"0001-01-01T00:00:00+00:00","reasons":["within 1h0m0s"]}],` +
				`"removed":["b","a\u001b"],"never_verified":["a\u001b"],"skipped":[{"stamp":"c","reason":"no metadata"},{"stamp":"d\udcfe","reason":"in use"}],"remains":[{"path":"/e\udcfe","reason":"db/x: busy"}],"dry_run":true,"cost":{"duration_ns":1000000000,"guarded_ns":0,"files":3,"bytes":4}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := json.Marshal(tt.result)
			require.NoError(t, err)
			require.Equal(t, tt.want, string(data))
			data, err = json.Marshal(&tt.result)
			require.NoError(t, err)
			require.Equal(t, tt.want, string(data))
		})
	}
}

// addForeign adds entries to the backup directory that are neither snapshots nor
// staging, some of them with similar names. It returns a check that nothing
// happened to them, which also removes them.
func (s *snapshotSet) addForeign() (requireUntouched func()) {
	t := s.T
	t.Helper()
	outside := filepath.Join(s.Dir, "outside")
	dirs := []string{
		"notes",
		".atocore-staging-",
		".atocore-staging-0123456789abcde",
		".atocore-staging-0123456789abcdef0",
		".atocore-staging-0123456789ABCDEF",
		"atocore-staging-0123456789abcdef",
		"20200101T000000Z",
	}
	for _, dir := range append([]string{outside}, dirs...) {
		if !filepath.IsAbs(dir) {
			dir = filepath.Join(s.BackupDir, dir)
		}
		require.NoError(t, os.MkdirAll(dir, 0o755))
		backuptest.Write(t, filepath.Join(dir, "keep"), dir)
		backuptest.Write(t, filepath.Join(dir, backuptest.MetadataFile), string(s.model.Read(backuptest.MetadataFile)))
	}
	files := []string{
		".atocore-staging-00000000000000aa", backuptest.ManifestFile, filepath.Join("snapshots", "README"), filepath.Join("snapshots", "20200102T000000Z"),
	}
	for _, file := range files {
		backuptest.Write(t, filepath.Join(s.BackupDir, file), file)
	}
	links := []string{".atocore-staging-00000000000000bb", filepath.Join("snapshots", "20200103T000000Z"), filepath.Join("snapshots", "20200104T000000Z")}
	for i, link := range links {
		target := []string{outside, outside, "nothing"}[i]
		if err := os.Symlink(target, filepath.Join(s.BackupDir, link)); err != nil {
			t.Skipf("no symbolic links here: %v", err)
		}
	}
	look := func() map[string]backuptest.File {
		tree := backuptest.ReadTree(t, outside)
		for name, file := range backuptest.ReadTree(t, s.BackupDir) {
			first, rest, _ := strings.Cut(name, "/")
			if slices.Contains(dirs, first) || slices.Contains(files, filepath.FromSlash(name)) || slices.Contains(links, filepath.FromSlash(name)) {
				tree[first+"//"+rest] = file
			}
		}
		require.Len(t, tree, 3+3*len(dirs)+len(files)+len(links))
		return tree
	}
	before := look()
	return func() {
		t.Helper()
		require.Equal(t, before, look())
		for _, name := range slices.Concat(dirs, files, links) { // so that the check at the end passes
			require.NoError(t, os.RemoveAll(filepath.Join(s.BackupDir, name)))
		}
	}
}

// Only snapshots are removed, and links in them are not followed.
func TestPruneTouchesNothingElse(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(4)
	target := filepath.Join(s.Dir, "target")
	require.NoError(t, os.Mkdir(target, 0o755))
	backuptest.Write(t, filepath.Join(target, "keep"), "precious")
	before := backuptest.ReadTree(t, target)
	// Someone may have added links to a snapshot, or hard links to its files.
	for i, name := range []string{"link", "db/link"} {
		if err := os.Symlink([]string{target, filepath.Join(target, "keep")}[i], s.SnapshotPath(stamps[0], name)); err != nil {
			t.Skipf("no symbolic links here: %v", err)
		}
	}
	require.NoError(t, os.Link(filepath.Join(target, "keep"), s.SnapshotPath(stamps[0], "hard")))
	require.NoError(t, os.RemoveAll(s.SnapshotPath(stamps[1], "config")))
	if err := os.Symlink(target, s.SnapshotPath(stamps[1], "config")); err != nil {
		t.Skipf("no symbolic links here: %v", err)
	}
	requireUntouched := s.addForeign()

	result := s.prune(backup.Retention{KeepLast: 2})
	require.Equal(t, []string{stamps[1], stamps[0]}, result.Removed)
	require.Empty(t, result.Skipped)
	require.Equal(t, before, backuptest.ReadTree(t, target))
	requireUntouched()
	require.Equal(t, stamps[2:], s.Stamps())
}

func TestPruneLog(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(3)
	log := s.Record()
	s.prune(backup.Retention{KeepLast: 1, DryRun: true})
	cost := " cost.duration=0s cost.guarded=0s cost.files=2 cost.bytes=32768 cost.manifest_sha256=\"\""
	require.Equal(t, []string{"runtime_backups_pruned kept=1 removed=2 skipped=0 dry_run=true" + cost}, log.Lines())
	log.Clear()
	s.prune(backup.Retention{KeepLast: 1})
	require.Equal(t, []string{
		"runtime_backup_removed stamp=" + stamps[0] + " path=" + s.SnapshotPath(stamps[0]) + " verified=false",
		"runtime_backup_removed stamp=" + stamps[1] + " path=" + s.SnapshotPath(stamps[1]) + " verified=false",
		"runtime_backups_pruned kept=1 removed=2 skipped=0 dry_run=false" + cost,
	}, log.Lines(), "oldest first")
	log.Clear()
	s.prune(backup.Retention{KeepLast: 1})
	require.Len(t, log.Lines(), 1)
	require.Contains(t, log.Lines()[0], "kept=1 removed=0")
}

func TestPruneProgress(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(3)
	var got []backup.Progress
	s.OnProgress = func(p backup.Progress) { got = append(got, p) }
	s.prune(backup.Retention{KeepLast: 1})
	prune := backup.PhasePrune
	require.Equal(t, []backup.Progress{
		{Phase: prune},
		{Phase: prune, Path: s.SnapshotPath(stamps[0]), Files: 0, TotalFiles: 2},
		{Phase: prune, Path: s.SnapshotPath(stamps[1]), Files: 1, TotalFiles: 2, Share: 0.5},
		{Phase: prune, Files: 2, TotalFiles: 2, Share: 0.99},
		{Phase: prune, Files: 2, TotalFiles: 2, Share: 1},
	}, got)
}

// BackupDir may be relative, as in every other call.
func TestPruneRelativeDirectory(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(2)
	t.Chdir(s.Dir)
	opts := backup.Options{BackupDir: filepath.Base(s.BackupDir), Clock: backuptest.Noon}
	result, err := backup.PruneRuntimeBackups(t.Context(), opts, backup.Retention{KeepLast: 1})
	require.NoError(t, err)
	require.Equal(t, stamps[:1], result.Removed)
}

// onEvents makes a prune call at before it removes a snapshot ("remove STAMP"), and
// when the snapshot is not visible any more but its files still exist ("gone
// STAMP").
func (s *snapshotSet) onEvents(at func(event string)) {
	s.Clock = backuptest.Noon // it stands still, so that no report is dropped
	s.OnProgress = func(p backup.Progress) {
		if p.Path != "" && p.Share < 1 {
			at("remove " + filepath.Base(p.Path))
		}
	}
	s.Logger = slog.New(eventHandler{at})
}

// An eventHandler calls at for each snapshot that was removed.
type eventHandler struct{ at func(event string) }

func (eventHandler) Enabled(context.Context, slog.Level) bool { return true }
func (h eventHandler) Handle(_ context.Context, r slog.Record) error {
	if r.Message == "runtime_backup_removed" {
		r.Attrs(func(a slog.Attr) bool {
			h.at("gone " + a.Value.String())
			return false
		})
	}
	return nil
}
func (h eventHandler) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h eventHandler) WithGroup(string) slog.Handler      { return h }

// events returns the events of a prune that removes these stamps, oldest first.
func events(stamps []string) (all []string) {
	for _, stamp := range stamps {
		all = append(all, "remove "+stamp, "gone "+stamp)
	}
	return all
}

// A prune that is cancelled or panics leaves each snapshot whole or not visible, and
// the result says which. The files that are left of one are removed by the next
// call.
func TestPruneIsCutOff(t *testing.T) {
	model := newSnapshotSet(t)
	for name, cut := range map[string]struct {
		how  func(cancel func())
		want error
	}{
		"cancelled": {func(cancel func()) { cancel() }, context.Canceled},
		"panic":     {func(func()) { panic("enough") }, backup.ErrPanic},
	} {
		for n := range 6 {
			t.Run(fmt.Sprintf("%s at event %d", name, n), func(t *testing.T) {
				t.Parallel()
				s := model.empty(t)
				stamps := s.putDays(4)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var seen []string
				s.onEvents(func(event string) {
					if seen = append(seen, event); len(seen) == n+1 {
						cut.how(cancel)
					}
				})
				result, err := backup.PruneRuntimeBackups(ctx, s.Options, backup.Retention{KeepLast: 1})
				require.ErrorIs(t, err, cut.want)
				require.LessOrEqual(t, len(seen), n+2)
				require.Equal(t, events(stamps[:3])[:len(seen)], seen)

				gone := slices.Clone(stamps[:len(stamps)-len(s.Stamps())])
				require.Equal(t, stamps[len(gone):], s.Stamps())
				slices.Reverse(gone)
				require.ElementsMatch(t, gone, result.Removed)
				require.True(t, slices.Equal(gone, result.Removed), "newest first")
				require.LessOrEqual(t, len(s.Staging()), 1)
				for _, stamp := range s.Stamps() {
					_, err := backup.ValidateBackup(t.Context(), backup.Options{BackupDir: s.BackupDir}, stamp)
					require.NoError(t, err)
				}

				s.OnProgress, s.Logger = nil, nil
				if n%2 == 0 {
					s.prune(backup.Retention{KeepLast: -1})
				} else {
					s.Create()
				}
				s.RequireNoStaging()
			})
		}
	}
}

func TestPruneHeedsItsContext(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(2)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, opts := range []backup.Options{s.Options, {BackupDir: filepath.Join(s.Dir, "none")}} {
		for _, dry := range []bool{false, true} {
			_, err := backup.PruneRuntimeBackups(ctx, opts, backup.Retention{KeepLast: 1, DryRun: dry})
			require.ErrorIs(t, err, context.Canceled)
		}
	}
	require.Equal(t, stamps, s.Stamps())
}

func TestPruneClockPanics(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(2)
	s.Clock = backuptest.ClockFunc(func() time.Time { panic(errHandler) })
	_, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
	require.ErrorIs(t, err, backup.ErrPanic)
	require.ErrorIs(t, err, errHandler)
	require.Equal(t, stamps, s.Stamps())
}

// While a restore is unfinished nothing is removed, since it may need any snapshot.
func TestPruneRefusesBesideAnUnfinishedRestore(t *testing.T) {
	for name, place := range map[string]func(*snapshotSet) string{
		"in the backup directory": func(s *snapshotSet) string { return s.BackupDir },
		"beside the database":     func(s *snapshotSet) string { return filepath.Dir(s.DatabasePath) },
	} {
		t.Run(name, func(t *testing.T) {
			s := newSnapshotSet(t)
			stamps := s.putDays(2)
			journal := filepath.Join(place(s), ".atocore-restore.journal")
			backuptest.Write(t, journal, "{}\n")
			for _, dry := range []bool{false, true} {
				result, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1, DryRun: dry})
				require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
				require.ErrorContains(t, err, journal)
				require.Nil(t, result)
			}
			require.NoError(t, os.Remove(journal))
			require.Equal(t, stamps, s.Stamps())
			require.Equal(t, stamps[:1], s.prune(backup.Retention{KeepLast: 1}).Removed)
		})
	}
}

func init() { roles["prune"] = rolePrune }

// rolePrune removes all but the last args[1] snapshots of the backup directory
// args[0]. It says each event and waits for a line. In the end it says the result.
func rolePrune(p *backuptest.Parent, args []string) error {
	keep, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	s := &snapshotSet{Store: &backuptest.Store{Options: backup.Options{BackupDir: args[0]}}}
	s.onEvents(func(event string) {
		p.Say(event)
		p.Hear()
	})
	result, err := backup.PruneRuntimeBackups(context.Background(), s.Options, backup.Retention{KeepLast: keep})
	if err != nil {
		return err
	}
	text, err := json.Marshal(result)
	p.Say(string(text))
	return err
}

// startPrune starts rolePrune and returns when it waits at event.
func (s *snapshotSet) startPrune(keep int, event string) *backuptest.Child {
	s.T.Helper()
	c := backuptest.Start(s.T, "prune", s.BackupDir, fmt.Sprint(keep))
	for at := c.Hear(); at != event; at = c.Ask("go on") {
		require.NotContains(s.T, at, "{", "it has ended")
	}
	return c
}

// finishPrune lets rolePrune continue to its end and returns the stamps that it
// removed.
func finishPrune(t *testing.T, c *backuptest.Child) (removed []string) {
	t.Helper()
	for {
		if line := c.Ask("go on"); strings.HasPrefix(line, "{") {
			c.Wait()
			var result struct{ Removed []string }
			require.NoError(t, json.Unmarshal([]byte(line), &result))
			return result.Removed
		}
	}
}

// A prune that is killed leaves each snapshot whole or not visible. The files that
// are left of one are removed by the next call.
func TestPruneIsKilled(t *testing.T) {
	model := newSnapshotSet(t)
	left := 0
	for n, event := range events(model.putDays(4)[:3]) {
		t.Run(event, func(t *testing.T) {
			s := model.empty(t)
			stamps := s.putDays(4)
			s.startPrune(1, event).Kill()
			require.Equal(t, stamps[(n+1)/2:], s.Stamps())
			for _, stamp := range s.Stamps() {
				_, err := backup.ValidateBackup(t.Context(), s.Options, stamp)
				require.NoError(t, err)
			}
			left += len(s.Staging())
			if n%4 < 2 {
				require.Equal(t, stamps[len(stamps)-1:], func() []string { s.prune(backup.Retention{KeepLast: 1}); return s.Stamps() }())
			} else {
				s.Create()
			}
			s.RequireNoStaging()
		})
	}
	require.Positive(t, left, "no kill left anything")
}

// While another process removes a snapshot, create, list, validate and prune work
// and neither see that snapshot nor touch its files.
func TestPruneBesideEveryOtherCall(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(4)
	c := s.startPrune(1, "gone "+stamps[0])
	require.Equal(t, stamps[1:], s.Stamps())
	report, err := backup.ValidateBackup(t.Context(), s.Options, stamps[0])
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.Equal(t, []string{"snapshot_directory_missing"}, backuptest.Brief(report.Problems))
	_, err = backup.ValidateBackup(t.Context(), s.Options, stamps[1])
	require.NoError(t, err)

	gone := backuptest.ReadTree(t, s.Staging()[0])
	require.Contains(t, gone, backuptest.MetadataFile)
	s.Clock = backuptest.Clock{Time: backuptest.Noon.Time.AddDate(0, 0, -9)}
	made := s.Create().Stamp
	s.Clock = backuptest.Noon
	result := s.prune(backup.Retention{KeepLast: 3})
	require.Equal(t, []string{made}, result.Removed)
	require.Equal(t, gone, backuptest.ReadTree(t, s.Staging()[0]), "another process removes this snapshot")

	require.Equal(t, []string{stamps[2], stamps[1], stamps[0]}, finishPrune(t, c))
	require.Equal(t, stamps[3:], s.Stamps())
}

// Of two prunes at the same time, each removes what the other does not, and neither
// fails.
func TestTwoPrunesAtOnce(t *testing.T) {
	s := newSnapshotSet(t)
	stamps := s.putDays(12)
	a := s.startPrune(2, "remove "+stamps[0])
	b := s.startPrune(2, "remove "+stamps[0])
	// Both have listed the snapshots. First one is a step ahead, then the other.
	for _, c := range []*backuptest.Child{a, b, b, b, b, b, b, a, a, a} {
		c.Ask("go on")
	}
	removed := append(finishPrune(t, a), finishPrune(t, b)...)
	require.ElementsMatch(t, stamps[:10], removed, "each snapshot is removed by one of them")
	require.Equal(t, stamps[10:], s.Stamps())
}

// A list never shows an incomplete snapshot, however fast they come and go, and a
// new snapshot is whole when create returns.
func TestPruneAgainAndAgainBesideCreates(t *testing.T) {
	s := newSnapshotSet(t)
	s.Clock = nil
	old := len(s.putDays(40))
	stop := make(chan struct{})
	c := backuptest.Start(t, "prune and prune", s.BackupDir)
	listed := make(chan error, 4)
	for range cap(listed) {
		go func() { listed <- s.listUntil(stop) }()
	}
	const creates = 8
	for range creates {
		meta := s.Create()
		_, err := backup.ValidateBackup(t.Context(), s.Options, meta.Stamp)
		require.NoError(t, err, "the newest snapshot is never removed")
	}
	close(stop)
	for range cap(listed) {
		require.NoError(t, <-listed)
	}
	removed, err := strconv.Atoi(c.Ask("stop"))
	require.NoError(t, err)
	c.Wait()
	require.Positive(t, removed)
	require.Len(t, s.Stamps(), old+creates-removed)
}

// listUntil lists again and again, and returns an error if a snapshot has no
// metadata.
func (s *snapshotSet) listUntil(stop chan struct{}) error {
	for {
		list, err := backup.ListRuntimeBackups(context.Background(), s.Options)
		for _, snapshot := range list {
			if snapshot.Metadata == nil {
				err = errors.Join(err, fmt.Errorf("%s is incomplete: %q", snapshot.Stamp, snapshot.MetadataError))
			}
		}
		select {
		case <-stop:
			return err
		default:
		}
		if err != nil {
			return err
		}
	}
}

func init() { roles["prune and prune"] = rolePruneAndPrune }

// rolePruneAndPrune removes all but the last snapshot over and over, until it hears
// a line. Then it says how many it has removed.
func rolePruneAndPrune(p *backuptest.Parent, args []string) error {
	removed := 0
	for {
		result, err := backup.PruneRuntimeBackups(context.Background(), backup.Options{BackupDir: args[0]}, backup.Retention{KeepLast: 1})
		if err != nil {
			return err
		}
		removed += len(result.Removed)
		if p.Heard() {
			p.Say(fmt.Sprint(removed))
			return nil
		}
	}
}

// If a snapshot cannot be removed, the others are removed nevertheless.
func TestPruneContinuesAfterAFailure(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no such permissions")
	}
	s := newSnapshotSet(t)
	stamps := s.putDays(5)
	for _, stamp := range []string{stamps[0], stamps[2]} {
		dir := s.SnapshotPath(stamp)
		if os.Getuid() != 0 {
			require.NoError(t, os.Chmod(dir, 0o500))
			t.Cleanup(func() { _ = os.Chmod(dir, 0o700) })
		} else { // permissions do not stop root, but a mount point cannot be renamed
			backuptest.MountBind(t, dir, dir)
		}
	}
	result, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
	var pathErr *fs.PathError
	require.ErrorAs(t, err, &pathErr)
	require.ErrorContains(t, err, stamps[0], "the error names the snapshot")
	require.ErrorContains(t, err, "the first of 2 that could not be removed")
	require.Equal(t, []string{stamps[3], stamps[1]}, result.Removed)
	reason := "not removed: " + pathErr.Err.Error()
	require.Equal(t, []backup.SkippedSnapshot{{stamps[0], reason}, {stamps[2], reason}}, result.Skipped)
	require.Equal(t, []string{stamps[0], stamps[2], stamps[4]}, s.Stamps())
}

// A snapshot that is protected while a prune or a removal runs is not removed by
// it: once ProtectRuntimeBackup has returned, the snapshot stays.
func TestProtectedWhileRemoving(t *testing.T) {
	for name, call := range map[string]func(s *snapshotSet, stamp string) error{
		"prune": func(s *snapshotSet, stamp string) error {
			result, err := backup.PruneRuntimeBackups(s.T.Context(), s.Options, backup.Retention{KeepLast: 1})
			require.NotContains(s.T, result.Removed, stamp)
			require.Equal(s.T, []backup.SkippedSnapshot{{Stamp: stamp, Reason: "protected meanwhile"}}, result.Skipped)
			return err
		},
		"remove": func(s *snapshotSet, stamp string) error {
			err := backup.RemoveRuntimeBackup(s.T.Context(), s.Options, stamp)
			require.ErrorIs(s.T, err, backup.ErrProtected)
			return nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSnapshotSet(t)
			stamps := s.putDays(3)
			plain := s.Options
			s.OnProgress = func(p backup.Progress) {
				if p.Path == s.SnapshotPath(stamps[1]) {
					require.NoError(t, backup.ProtectRuntimeBackup(t.Context(), plain, stamps[1], true))
				}
			}
			require.NoError(t, call(s, stamps[1]))
			require.Contains(t, s.Stamps(), stamps[1])
		})
	}
}
