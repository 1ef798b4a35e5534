package backuphttp

import (
	"bytes"
	"cmp"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atocore/backup"
)

// A family is one metric with its samples.
type family struct {
	name, kind, help string
	samples          []sample
}

type sample struct {
	labels string // with braces, or empty
	value  float64
}

// gauge returns a gauge with one sample.
func gauge(name, help string, value float64) family {
	return family{name, "gauge", help, []sample{{"", value}}}
}

// metrics answers GET /metrics, in Prometheus' text format 0.0.4. A scrape costs a
// list. What isn't known has no sample.
func (h *Handler) metrics(w http.ResponseWriter, r *http.Request) {
	var families []family
	list, err := h.list(r.Context())
	if list != nil {
		families = h.snapshotMetrics(list.snapshots)
	}
	up := 1.0
	if list == nil {
		up = 0
	}
	families = append(families, gauge("up", "Whether the snapshots could be listed.", up))
	if p := unfinishedOf(err); list != nil {
		families = append(families, gauge("restore_unfinished", "Whether a restore was interrupted, so that the store must be restored again.", p))
	}
	if free, ok := freeSpace(h.opts.BackupDir); ok {
		families = append(families, gauge("free_bytes", "Space that is free for the backup directory.", float64(free)))
	}
	families = append(families, h.tracker.metrics()...)
	h.write(w, r, http.StatusOK, "text/plain; version=0.0.4; charset=utf-8", formatMetrics(families))
}

func unfinishedOf(err error) float64 {
	if err != nil {
		return 1
	}
	return 0
}

// snapshotMetrics describes the snapshots in a list.
func (h *Handler) snapshotMetrics(list []backup.Snapshot) []family {
	now := h.clock.Now()
	verdicts := map[string]int{"valid": 0, "invalid": 0, "none": 0}
	var guarded, unreadable int
	var bytes float64
	own := h.ownStore()
	var newest, verified *backup.Snapshot
	for i := range list {
		s := &list[i]
		switch {
		case s.Verified == nil:
			verdicts["none"]++
		case *s.Verified:
			verdicts["valid"]++
		default:
			verdicts["invalid"]++
		}
		if s.Protected {
			guarded++
		}
		if s.Metadata == nil {
			unreadable++
			continue
		}
		bytes += sizeOf(s)
		if s.Metadata.SafetyOf != "" || s.Metadata.CreatedAt.After(now) || !own(s.Metadata) {
			continue
		}
		newest = later(newest, s)
		if s.Verified != nil && *s.Verified {
			verified = later(verified, s)
		}
	}
	counts := family{"snapshots", "gauge", "Snapshots, by the last verdict about them.", nil}
	for _, verdict := range []string{"valid", "invalid", "none"} {
		counts.samples = append(counts.samples, sample{labels("verdict", verdict), float64(verdicts[verdict])})
	}
	families := []family{
		counts,
		gauge("snapshots_protected", "Snapshots that are protected from prunes.", float64(guarded)),
		gauge("snapshots_unreadable", "Snapshots without readable metadata.", float64(unreadable)),
		gauge("snapshots_bytes", "Size of all snapshots, by their metadata.", bytes),
	}
	families = append(families, newestMetrics("newest", "the newest snapshot", newest, now)...)
	return append(families, newestMetrics("newest_verified", "the newest snapshot that was found valid", verified, now)...)
}

// newestMetrics describes one snapshot, which may be nil.
func newestMetrics(name, words string, s *backup.Snapshot, now time.Time) []family {
	if s == nil {
		return nil
	}
	created := s.Metadata.CreatedAt
	return []family{
		gauge(name+"_timestamp_seconds", "Unix time of the creation of "+words+".", float64(created.UnixMicro())/1e6),
		gauge(name+"_age_seconds", "Age of "+words+".", now.Sub(created).Seconds()),
		gauge(name+"_size_bytes", "Size of "+words+", by its metadata.", sizeOf(s)),
	}
}

