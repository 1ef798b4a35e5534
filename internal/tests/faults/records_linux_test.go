//go:build amd64 || arm64

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
)

// atRecord injects a fault into the n-th call of a run that works on what is
// recorded beside the snapshots. met is nil if there are fewer.
func (s *store) atRecord(n int, err unix.Errno, args ...string) (o outcome, met *hit) {
	s.T.Helper()
	count := 0
	o = intercept(s.T, command(s.T, append(args, s.flags()...)...), everyCall(), func(c *call) verdict {
		on := c.on()
		if !strings.Contains(on, s.BackupDir) || !strings.Contains(on, "records") {
			return 0
		}
		if count++; count != n {
			return 0
		}
		met = &hit{call: *c, on: on}
		if err == kill {
			_ = unix.Kill(int(c.pid), unix.SIGKILL)
			return 0
		}
		return err
	})
	return o, met
}

// recorded returns what is recorded about a snapshot, as a list has it.
func (s *store) recorded(stamp string) string {
	s.T.Helper()
	list, err := backup.ListRuntimeBackups(context.Background(), s.Options)
	require.NoError(s.T, err)
	for _, e := range list {
		if e.Stamp == stamp {
			verified := "never"
			if e.Verified != nil {
				verified = fmt.Sprint(*e.Verified)
			}
			return fmt.Sprintf("verified %s, protected %v, note %q", verified, e.Protected, e.Note)
		}
	}
	require.Fail(s.T, "it is not in the list")
	return ""
}

// TestPruneKeepsWhatItsRecordsMayProtect lets each read of a record fail in a
// prune. A snapshot may be protected then, and is kept.
func TestPruneKeepsWhatItsRecordsMayProtect(t *testing.T) {
	s := newStore(t, memoryDir(t), "delete")
	var stamps []string
	for range 3 {
		stamps = append(stamps, do(t, command(t, append([]string{"create", "--verify"}, s.flags()...)...)).requireDone(t).stamp(t))
	}
	do(t, command(t, append([]string{"protect", stamps[0]}, s.flags()...)...)).requireDone(t)
	calls := 0
	for n := 1; ; n++ {
		o, met := s.atRecord(n, unix.EIO, "prune", "--keep-last", "1", "--dry-run")
		if met == nil {
			break
		}
		calls++
		var result backup.PruneResult
		require.NoError(t, json.Unmarshal([]byte(o.stdout), &result), "%s on %s: %s", met.name(), met.on, o.stderr)
		require.NotContains(t, result.Removed, stamps[0], "%s on %s: %s", met.name(), met.on, o.stderr)
	}
	require.Greater(t, calls, 5)
}

// TestRecordsKilledAndFailing kills the command at each call that works on a
// record, and lets each fail. A record is the old one or the new one, and whatever
// happens to it costs nothing else.
func TestRecordsKilledAndFailing(t *testing.T) {
	s := newStore(t, memoryDir(t), "delete")
	flags := s.flags()
	stamp := do(t, command(t, append([]string{"create", "--verify", "--note", "n"}, flags...)...)).requireDone(t).stamp(t)
	do(t, command(t, append([]string{"protect", stamp}, flags...)...)).requireDone(t)
	record := filepath.Join(s.BackupDir, "records", stamp+".json")
	kept, err := os.ReadFile(record)
	require.NoError(t, err)
	const old = `verified true, protected true, note "n"`
	require.Equal(t, old, s.recorded(stamp))

	errs := []unix.Errno{kill, unix.EIO}
	if *injectAll {
		errs = append(errs, unix.ENOSPC, unix.EROFS, unix.EACCES, unix.EINTR)
	}
	for _, tt := range []struct {
		args    []string
		news    []string // what may be recorded besides the old
		costs   bool     // a failure is one of the command
		removes bool     // there was no record before
	}{
		{[]string{"unprotect", stamp}, []string{`verified true, protected false, note "n"`}, true, false},
		{[]string{"validate", stamp}, nil, false, false},
		{[]string{"protect", stamp}, []string{`verified never, protected false, note ""`, `verified never, protected true, note ""`}, true, true},
		{[]string{"validate", stamp}, []string{`verified never, protected false, note ""`, `verified true, protected false, note ""`}, false, true},
	} {
		t.Run(strings.Join(tt.args[:1], " ")+fmt.Sprint(tt.removes), func(t *testing.T) {
			s.T = t
			calls := 0
			for n := 1; ; n++ {
				met := false
				for _, err := range errs {
					require.NoError(t, os.RemoveAll(filepath.Dir(record)))
					if !tt.removes {
						require.NoError(t, os.Mkdir(filepath.Dir(record), 0o700))
						require.NoError(t, os.WriteFile(record, kept, 0o600))
					}
					o, h := s.atRecord(n, err, tt.args...)
					if h == nil {
						break
					}
					met = true
					words := fmt.Sprintf("%s on %s: %v\n%s", h.name(), h.on, err, o.stderr)
					now := s.recorded(stamp)
					require.Contains(t, append(slices.Clone(tt.news), old), now, words)
					if tt.removes {
						require.NotEqual(t, old, now, words)
					}
					switch {
					case err == kill:
						require.Equal(t, -1, o.code, words)
					case !tt.costs:
						require.Equal(t, 0, o.code, words)
						var report backup.Report
						require.NoError(t, json.Unmarshal([]byte(o.stdout), &report), words)
						require.True(t, report.Valid)
					case o.code == 0:
						require.Equal(t, tt.news[len(tt.news)-1], now, words)
					}
					_, perr := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: -1})
					require.NoError(t, perr, words)
					require.Equal(t, now, s.recorded(stamp), "the prune changed it; %s", words)
					s.RequireNoStaging()
				}
				if !met {
					break
				}
				calls++
			}
			require.Greater(t, calls, 5)
			t.Logf("%d calls", calls)
		})
	}
	s.T = t
}
