// Package metrics checks the metrics of package backuphttp with Prometheus' own
// parser. It is a module of its own, so that the library's does not need that.
package metrics

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/internal/backuptest"
)

// scrape returns the metrics, which must be in the format.
func scrape(t *testing.T, h http.Handler) map[string]*dto.MetricFamily {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
	require.Equal(t, 200, w.Code, w.Body)
	require.Equal(t, expfmt.TypeTextPlain, expfmt.ResponseFormat(w.Header()).FormatType())
	text := w.Body.Bytes()
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(text))
	require.NoError(t, err)
	for name, family := range families {
		require.NotEmpty(t, family.GetHelp(), name)
		require.NotEqual(t, dto.MetricType_UNTYPED, family.GetType(), name)
		require.NotEmpty(t, family.GetMetric(), name)
	}
	return families
}

// value returns the value of a metric with these labels, and whether there is one.
func value(families map[string]*dto.MetricFamily, name string, labels ...string) (float64, bool) {
	for _, m := range families["atocore_backup_"+name].GetMetric() {
		same := len(m.GetLabel())*2 == len(labels)
		for i, l := range m.GetLabel() {
			same = same && labels[2*i] == l.GetName() && labels[2*i+1] == l.GetValue()
		}
		if same {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue(), true
		}
	}
	return 0, false
}

// The metrics of a store without snapshots, with two, and after failures.
func TestMetrics(t *testing.T) {
	store := backuptest.NewSmallStore(t)
	now := backuptest.Noon.Time
	store.Options.Clock = backuptest.ClockFunc(func() time.Time { return now })
	store.Options.RecordVerdicts = true
	var fails error
	store.Options.InitDB = func(context.Context) error { return fails }
	h := backuphttp.New(store.Options, backuphttp.Config{})
	var families map[string]*dto.MetricFamily
	requireValue := func(want float64, name string, labels ...string) {
		t.Helper()
		got, ok := value(families, name, labels...)
		require.True(t, ok, name)
		require.InDelta(t, want, got, 1e-3, name)
	}
	requireNone := func(name string) {
		t.Helper()
		_, ok := value(families, name)
		require.False(t, ok, name)
	}
	send := func(status int, method, path string) {
		t.Helper()
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		require.Equal(t, status, w.Code, w.Body)
	}

	families = scrape(t, h)
	requireValue(1, "up")
	requireValue(0, "snapshots", "verdict", "valid")
	requireNone("newest_age_seconds")
	requireNone("last_create_success")
	requireValue(0, "create_failures_total")
	free, ok := value(families, "free_bytes")
	require.True(t, ok)
	require.Positive(t, free)

	send(201, "POST", "/")
	first := store.Stamps()[0]
	now = now.Add(time.Hour)
	send(201, "POST", "/")
	send(200, "GET", "/"+first+"/validate")
	now = now.Add(time.Minute)
	families = scrape(t, h)
	requireValue(1, "snapshots", "verdict", "valid")
	requireValue(1, "snapshots", "verdict", "none")
	requireValue(0, "snapshots", "verdict", "invalid")
	requireValue(60, "newest_age_seconds")
	requireValue(3660, "newest_verified_age_seconds")
	requireValue(float64(backuptest.Noon.Time.Add(time.Hour).UnixMicro())/1e6, "newest_timestamp_seconds")
	list, err := backup.ListRuntimeBackups(t.Context(), store.Options)
	require.NoError(t, err)
	m := list[1].Metadata
	requireValue(float64(m.DBSizeBytes+m.ChromaSnapshotBytes), "newest_size_bytes")
	requireValue(1, "last_create_success")
	requireValue(0, "last_create_duration_seconds") // by a clock that stands still
	requireValue(2, "operations_total", "kind", "create", "state", "succeeded")
	requireValue(0, "operations_running", "kind", "create")
	requireValue(0, "restore_unfinished")
	requireValue(0, "snapshots_protected")

	// A create that fails, and one that the host has observed.
	fails = errors.New("the schema is broken")
	send(500, "POST", "/")
	families = scrape(t, h)
	requireValue(0, "last_create_success")
	requireValue(1, "create_failures_total")
	requireValue(1, "operations_total", "kind", "create", "state", "failed")
	h.Observe("create", "", now, &backup.Metadata{Cost: &backup.Cost{Duration: 1500 * time.Millisecond, Guarded: 250 * time.Millisecond}}, nil)
	h.Observe("odd \\ \"kind\"\n\xff", "", now, nil, nil)
	families = scrape(t, h)
	requireValue(1, "last_create_success")
	requireValue(1.5, "last_create_duration_seconds")
	requireValue(0.25, "last_create_guard_seconds")
	requireValue(1, "operations_total", "kind", "odd \\ \"kind\"\n\uFFFD", "state", "succeeded")

	// Snapshots that do not count as the newest: in the future, of another store,
	// without metadata.
	now = now.Add(-24 * time.Hour)
	families = scrape(t, h)
	requireNone("newest_age_seconds")
	now = now.Add(24 * time.Hour)
	other := backuptest.NewSmallStore(t)
	other.Options.BackupDir, other.Options.Clock = store.Options.BackupDir, store.Options.Clock
	other.Create()
	require.NoError(t, os.Mkdir(store.SnapshotPath("nothing"), 0o700))
	families = scrape(t, h)
	requireValue(60, "newest_age_seconds")
	requireValue(1, "snapshots_unreadable")
	requireValue(3, "snapshots", "verdict", "none")
	require.NoError(t, os.Remove(store.SnapshotPath("nothing")))
	require.NoError(t, h.Shutdown(t.Context()))
}

// A backup directory that cannot be read is told, and the rest is there.
func TestMetricsOfAnUnreadableDirectory(t *testing.T) {
	store := backuptest.NewBareStore(t)
	require.NoError(t, os.WriteFile(store.BackupDir, nil, 0o600))
	h := backuphttp.New(store.Options, backuphttp.Config{})
	families := scrape(t, h)
	up, ok := value(families, "up")
	require.True(t, ok)
	require.Zero(t, up)
	_, ok = value(families, "operations_running", "kind", "create")
	require.True(t, ok)
}