// sizeOf returns the size that a snapshot's metadata record, which are untrusted.
func sizeOf(s *backup.Snapshot) float64 {
	return math.Max(0, float64(s.Metadata.DBSizeBytes)) + math.Max(0, float64(s.Metadata.ChromaSnapshotBytes))
}

// later returns the later one of two snapshots; a may be nil.
func later(a, b *backup.Snapshot) *backup.Snapshot {
	if a != nil && cmp.Or(a.Metadata.CreatedAt.Compare(b.Metadata.CreatedAt), strings.Compare(a.Stamp, b.Stamp)) > 0 {
		return a
	}
	return b
}

// ownStore returns a function that reports whether a snapshot is of the store of
// the options, or may be: package backup decides that where it matters.
func (h *Handler) ownStore() func(*backup.Metadata) bool {
	database, host := h.opts.DatabasePath, h.opts.Host
	if database == "" {
		return func(*backup.Metadata) bool { return true }
	}
	if abs, err := filepath.Abs(database); err == nil {
		database = abs
	}
	// The file may not be there, after a failed disk for example.
	if dir, err := filepath.EvalSymlinks(filepath.Dir(database)); err == nil {
		database = filepath.Join(dir, filepath.Base(database))
	}
	if real, err := filepath.EvalSymlinks(database); err == nil {
		database = real
	}
	if host == "" {
		host, _ = os.Hostname() // as package backup does
	}
	return func(m *backup.Metadata) bool {
		return m.SourceDBPath == "" || m.SourceDBPath == database && m.SourceHost == host
	}
}

// metrics describes the operations.
func (t *tracker) metrics() []family {
	t.mu.Lock()
	defer t.mu.Unlock()
	kinds := []string{"create", "validate", "drill", "export", "import", "restore", "protect", "remove", "prune"}
	for done := range t.counts { // those of the host
		if !slices.Contains(kinds, done.kind) {
			kinds = append(kinds, done.kind)
		}
	}
	slices.Sort(kinds)
	ended := family{"operations_total", "counter", "Operations that ended here, by kind and state.", nil}
	running := family{"operations_running", "gauge", "Operations that are running here, by kind.", nil}
	for _, kind := range kinds {
		for _, state := range []string{stateSucceeded, stateFailed, stateCanceled} {
			ended.samples = append(ended.samples, sample{labels("kind", kind, "state", state), float64(t.counts[outcome{kind, state}])})
		}
		n := 0
		for _, op := range t.running {
			if op.now.Kind == kind {
				n++
			}
		}
		running.samples = append(running.samples, sample{labels("kind", kind), float64(n)})
	}
	families := []family{
		ended, running,
		gauge("event_followers", "Clients that follow the events.", float64(t.hub.connected)),
		{"create_failures_total", "counter", "Creates that failed, here or as the host observed.", []sample{{"", float64(t.last.failures)}}},
	}
	if t.last.known {
		families = append(families, gauge("last_create_success", "Whether the last create succeeded.", t.last.success()))
	}
	if t.last.hasCost {
		families = append(families,
			gauge("last_create_duration_seconds", "How long the last create took that made a snapshot.", t.last.cost.Duration.Seconds()),
			gauge("last_create_guard_seconds", "How long that create held the ingestion guard.", t.last.cost.Guarded.Seconds()))
	}
	return families
}

// labels returns label pairs in braces, with the escapes of the text format.
func labels(pairs ...string) string {
	escape := strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	var parts []string
	for pair := range slices.Chunk(pairs, 2) {
		parts = append(parts, pair[0]+`="`+escape.Replace(strings.ToValidUTF8(pair[1], "\uFFFD"))+`"`)
	}
	return "{" + strings.Join(parts, ",") + "}"
}

// formatMetrics returns metrics in the text format.
func formatMetrics(families []family) []byte {
	var b bytes.Buffer
	for _, f := range families {
		name := "atocore_backup_" + f.name
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, f.help, name, f.kind)
		for _, s := range f.samples {
			fmt.Fprintf(&b, "%s%s %s\n", name, s.labels, strconv.FormatFloat(s.value, 'g', -1, 64))
		}
	}
	return b.Bytes()
}
