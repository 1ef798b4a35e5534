package backuphttp

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/atocore/backup"
)

// pageRows is how many snapshots the page shows unless it is asked for all, so that
// a directory with thousands costs a phone no more than one with hundreds.
const pageRows = 200

// A pageInput is what the page is made from.
type pageInput struct {
	own   func(*backup.Metadata) bool // reports whether a snapshot is of the handler's store
	base  string                      // what relative addresses begin with, "./" for example
	opts  *backup.Options
	cfg   *Config
	list  []backup.Snapshot // oldest first
	fault error             // came with the list, or instead of it
	now   time.Time
	free  int64           // bytes; -1 if unknown
	all   bool            // show every snapshot
	ops   []operationJSON // those that run, and the last ones that ended, newest first
}

// A pageView is what the template shows. Its texts may be hostile: the template
// escapes them, and visible makes characters visible that would reorder or hide
// others.
type pageView struct {
	Base       string
	Store      string // whose snapshots these are; empty if unknown
	Now        time.Time
	Allow      pageAllowed
	Verdict    pageVerdict
	Listed     bool          // the snapshots could be listed
	Newest     *pageSnapshot // the newest that a restore would take; nil if there is none
	Verified   *pageSnapshot // the newest that was found valid
	Count      int
	Unreadable int
	Bytes      int64
	Free       int64      // -1 if unknown
	Growth     *pageChart // nil if there are fewer than two points
	Snapshots  []pageSnapshot
	Hidden     int  // how many older ones are left out
	All        bool // the page was asked for all
	Running    []pageOperation
	Ended      []pageOperation
	// IncludeChroma is what the form of a create begins with.
	IncludeChroma bool
	Keep          []pageRule
	Within        string // the rule of Retention.KeepWithin and its like
	Kinds         map[string]string
	Phases        map[string]string
}

// pageAllowed says which buttons the page has.
type pageAllowed struct {
	Restore, Remove, Protect, Prune, Import bool
	Chroma                                  bool // a create may include the Chroma directory
}

// A pageRule is one rule of a prune.
type pageRule struct {
	Name, Label string
	Value       int
}

// A pageVerdict is the judgement at the top of the page.
type pageVerdict struct {
	Level    string // "good", "warn" or "bad"
	Headline string
	Reasons  []string
}

// A pageSnapshot is one row.
type pageSnapshot struct {
	Stamp     string // visible
	Path      string // the stamp as part of an address
	CreatedAt time.Time
	Known     bool // there are metadata
	Fault     string
	Bytes     int64
	Parts     []pagePart
	Verified  string // "valid", "invalid" or "never"
	At        time.Time
	Protected bool
	Safety    string // the stamp of the snapshot whose restore took this one
	Note      string
	LongNote  bool // the note is folded
	Brief     string
	Store     string
	Other     bool // it is of another store
}

type pagePart struct {
	Name  string
	Bytes int64 // -1 if unknown
	Files int
}

// newPageView puts together what the page shows.
func newPageView(in pageInput) *pageView {
	v := &pageView{Base: in.base, Now: in.now.UTC(), Free: in.free, IncludeChroma: in.opts.IncludeChroma, Allow: pageAllowed{
		in.cfg.AllowRestore, in.cfg.AllowRemove, in.cfg.AllowProtect, in.cfg.AllowPrune, in.cfg.MaxImport > 0, in.opts.ChromaPath != "" && mayIncludeChroma(in.opts)}, All: in.all}
	v.Keep, v.Within = pageRules(in.cfg.Keep), pageWithin(in.cfg.Keep)
	v.Running, v.Ended = pageOperations(in.ops)
	v.Listed = in.fault == nil || errors.Is(in.fault, backup.ErrRestoreUnfinished)
	v.Kinds, v.Phases = pageKinds(), pagePhases()
	rows := make([]pageSnapshot, 0, len(in.list))
	for _, s := range slices.Backward(in.list) { // the newest first
		row := newPageSnapshot(s)
		row.Other = s.Metadata != nil && !in.own(s.Metadata)
		rows = append(rows, row)
		if !row.Other {
			v.Store = cmp.Or(v.Store, row.Store)
		}
	}
	v.Store = cmp.Or(v.Store, visible(in.opts.DatabasePath))
	own := slices.DeleteFunc(slices.Clone(rows), func(r pageSnapshot) bool { return r.Other })
	v.summarize(own, in)
	v.Snapshots = rows
	if !in.all && len(rows) > pageRows {
		v.Snapshots, v.Hidden = rows[:pageRows], len(rows)-pageRows
	}
	return v
}

