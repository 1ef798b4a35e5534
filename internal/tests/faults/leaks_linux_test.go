package faults

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

var leaks = flag.Int("leaks", 50, "how often to take, check and fail to take a snapshot in one process")

// usage describes the resources that a process holds.
type usage struct {
	descriptors, goroutines, threads int
	heap, resident                   int64
}

// use returns the usage of this process.
func use(t *testing.T) (u usage) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	runtime.GC()
	runtime.GC() // for what the first one finalized
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	status, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	field := func(name string) int64 {
		_, rest, _ := strings.Cut(string(status), "\n"+name+":")
		fields := strings.Fields(rest)
		require.NotEmpty(t, fields, name)
		n, err := strconv.ParseInt(fields[0], 10, 64)
		require.NoError(t, err)
		return n
	}
	return usage{len(entries), runtime.NumGoroutine(), int(field("Threads")), int64(m.HeapAlloc), field("VmRSS") << 10}
}

func (u usage) String() string {
	return fmt.Sprintf("%d descriptors, %d goroutines, %d threads, %d kB of heap, %d kB resident",
		u.descriptors, u.goroutines, u.threads, u.heap>>10, u.resident>>10)
}

// TestLeaks takes many snapshots in one process, some of which fail, as a host does
// that runs for years.
func TestLeaks(t *testing.T) {
	temporary := t.TempDir()
	t.Setenv("TMPDIR", temporary)
	s := newStore(t, memoryDir(t), "wal")
	db := backuptest.OpenDB(t, s.DatabasePath)
	ctx := context.Background()
	round := func(i int) {
		require.NoError(t, backuptest.Move(context.Background(), db, i%backuptest.Accounts, (i+1)%backuptest.Accounts, i))
		opts := s.Options
		opts.OnlineBackup = i%2 == 1
		meta, err := backup.CreateRuntimeBackup(ctx, opts)
		require.NoError(t, err)
		_, err = backup.ListRuntimeBackups(ctx, opts)
		require.NoError(t, err)
		_, err = backup.ValidateBackup(ctx, opts, meta.Stamp)
		require.NoError(t, err)

		s.Snapshot(meta.Stamp).Flip(backuptest.DBFile, 5000)
		_, err = backup.ValidateBackup(ctx, opts, meta.Stamp)
		require.ErrorIs(t, err, backup.ErrInvalidBackup)
		require.NoError(t, os.RemoveAll(meta.BackupRoot))

		cancelled, cancel := context.WithCancel(ctx)
		reports := 0
		opts.OnProgress = func(backup.Progress) {
			if reports++; reports == i%20 {
				cancel()
			}
		}
		if meta, err := backup.CreateRuntimeBackup(cancelled, opts); err == nil {
			require.NoError(t, os.RemoveAll(meta.BackupRoot))
		} else {
			require.ErrorIs(t, err, context.Canceled)
		}
		cancel()
	}
	const warmUp = 25
	for i := range warmUp {
		round(i)
	}
	before := use(t)
	for i := range *leaks {
		round(warmUp + i)
	}
	after := use(t)
	t.Logf("before: %v", before)
	t.Logf("after %d: %v", *leaks, after)
	require.LessOrEqual(t, after.descriptors, before.descriptors)
	require.LessOrEqual(t, after.goroutines, before.goroutines)
	require.Less(t, after.threads, before.threads+10) // the runtime's, as the load asks for
	require.Less(t, after.heap, before.heap+1<<20)
	require.Less(t, after.resident, before.resident+32<<20)
	left, err := os.ReadDir(temporary)
	require.NoError(t, err)
	require.Empty(t, left)
	require.Empty(t, s.Staging())
}
