package main

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/atocore/backup"
)

type statusCommand struct {
	storeFlags
	keepFlags

	MaxAge        *span `placeholder:"DURATION" help:"Fail if the newest snapshot is older, for example 26h."`
	MaxUnverified *span `placeholder:"DURATION" help:"Fail if the newest snapshot that was found valid is older, for example 8d."`
}

// Help returns the details for the help of this command.
func (c *statusCommand) Help() string {
	return `For cron and monitors: prints the newest snapshot, its age, the number and the size of the snapshots, by how much they grow, and which was last found valid; with --keep flags, which ones a prune by these would remove. It looks at the snapshots of one store, the one that --db names, and reads metadata and records only.

The status is 1 if the snapshots exceed a limit, or if the newest one was found not to be valid when it was last checked; 3 if there is none. A snapshot that is dated in the future, was found not to be valid, or was taken by a restore doesn't count as the newest. Durations are written as for --keep-within: 26h, 8d, 2m is two months.

Example: ` + commandName + ` status --max-age 26h --max-unverified 8d`
}

// A statusResult is the result of status.
type statusResult struct {
	OK           bool         `json:"ok"`
	Faults       []string     `json:"faults"`
	Newest       *statusEntry `json:"newest"`        // null if none qualifies
	LastVerified *statusEntry `json:"last_verified"` // the newest that was found valid
	Count        int          `json:"count"`
	Unreadable   int          `json:"unreadable"` // without readable metadata; not in count
	Bytes        int64        `json:"bytes"`
	// GrowthBytes is the size of the newest snapshot without that of the one
	// before it with the same parts. It is null if there is none.
	GrowthBytes *int64 `json:"growth_bytes"`
	// NextRemoved are the snapshots that a prune would remove, oldest first. It
	// is null without --keep flags.
	NextRemoved []string `json:"next_removed"`
}

type statusEntry struct {
	Stamp      string     `json:"stamp"`
	CreatedAt  time.Time  `json:"created_at"`
	AgeSeconds int64      `json:"age_seconds"`
	Bytes      int64      `json:"bytes"`
	Verified   *bool      `json:"verified"`
	VerifiedAt *time.Time `json:"verified_at"`
}

func (c *statusCommand) Run(s *session) error {
	if err := joinFor("status", c.needBackupDir()); err != nil {
		return err
	}
	opts := c.options()
	s.watch(&opts)
	now := backup.SystemClock().Now()
	result, err := c.examine(s, opts, now)
	if err != nil {
		return joinFor("status", err)
	}
	if err := s.writeResult(document(result)); err != nil {
		return fmt.Errorf("status: %w", err)
	}
	if s.forPeople() {
		result.describe(s, c.BackupDir, now)
	}
	for _, fault := range result.Faults {
		s.tell("%s", fault)
	}
	switch {
	case !result.OK && result.Newest == nil && result.Count == 0:
		return fmt.Errorf("status: %w in %s", backup.ErrNoSnapshot, c.BackupDir)
	case !result.OK:
		return errLimit
	}
	return nil
}

// examine reads what is known about the snapshots and compares it with the
// limits.
func (c *statusCommand) examine(s *session, opts backup.Options, now time.Time) (*statusResult, error) {
	own, removed, err := c.ownSnapshots(s, opts)
	if err != nil {
		return nil, err
	}
	r := &statusResult{Faults: []string{}, NextRemoved: removed}
	var readable []backup.Snapshot
	for _, snapshot := range own {
		if snapshot.Metadata == nil {
			r.Unreadable++
			continue
		}
		readable = append(readable, snapshot)
		r.Bytes = min(r.Bytes+snapshotSize(snapshot.Metadata), 1<<61)
	}
	r.Count = len(readable)
	slices.Reverse(readable) // by stamp, newest first
	slices.SortStableFunc(readable, func(a, b backup.Snapshot) int { return b.Metadata.CreatedAt.Compare(a.Metadata.CreatedAt) })
	// A snapshot that is dated in the future is the work of a wrong clock, and one
	// that a restore took is not one of the series.
	regular := slices.DeleteFunc(slices.Clone(readable), func(s backup.Snapshot) bool {
		return s.Metadata.SafetyOf != "" || s.Metadata.CreatedAt.After(now)
	})
	for i, snapshot := range regular {
		wrong := snapshot.Verified != nil && !*snapshot.Verified
		if i == 0 && wrong {
			r.Faults = append(r.Faults, fmt.Sprintf("The newest snapshot, %s, was not valid when it was last checked.", snapshot.Stamp))
		}
		if r.Newest == nil && !wrong {
			r.Newest = newStatusEntry(snapshot, now)
			r.GrowthBytes = growth(regular[i:])
		}
		if r.LastVerified == nil && snapshot.Verified != nil && !wrong {
			r.LastVerified = newStatusEntry(snapshot, now)
		}
	}
	r.Faults = append(r.Faults, c.exceeded(r, now)...)
	r.OK = len(r.Faults) == 0
	return r, nil
}

