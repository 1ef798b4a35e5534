package offsite_test

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/offsite"
	"github.com/atocore/backup/offsite/internal/restic"
)

// programOf returns the restic of a repository, to make in it what a push does not.
func programOf(r *offsite.Repository) *restic.Program {
	return &restic.Program{Location: r.Location, PasswordFile: r.PasswordFile, Patience: r.Patience}
}

func randomBytes(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.Read(data)
	return data
}

// storeTagged stores a snapshot with a host and tags, whose content is no copy's,
// and returns its ID.
func storeTagged(t *testing.T, r *offsite.Repository, at time.Time, host string, tags ...string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tree")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), []byte(host), 0o644))
	s, err := programOf(r).Backup(t.Context(), restic.BackupArgs{Dir: dir, Host: host, Tags: tags, Time: at})
	require.NoError(t, err)
	return s.ID
}

// storeCopy stores what has the tags of a copy.
func storeCopy(t *testing.T, r *offsite.Repository, at time.Time, host, db string) string {
	t.Helper()
	stamp := at.UTC().Format("20060102T150405Z")
	return storeTagged(t, r, at, host, "atocore", "stamp="+stamp, "sums="+strings.Repeat("a", 64), "db="+db)
}

// noon is the time of the tests, in whole seconds as restic keeps times.
var noon = backuptest.Noon.Time.Truncate(time.Second)

const database = "/srv/atocore/atocore.db"

func storeOptions() backup.Options {
	return backup.Options{BackupDir: "/srv/atocore/backups", DatabasePath: database, Host: "h", Clock: backuptest.Noon}
}

// summary returns a result as "age: reasons" lines, with ages relative to noon.
func summary(f *offsite.Forgotten) (lines []string) {
	age := func(c offsite.Copy) string { return noon.Sub(c.CreatedAt).String() }
	for _, k := range f.Kept {
		lines = append(lines, fmt.Sprintf("%s: %s", age(k.Copy), strings.Join(k.Reasons, ", ")))
	}
	for _, c := range f.Removed {
		lines = append(lines, age(c)+": removed")
	}
	return lines
}

// requireIDs checks which snapshots the repository has.
func requireIDs(t *testing.T, r *offsite.Repository, want ...string) {
	t.Helper()
	list, err := programOf(r).Snapshots(t.Context())
	require.NoError(t, err)
	var got []string
	for _, s := range list {
		got = append(got, s.ID)
	}
	require.ElementsMatch(t, want, got)
}

// The rules, one after the other, by dry runs on the same copies. Beside them are
// those of other stores, and snapshots that are no copies.
func TestForgetRules(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	const day = 24 * time.Hour
	for _, age := range []time.Duration{40 * day, 2 * day, 30 * time.Hour, 90 * time.Minute, 30 * time.Minute} {
		storeCopy(t, r, noon.Add(-age), "h", database)
	}
	for name, test := range map[string]struct {
		keep backup.Retention
		want []string
	}{
		"last": {backup.Retention{KeepLast: 1}, []string{
			"30m0s: newest copy, last snapshot", "1h30m0s: removed", "30h0m0s: removed", "48h0m0s: removed", "960h0m0s: removed",
		}},
		"daily": {backup.Retention{KeepDaily: 2}, []string{
			"30m0s: newest copy, daily snapshot", "30h0m0s: daily snapshot", "1h30m0s: removed", "48h0m0s: removed", "960h0m0s: removed",
		}},
		"no limit": {backup.Retention{KeepMonthly: -1, KeepLast: 2}, []string{
			"30m0s: newest copy, last snapshot, monthly snapshot", "1h30m0s: last snapshot", "960h0m0s: monthly snapshot", "30h0m0s: removed", "48h0m0s: removed",
		}},
		"within less than restic counts": {backup.Retention{KeepWithin: time.Hour}, []string{ // relative to the newest, and less than it
			"30m0s: newest copy, within 1h0m0s", "1h30m0s: removed", "30h0m0s: removed", "48h0m0s: removed", "960h0m0s: removed",
		}},
		"within days and minutes": {backup.Retention{KeepWithinDays: 1, KeepWithin: 5*time.Hour + 31*time.Minute, KeepYearly: 1}, []string{
			"30m0s: newest copy, within 1 day 5h31m0s, yearly snapshot", "1h30m0s: within 1 day 5h31m0s", "30h0m0s: within 1 day 5h31m0s",
			"48h0m0s: removed", "960h0m0s: removed",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			test.keep.DryRun = true
			got, err := r.Forget(t.Context(), storeOptions(), test.keep)
			require.NoError(t, err)
			require.True(t, got.DryRun)
			require.Equal(t, test.want, summary(got))
		})
	}
	list, err := r.List(t.Context())
	require.NoError(t, err)
	require.Len(t, list, 5, "a dry run removes nothing")
}

// Only copies of the store are removed, and their data with them.
func TestForgetOneOfTwoStores(t *testing.T) {
	t.Parallel()
	r := newRepository(t)
	at := func(hours int) time.Time { return noon.Add(-time.Duration(hours) * time.Hour) }
	kept := []string{
		storeTagged(t, r, at(9), "h"),
		storeTagged(t, r, at(9), "h", "atocore"),
		storeTagged(t, r, at(8), "h", "atocore", "db="+database), // restic counts it
		storeCopy(t, r, at(7), "other", database),
		storeCopy(t, r, at(6), "h", "/srv/other.db"),
		storeCopy(t, r, noon.Add(time.Hour), "h", database),
	}
	gone := storeCopy(t, r, at(5), "h", database)
	gone2 := storeCopy(t, r, at(4), "h", database)
	kept = append(kept, storeCopy(t, r, at(3), "h", database), storeCopy(t, r, at(2), "h", database),
		storeCopy(t, r, at(2), "h", database)) // as two pushers at a time make it

	none, err := r.Forget(t.Context(), backup.Options{BackupDir: "/srv"}, backup.Retention{KeepLast: 1})
	require.Nil(t, none)
	require.ErrorIs(t, err, offsite.ErrOtherStore)
	require.ErrorContains(t, err, "other:"+database)
	requireIDs(t, r, append(kept, gone, gone2)...)

	got, err := r.Forget(t.Context(), storeOptions(), backup.Retention{KeepLast: 1})
	require.NoError(t, err)
	require.Equal(t, []string{
		"-1h0m0s: dated in the future, last snapshot", "2h0m0s: newest copy, last snapshot", "2h0m0s: last snapshot",
		"3h0m0s: last snapshot", "4h0m0s: removed", "5h0m0s: removed",
	}, summary(got), "the one in the future, the one that is no copy and the second one of a snapshot take no place of others")
	requireIDs(t, r, kept...)

	unknown := storeOptions()
	unknown.DatabasePath = "/srv/nobody.db"
	got, err = r.Forget(t.Context(), unknown, backup.Retention{KeepLast: 1})
	require.NoError(t, err)
	require.Empty(t, summary(got))
	requireIDs(t, r, kept...)
}

func TestForgetBadRetention(t *testing.T) {
	for name, keep := range map[string]backup.Retention{
		"nothing":         {},
		"dry run":         {DryRun: true},
		"a bad count":     {KeepLast: -2},
		"a negative span": {KeepWithin: -time.Hour},
		"a negative day":  {KeepWithinDays: -1, KeepLast: 1},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := (&offsite.Repository{Program: "restic-that-nobody-has"}).Forget(t.Context(), storeOptions(), keep)
			require.ErrorIs(t, err, backup.ErrInvalidOptions)
		})
	}
}
