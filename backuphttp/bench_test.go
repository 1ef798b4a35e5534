package backuphttp_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/internal/backuptest"
)

// BenchmarkList measures how long 200 clients wait for a list of 100 snapshots,
// while 20 clients follow the events and one create runs after another. An
// operation is one list. Clients and server share the machine. With a pause, each
// client asks once in that time, as a page or a monitor does; without one, it asks
// again at once, so that the server does nothing but that.
//
//	go test -run '^$' -bench List -benchtime 20000x ./backuphttp
func BenchmarkList(b *testing.B) {
	for _, pause := range []time.Duration{time.Second, 0} {
		b.Run(fmt.Sprintf("pause=%s", pause), func(b *testing.B) { benchmarkList(b, pause) })
	}
}

func benchmarkList(b *testing.B, pause time.Duration) {
	const clients, followers, snapshots = 200, 20, 100
	opts := benchStore(b, snapshots)
	h := backuphttp.New(opts, backuphttp.Config{})
	server := httptest.NewServer(h)
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 2 * clients}}
	clock := backup.SystemClock()
	ctx, stop := context.WithCancel(b.Context())
	var others sync.WaitGroup
	var events atomic.Int64
	for range followers {
		others.Go(func() { follow(ctx, client, server.URL, &events) })
	}
	var creates int
	others.Go(func() {
		for ctx.Err() == nil {
			response, err := client.Post(server.URL, "application/json", nil)
			if err != nil {
				b.Error(err)
				return
			}
			_ = response.Body.Close()
			creates++ // there are always as many snapshots
			_ = os.RemoveAll(filepath.Join(opts.BackupDir, "snapshots", filepath.Base(response.Header.Get("Location"))))
		}
	})

	b.ResetTimer()
	var left atomic.Int64
	left.Store(int64(b.N))
	took := make([][]time.Duration, clients)
	var size atomic.Int64
	var group sync.WaitGroup
	for i := range clients {
		group.Go(func() {
			if pause > 0 { // not all at once
				time.Sleep(pause * time.Duration(i) / clients)
			}
			for left.Add(-1) >= 0 {
				began := clock.Now()
				n, err := get(client, server.URL)
				if err != nil {
					b.Error(err)
					return
				}
				size.Store(n)
				elapsed := clock.Now().Sub(began)
				took[i] = append(took[i], elapsed)
				time.Sleep(max(0, pause-elapsed))
			}
		})
	}
	group.Wait()
	b.StopTimer()
	stop()
	others.Wait()
	require.NoError(b, h.Shutdown(context.Background()))
	client.CloseIdleConnections()
	server.Close()
	requireNoGoroutines(b)

	all := slices.Concat(took...)
	slices.Sort(all)
	for _, p := range []int{50, 99} {
		b.ReportMetric(float64(all[(len(all)-1)*p/100].Microseconds())/1000, fmt.Sprintf("p%d-ms", p))
	}
	b.ReportMetric(float64(size.Load())/1024, "KiB/list")
	b.ReportMetric(float64(events.Load())/float64(b.N), "events/op")
	require.Positive(b, creates)
}

// benchStore makes a store with so many snapshots, each validated.
func benchStore(b *testing.B, snapshots int) backup.Options {
	b.Helper()
	opts := backuptest.OptionsIn(b.TempDir())
	opts.RecordVerdicts, opts.RegistryPath = true, ""
	require.NoError(b, os.MkdirAll(opts.ChromaPath, 0o700))
	for i := range 20 {
		require.NoError(b, os.WriteFile(filepath.Join(opts.ChromaPath, fmt.Sprint(i)), make([]byte, 1<<10), 0o600))
	}
	db, err := backuptest.Open(opts.DatabasePath)
	require.NoError(b, err)
	_, err = db.Exec("CREATE TABLE t (x)")
	require.NoError(b, err)
	require.NoError(b, db.Close())
	for range snapshots {
		made := opts
		made.Verify = true
		_, err := backup.CreateRuntimeBackup(b.Context(), made)
		require.NoError(b, err)
	}
	return opts
}

func get(client *http.Client, url string) (n int64, err error) {
	response, err := client.Get(url)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s", response.Status)
	}
	return io.Copy(io.Discard, response.Body)
}

func follow(ctx context.Context, client *http.Client, url string, events *atomic.Int64) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"/events", nil)
	if err != nil {
		return
	}
	response, err := client.Do(request)
	if err != nil {
		return
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for lines.Scan() {
		if lines.Text() == "" {
			events.Add(1)
		}
	}
}