// exceeded returns a sentence for each limit that the snapshots exceed.
func (c *statusCommand) exceeded(r *statusResult, now time.Time) (faults []string) {
	if r.Newest == nil {
		faults = append(faults, "There is no snapshot that could be restored.")
	} else if c.MaxAge != nil && r.Newest.CreatedAt.Before(c.MaxAge.before(now)) {
		faults = append(faults, fmt.Sprintf("The newest snapshot, %s, is %s old, more than %s.", r.Newest.Stamp, age(now.Sub(r.Newest.CreatedAt)), c.MaxAge))
	}
	switch last := r.LastVerified; {
	case c.MaxUnverified == nil:
	case last == nil:
		faults = append(faults, "No snapshot is known to be valid.")
	case last.CreatedAt.Before(c.MaxUnverified.before(now)):
		faults = append(faults, fmt.Sprintf("The newest snapshot that was found valid, %s, is %s old, more than %s.", last.Stamp, age(now.Sub(last.CreatedAt)), c.MaxUnverified))
	}
	return faults
}

// ownSnapshots returns the snapshots of the store, and those that a prune would
// remove, or nil if no rule is given. A dry run of a prune knows both.
func (c *statusCommand) ownSnapshots(s *session, opts backup.Options) (own []backup.Snapshot, removed []string, err error) {
	keep := c.retention()
	ruled := keep != (backup.Retention{})
	if !ruled {
		keep.KeepLast = -1
	}
	keep.DryRun = true
	pruned, err := backup.PruneRuntimeBackups(s.ctx, opts, keep)
	if err != nil {
		return nil, nil, err
	}
	all, err := backup.ListRuntimeBackups(s.ctx, opts)
	if err = cmp.Or(err, c.checkExists()); err != nil {
		return nil, nil, err
	}
	judged := make(map[string]bool)
	for _, kept := range pruned.Kept {
		judged[kept.Stamp] = true
	}
	for _, stamp := range pruned.Removed {
		judged[stamp] = true
	}
	for _, snapshot := range all {
		if snapshot.Metadata == nil || judged[snapshot.Stamp] {
			own = append(own, snapshot)
		}
	}
	if ruled {
		removed = append([]string{}, pruned.Removed...)
		slices.Reverse(removed)
	}
	return own, removed, nil
}

// growth returns the size of the first snapshot without that of the next one with
// the same parts, or nil if there is none.
func growth(newestFirst []backup.Snapshot) *int64 {
	newest := newestFirst[0].Metadata
	for _, snapshot := range newestFirst[1:] {
		if m := snapshot.Metadata; (m.ChromaSnapshotPath == "") == (newest.ChromaSnapshotPath == "") {
			grown := snapshotSize(newest) - snapshotSize(m)
			return &grown
		}
	}
	return nil
}

func newStatusEntry(snapshot backup.Snapshot, now time.Time) *statusEntry {
	m := snapshot.Metadata
	e := &statusEntry{
		Stamp: snapshot.Stamp, CreatedAt: m.CreatedAt.UTC(), AgeSeconds: int64(now.Sub(m.CreatedAt) / time.Second),
		Bytes: snapshotSize(m), Verified: snapshot.Verified,
	}
	if !snapshot.VerifiedAt.IsZero() {
		at := snapshot.VerifiedAt.UTC()
		e.VerifiedAt = &at
	}
	return e
}

// describe prints the result for people.
func (r *statusResult) describe(s *session, backupDir string, now time.Time) {
	line := func(name, text string) { s.tell("%-15s%s", name, text) }
	ago := func(t time.Time) string { return humanize.RelTime(t, now, "ago", "ahead") }
	newest := "none"
	if e := r.Newest; e != nil {
		newest = fmt.Sprintf("%s, made %s", e.Stamp, ago(e.CreatedAt))
	}
	line("Newest:", newest)
	verified := "none"
	if e := r.LastVerified; e != nil {
		verified = fmt.Sprintf("%s, made %s, found valid %s", e.Stamp, ago(e.CreatedAt), ago(*e.VerifiedAt))
	}
	line("Last verified:", verified)
	total := fmt.Sprintf("%s in %s, %s", count(int64(r.Count), "snapshot"), backupDir, size(r.Bytes))
	if r.Unreadable > 0 {
		total += fmt.Sprintf("; %d more without readable metadata", r.Unreadable)
	}
	line("Snapshots:", total)
	if r.GrowthBytes != nil {
		line("Growth:", grown(*r.GrowthBytes))
	}
	if r.NextRemoved != nil {
		line("Next pruned:", nextRemoved(r.NextRemoved))
	}
}

func grown(bytes int64) string {
	sign := "+"
	if bytes < 0 {
		sign, bytes = "-", -bytes
	}
	return fmt.Sprintf("%s%s from the snapshot before the newest", sign, size(bytes))
}

// nextRemoved lists the first snapshots that a prune would remove.
func nextRemoved(stamps []string) string {
	const most = 3
	switch {
	case len(stamps) == 0:
		return "none"
	case len(stamps) <= most:
		return strings.Join(stamps, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(stamps[:most], ", "), len(stamps)-most)
}
