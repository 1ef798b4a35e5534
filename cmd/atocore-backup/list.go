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

type listCommand struct {
	storeFlags

	Last    uint `placeholder:"N" help:"List the newest N snapshots only."`
	Reverse bool `short:"r" help:"List the newest snapshot first. The default is the oldest, as in restic, so that the newest is above the prompt."`
}

// Help returns the details for the help of this command.
func (c *listCommand) Help() string {
	return `Prints a line for each snapshot, oldest first: its stamp, its age, the size of its database and Chroma copies, when and how it was last validated, whether it is protected from prunes, and its note.

Nothing is checked; VERIFIED is what validate, drill, restore or create --verify found at that time. In a pipe, or with --json, the result is a JSON array with everything that the snapshots record about themselves.

Example: ` + commandName + ` list --last 20 --backup-dir /srv/backup`
}

func (c *listCommand) Run(s *session) error {
	if err := joinFor("list", c.needBackupDir()); err != nil {
		return err
	}
	opts := c.options()
	s.watch(&opts)
	snapshots, err := backup.ListRuntimeBackups(s.ctx, opts)
	if snapshots == nil {
		return err
	}
	if err := joinFor("list", cmp.Or(err, c.checkExists())); isMissing(err) {
		return err
	}
	all := snapshots
	if c.Last > 0 {
		snapshots = snapshots[max(0, len(snapshots)-int(min(c.Last, 1<<30))):]
	}
	if c.Reverse {
		slices.Reverse(snapshots)
	}
	if err := s.writeResult(array(snapshots)); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	if len(snapshots) > 0 {
		s.writeTable(listTable(snapshots, backup.SystemClock().Now()))
	}
	s.tell("%s in %s%s.", count(int64(len(all)), "snapshot"), c.BackupDir, withoutMetadata(all))
	return err // ErrRestoreUnfinished, or nil
}

// listTable returns the table of a list.
func listTable(snapshots []backup.Snapshot, now time.Time) *table {
	t := &table{columns: []column{
		{head: "STAMP", least: len("20060102T150405Z-1000")},
		{head: "AGE", right: true, rank: 2},
		{head: "SIZE", right: true, rank: 4},
		{head: "DATABASE", short: "DB", right: true, rank: 7},
		{head: "CHROMA", right: true, rank: 6},
		{head: "VERIFIED", rank: 1},
		{head: "PROTECTED", short: "PROT", rank: 3},
		{head: "STORE", least: 8, rank: 8},
		{head: "NOTE", least: 8, rank: 5},
	}}
	stores := make(map[string]bool)
	for _, snapshot := range snapshots {
		store := storeOf(snapshot.Metadata)
		if store != "" {
			stores[store] = true
		}
		row := []cell{{text: snapshot.Stamp}, {text: "-"}, {text: "-"}, {text: "-"}, {text: "-"}, verdictCell(snapshot, now), {}, {text: store}, noteCell(snapshot)}
		if m := snapshot.Metadata; m != nil {
			row[1].text = age(now.Sub(m.CreatedAt))
			row[2].text = size(snapshotSize(m))
			row[3].text = size(m.DBSizeBytes)
			if m.ChromaSnapshotPath != "" {
				row[4].text = size(m.ChromaSnapshotBytes)
			}
		}
		if snapshot.Protected {
			row[6].text = "yes"
		}
		t.rows = append(t.rows, row)
	}
	if len(stores) < 2 {
		t.remove(7)
	}
	return t
}

// remove removes a column.
func (t *table) remove(i int) {
	t.columns = slices.Delete(t.columns, i, i+1)
	for r := range t.rows {
		t.rows[r] = slices.Delete(t.rows[r], i, i+1)
	}
}

// storeOf names the store that a snapshot records, or is empty if it records
// none.
func storeOf(m *backup.Metadata) string {
	if m == nil || m.SourceDBPath == "" {
		return ""
	}
	return m.SourceHost + ":" + m.SourceDBPath
}

// verdictCell says what is known about a snapshot.
func verdictCell(snapshot backup.Snapshot, now time.Time) cell {
	switch {
	case snapshot.Metadata == nil:
		return cell{"UNREADABLE", true}
	case snapshot.Verified == nil:
		return cell{"never", false}
	case *snapshot.Verified:
		return cell{"valid " + age(now.Sub(snapshot.VerifiedAt)), false}
	}
	return cell{"NOT VALID " + age(now.Sub(snapshot.VerifiedAt)), true}
}

// noteCell returns the note of a snapshot, after what there is to say about it.
func noteCell(snapshot backup.Snapshot) cell {
	var texts []string
	switch m := snapshot.Metadata; {
	case !snapshot.HasMetadata:
		texts = append(texts, "no metadata")
	case m == nil:
		texts = append(texts, "metadata: "+snapshot.MetadataError)
	case m.SafetyOf != "":
		texts = append(texts, "taken before the restore of "+m.SafetyOf)
	}
	if snapshot.Note != "" {
		texts = append(texts, snapshot.Note)
	}
	return cell{text: strings.Join(texts, "; ")}
}

// snapshotSize returns the size of a snapshot without its registry, which does
// not record its own.
func snapshotSize(m *backup.Metadata) int64 {
	const most = 1 << 61 // a snapshot may record anything
	return min(max(m.DBSizeBytes, 0), most) + min(max(m.ChromaSnapshotBytes, 0), most)
}

// age returns a length of time in one word. An m could be months, so minutes are
// min.
func age(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < 0:
		return "future"
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dmin", d/time.Minute)
	case d < 2*day:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d < 2*365*day:
		return fmt.Sprintf("%dd", d/day)
	}
	return fmt.Sprintf("%dy", d/(365*day))
}

// withoutMetadata returns a note on the snapshots without readable metadata,
// which are easy to overlook in a long list. It is empty if there are none.
func withoutMetadata(snapshots []backup.Snapshot) string {
	n := 0
	for _, snapshot := range snapshots {
		if snapshot.Metadata == nil {
			n++
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(", %d of them without readable metadata", n)
}

func size(bytes int64) string { return humanize.Bytes(uint64(max(bytes, 0))) }

func count(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return humanize.Comma(n) + " " + noun
}