func newPageSnapshot(s backup.Snapshot) pageSnapshot {
	r := pageSnapshot{
		Stamp: visible(s.Stamp), Path: url.PathEscape(s.Stamp), Verified: "never", At: s.VerifiedAt.UTC(),
		Protected: s.Protected, Note: visible(s.Note), Fault: visible(s.MetadataError),
	}
	if s.Verified != nil {
		r.Verified = map[bool]string{true: "valid", false: "invalid"}[*s.Verified]
	}
	r.Brief, r.LongNote = brief(r.Note)
	m := s.Metadata
	if m == nil {
		if !s.HasMetadata {
			r.Fault = "there is no backup-metadata.json"
		}
		return r
	}
	r.Known, r.CreatedAt, r.Safety = true, m.CreatedAt.UTC(), visible(m.SafetyOf)
	if m.SourceDBPath != "" {
		r.Store = visible(m.SourceHost + ":" + m.SourceDBPath)
	}
	const most = 1 << 61 // a snapshot may record anything
	database, chroma := min(max(m.DBSizeBytes, 0), most), min(max(m.ChromaSnapshotBytes, 0), most)
	r.Bytes = database + chroma
	r.Parts = append(r.Parts, pagePart{"Database", database, 0})
	if m.RegistrySnapshotPath != "" {
		r.Parts = append(r.Parts, pagePart{"Registry", -1, 0})
	}
	if m.ChromaSnapshotPath != "" {
		r.Parts = append(r.Parts, pagePart{"Chroma", chroma, int(min(max(m.ChromaSnapshotFiles, 0), 1<<30))})
	}
	return r
}

// summarize finds what is at the top of the page in the rows of the store, which
// are newest first by stamp.
func (v *pageView) summarize(own []pageSnapshot, in pageInput) {
	var regular []pageSnapshot
	future := 0
	for _, r := range own {
		if !r.Known {
			v.Unreadable++
			continue
		}
		v.Count++
		v.Bytes = min(v.Bytes+r.Bytes, 1<<61)
		switch {
		case r.CreatedAt.After(v.Now):
			future++ // the work of a wrong clock
		case r.Safety == "":
			regular = append(regular, r)
		}
	}
	slices.SortStableFunc(regular, func(a, b pageSnapshot) int { return b.CreatedAt.Compare(a.CreatedAt) })
	for i := range regular {
		r := &regular[i]
		if v.Newest == nil && r.Verified != "invalid" {
			v.Newest = r
		}
		if v.Verified == nil && r.Verified == "valid" {
			v.Verified = r
		}
	}
	v.Growth = newPageChart(regular)
	v.judge(regular, future, in)
}

// judge decides on the verdict.
func (v *pageView) judge(regular []pageSnapshot, future int, in pageInput) {
	faults, remarks := v.faults(regular, in), v.remarks(future, in)
	v.Verdict = pageVerdict{Reasons: append(faults, remarks...)}
	switch {
	case len(faults) > 0:
		v.Verdict.Level, v.Verdict.Headline = "bad", "The backups need attention"
	case v.Verified != v.Newest:
		v.Verdict.Level, v.Verdict.Headline = "warn", "Backed up, but not verified"
	case len(remarks) > 0:
		v.Verdict.Level, v.Verdict.Headline = "warn", "Backed up and verified, with something to look at"
	default:
		v.Verdict.Level, v.Verdict.Headline = "good", "Backed up and verified"
	}
}

const noneIsValid = "No snapshot is known to be valid."

// faults returns what must be mended before the store is safe.
func (v *pageView) faults(regular []pageSnapshot, in pageInput) (faults []string) {
	switch {
	case !v.Listed:
		return []string{"The snapshots can't be listed: " + visible(in.fault.Error())}
	case in.fault != nil:
		faults = append(faults, "A restore was interrupted. Keep the store closed, and restore a snapshot again.")
	}
	switch {
	case v.Newest == nil:
		faults = append(faults, "There is no snapshot that could be restored.")
	case in.cfg.MaxAge > 0 && v.Now.Sub(v.Newest.CreatedAt) > in.cfg.MaxAge:
		faults = append(faults, fmt.Sprintf("The newest snapshot is older than %s.", words(in.cfg.MaxAge)))
	}
	if len(regular) > 0 && regular[0].Verified == "invalid" {
		faults = append(faults, fmt.Sprintf("The newest snapshot, %s, was not valid when it was last checked.", regular[0].Stamp))
	}
	switch {
	case in.cfg.MaxUnverified <= 0 || v.Newest == nil:
	case v.Verified == nil:
		faults = append(faults, noneIsValid)
	case v.Now.Sub(v.Verified.CreatedAt) > in.cfg.MaxUnverified:
		faults = append(faults, fmt.Sprintf("The newest snapshot that was found valid is older than %s.", words(in.cfg.MaxUnverified)))
	}
	return faults
}

