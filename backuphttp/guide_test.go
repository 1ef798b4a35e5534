package backuphttp_test

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/schedule"
)

// fiveLines has the code of docs/server.md.
func fiveLines(ctx context.Context, server *http.Server, mux *http.ServeMux, requireAdmin func(http.Handler) http.Handler, opts backup.Options, plan schedule.Plan, ended chan<- error) {
	h := backuphttp.New(opts, backuphttp.Config{AllowRestore: true, AllowPrune: true, Keep: plan.Keep})
	mux.Handle("/admin/backup/", requireAdmin(http.StripPrefix("/admin/backup", h)))
	server.RegisterOnShutdown(func() { _ = h.Shutdown(ctx) })
	opts.OnProgress, plan.OnResult = h.ObserveProgress, func(r schedule.Result) { h.Observe(string(r.Step), r.Stamp, r.Began, r.Created, r.Err) }
	go func() { ended <- schedule.Run(ctx, opts, plan) }()
}

// With five lines, a service makes backups and offers them: a scheduled create is
// seen by those who follow the events, in the list and in the metrics.
func TestFiveLines(t *testing.T) {
	store := backuptest.NewSmallStore(t)
	store.Verify, store.RecordVerdicts = true, true
	guard := newGate()
	store.Locker = guard
	mux := http.NewServeMux()
	s := &site{Store: store, t: t, server: httptest.NewServer(mux)}
	s.url = s.server.URL + mountedAt
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	admitted := func(next http.Handler) http.Handler { return next }
	fiveLines(ctx, s.server.Config, mux, admitted, store.Options, schedule.Plan{Every: time.Hour, Verify: true}, ended)
	<-guard.reached
	events := s.follow("")
	require.Equal(t, "scheduled", events.operation().Kind)
	guard.opened <- struct{}{}
	created := events.operation()
	require.Equal(t, "create", created.Kind)
	require.Equal(t, "succeeded", created.State)
	for events.operation().Kind != "verify" {
	}
	var list []backup.Snapshot
	s.must(200, "GET", "/", "", &list)
	require.Len(t, list, 1)
	require.Equal(t, created.Stamp, list[0].Stamp)
	require.True(t, *list[0].Verified)
	var meta backup.Metadata
	require.NoError(t, json.Unmarshal(created.Result, &meta))
	require.NotNil(t, meta.Cost)
	require.Contains(t, s.must(200, "GET", "/metrics", "", nil).body, "atocore_backup_last_create_duration_seconds ")

	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.NoError(t, s.server.Config.Shutdown(t.Context()))
	s.server.Close()
}