// remarks returns what somebody should look at.
func (v *pageView) remarks(future int, in pageInput) (remarks []string) {
	switch {
	case v.Newest == nil:
	case v.Verified == nil:
		if in.cfg.MaxUnverified <= 0 { // else it is a fault
			remarks = append(remarks, noneIsValid)
		}
	case v.Verified != v.Newest:
		remarks = append(remarks, "The newest snapshot has not been validated yet.")
	}
	if v.Unreadable > 0 {
		remarks = append(remarks, fmt.Sprintf("%s without readable metadata.", count(v.Unreadable, "snapshot is", "snapshots are")))
	}
	if future > 0 {
		remarks = append(remarks, fmt.Sprintf("%s dated in the future.", count(future, "snapshot is", "snapshots are")))
	}
	if v.Newest != nil && v.Free >= 0 && v.Free < v.Newest.Bytes {
		remarks = append(remarks, fmt.Sprintf("There is no room for another snapshot like the newest: %s are free.", size(v.Free)))
	}
	for _, op := range in.ops { // newest first
		if op.Kind == "create" && op.EndedAt != nil {
			if op.Problem != nil && op.State != "canceled" {
				remarks = append(remarks, "The last create failed: "+shorten(op.Problem.Detail))
			}
			break
		}
	}
	return remarks
}

// pageRules returns the rules that the form of a prune begins with.
func pageRules(keep backup.Retention) []pageRule {
	return []pageRule{
		{"keep_last", "Newest", keep.KeepLast}, {"keep_hourly", "Hourly", keep.KeepHourly},
		{"keep_daily", "Daily", keep.KeepDaily}, {"keep_weekly", "Weekly", keep.KeepWeekly},
		{"keep_monthly", "Monthly", keep.KeepMonthly}, {"keep_yearly", "Yearly", keep.KeepYearly},
	}
}

// pageWithin returns the rule that keeps everything newer than some time, in the
// form that a request has.
func pageWithin(keep backup.Retention) string {
	var b strings.Builder
	for _, part := range []struct {
		n    int
		unit string
	}{{keep.KeepWithinYears, "y"}, {keep.KeepWithinMonths, "m"}, {keep.KeepWithinDays, "d"}, {int(keep.KeepWithin / time.Hour), "h"}} {
		if part.n != 0 {
			fmt.Fprintf(&b, "%d%s", part.n, part.unit)
		}
	}
	return b.String()
}

// brief returns the beginning of a note that is too long for a row.
func brief(note string) (text string, long bool) {
	const most = 120
	line, _, more := strings.Cut(note, "\n")
	runes := []rune(line)
	if len(runes) > most {
		return string(runes[:most-1]) + "…", true
	}
	return line, more
}

// visible returns s with characters written as escapes that would not be seen, or
// that would change the order of others: controls, and those of Unicode's
// bidirectional algorithm. Line feeds and tabs stay.
func visible(s string) string {
	s = strings.ToValidUTF8(strings.ReplaceAll(s, "\r\n", "\n"), "\uFFFD")
	hides := func(r rune) bool {
		return r != '\n' && r != '\t' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) || unicode.In(r, unicode.Zl, unicode.Zp))
	}
	if !strings.ContainsFunc(s, hides) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if hides(r) {
			fmt.Fprintf(&b, `\u%04x`, r)
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// size returns a number of bytes as people read it, in powers of 1000 as the
// command prints it.
func size(bytes int64) string {
	if bytes < 1000 {
		return fmt.Sprintf("%d B", max(bytes, 0))
	}
	f, unit := float64(bytes), 0
	for f >= 999.5 && unit < len("kMGTPE") {
		f, unit = f/1000, unit+1
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f %cB", f, "kMGTPE"[unit-1])
	}
	return fmt.Sprintf("%.0f %cB", f, "kMGTPE"[unit-1])
}

// ago returns how long before now a time is. The script has the same words.
func ago(at, now time.Time) string {
	d := now.Sub(at)
	switch {
	case d < -time.Minute:
		return "in the future"
	case d < time.Minute:
		return "just now"
	}
	return words(d) + " ago"
}

// words returns a length of time in its largest unit, for example "3 hours".
func words(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Minute:
		return count(int(d/time.Second), "second", "seconds")
	case d < time.Hour:
		return count(int(d/time.Minute), "minute", "minutes")
	case d < 2*day:
		return count(int(d/time.Hour), "hour", "hours")
	case d < 2*365*day:
		return count(int(d/day), "day", "days")
	}
	return count(int(d/(365*day)), "year", "years")
}

// count returns a number with the noun for one or for several.
func count(n int, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits + " " + several
}
