package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/dustin/go-humanize"

	"github.com/atocore/backup"
)

// A demo tells what a service and its backups do, chapter by chapter.
type demo struct {
	out      io.Writer
	dir      string
	service  *service
	chapters int

	snapshot *backup.Metadata // once there is one
}

func (d *demo) chapter(title string) {
	d.chapters++
	fmt.Fprintf(d.out, "\n%d. %s\n\n", d.chapters, title)
}

// say prints one line or more, indented alike.
func (d *demo) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintln(d.out, "  ", strings.ReplaceAll(text, "\n", "\n   "))
}

func (d *demo) gap() { fmt.Fprintln(d.out) }

// short gives a path below the demo's directory.
func (d *demo) short(path string) string {
	if rel, err := filepath.Rel(d.dir, path); err == nil {
		return filepath.ToSlash(rel)
	}
	return path
}

func (d *demo) introduce(context.Context) error {
	opts := d.service.options
	d.chapter("A service is at work")
	d.say("Its machine store, in %s:", d.dir)
	d.say("  %-29s SQLite in WAL mode: a writer moves money between %d\n"+
		"%32saccounts all the time; each transaction leaves a sum of 0",
		d.short(opts.DatabasePath), accounts, "")
	d.say("  %-29s the project registry", d.short(opts.RegistryPath))
	d.say("  %-29s a Chroma directory; an ingestion writes to it and to\n"+
		"%32sthe database, batch by batch, while it holds a mutex", d.short(opts.ChromaPath)+"/", "")
	return nil
}

func (d *demo) create(ctx context.Context) error {
	d.chapter("CreateRuntimeBackup takes a snapshot meanwhile")

	// The guard is the mutex that the ingestion holds. Who holds it when is
	// noted between the phases that the library reports.
	var events timeline
	guard := backup.SyncLocker(&d.service.ingestion)
	opts := d.service.options
	opts.Locker = backup.LockerFunc(func(ctx context.Context) (func(), error) {
		unlock, err := guard.Lock(ctx)
		if err != nil {
			return nil, err
		}
		events.begin("ingestion is held off")
		return func() {
			events.begin("ingestion goes on")
			unlock()
		}, nil
	})
	opts.OnProgress = func(p backup.Progress) { events.add(string(p.Phase)) }

	before, err := readState(ctx, d.service.db)
	if err != nil {
		return err
	}
	events.begin("everything goes on")
	d.snapshot, err = backup.CreateRuntimeBackup(ctx, opts)
	if err != nil {
		return err
	}
	after, err := readState(ctx, d.service.db)
	if err != nil {
		return err
	}

	m := d.snapshot
	d.say("Made %s: database %s, registry, Chroma %d files with %s.", m.Stamp,
		size(m.DBSizeBytes), m.ChromaSnapshotFiles, size(m.ChromaSnapshotBytes))
	d.gap()
	d.say("In this order:\n%s", events.String())
	d.gap()
	return d.compare(ctx, before, after)
}

// compare shows that the snapshot is one moment between before and after.
func (d *demo) compare(ctx context.Context, before, after state) error {
	db, err := openDatabase(d.snapshot.DBSnapshotPath, "mode=ro", "immutable=1")
	if err != nil {
		return err
	}
	defer db.Close()
	got, err := readState(ctx, db)
	if err != nil {
		return err
	}
	d.say("Transfers:  %s before, %s in the snapshot, %s after.",
		humanize.Comma(before.transfers), humanize.Comma(got.transfers), humanize.Comma(after.transfers))
	d.say("            So the writer went on, and booked %s more during the call.",
		humanize.Comma(after.transfers-before.transfers))
	d.say("Balances:   their sum in the snapshot is %d, so no transaction is in it by halves.", got.sum)

	return d.sayBatch(got, d.snapshot.ChromaSnapshotPath)
}

// sayBatch tells which batch each of the three places has for the last.
func (d *demo) sayBatch(st state, chroma string) error {
	documents, err := os.ReadFile(filepath.Join(chroma, ingestedDir, documentsFile))
	if err != nil {
		return err
	}
	vectors, err := os.ReadFile(filepath.Join(chroma, ingestedDir, vectorsFile))
	if err != nil {
		return err
	}
	d.say("Ingestion:  the last batch is %d in the database, %s in Chroma's documents, %s in its vectors.",
		st.batch, documents, vectors)
	return nil
}

func (d *demo) list(ctx context.Context) error {
	d.chapter("ListRuntimeBackups shows what there is")
	snapshots, err := backup.ListRuntimeBackups(ctx, d.service.options)
	if err != nil {
		return err
	}
	for _, s := range snapshots {
		d.say("%s  of %s, in %s", s.Stamp, s.Metadata.CreatedAt.Format("2006-01-02 15:04:05 MST"), d.short(s.Path))
		if err := d.listFiles(s.Path); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) listFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := entry.Name()
		if entry.IsDir() {
			name += "/"
		}
		about := map[string]string{
			"SHA256SUMS":           "a SHA-256 of every other file",
			"backup-metadata.json": "what was included, and when",
			"chroma/":              "the Chroma directory as it was",
			"config/":              "the registry",
			"db/":                  "the database, ready to open",
		}[name]
		d.say("  %-22s %s", name, about)
	}
	return nil
}

func (d *demo) validate(ctx context.Context) error {
	d.chapter("ValidateBackup says whether it can be trusted")
	report, err := backup.ValidateBackup(ctx, d.service.options, d.snapshot.Stamp)
	if err != nil {
		return err
	}
	d.say("%s: valid %t, database %t, registry %t, Chroma %t, problems %d",
		report.Stamp, report.Valid, report.DBOK, *report.RegistryOK, *report.ChromaOK, len(report.Problems))
	return nil
}

// damage does to copies of the snapshot what disks and people do.
func (d *demo) damage(ctx context.Context) error {
	d.chapter("Damage is found")
	opts := backup.Options{BackupDir: filepath.Join(d.dir, "elsewhere")}
	db := filepath.Join("db", filepath.Base(d.service.options.DatabasePath))
	for _, c := range []struct {
		what string
		do   func(snapshot string) error
	}{
		{"A copy in another directory, as it is", func(string) error { return nil }},
		{"A copy with one bit flipped in a text of the database, which SQLite's own check can't see", func(snapshot string) error {
			return flipBit(filepath.Join(snapshot, db), "opening balance")
		}},
		{"A copy with one bit flipped in a vector index of Chroma", func(snapshot string) error {
			indexes, err := filepath.Glob(filepath.Join(snapshot, "chroma", "*", "data_level0.bin"))
			if err != nil || len(indexes) == 0 {
				return fmt.Errorf("no vector index in %s: %w", snapshot, err)
			}
			return flipBit(indexes[0], "")
		}},
		{"A copy without its registry, and with a file that nobody put there", func(snapshot string) error {
			registry := filepath.Join(snapshot, "config", filepath.Base(d.service.options.RegistryPath))
			return os.Rename(registry, registry+".old")
		}},
	} {
		d.say("%s:", c.what)
		snapshot := filepath.Join(opts.BackupDir, "snapshots", d.snapshot.Stamp)
		if err := os.CopyFS(snapshot, os.DirFS(d.snapshot.BackupRoot)); err != nil {
			return err
		}
		if err := c.do(snapshot); err != nil {
			return err
		}
		report, err := backup.ValidateBackup(ctx, opts, d.snapshot.Stamp)
		switch {
		case err == nil:
			d.say("  valid")
		case errors.Is(err, backup.ErrInvalidBackup):
			for _, problem := range report.Problems {
				d.say("  %s", problem)
			}
		default:
			return err
		}
		if err := os.RemoveAll(opts.BackupDir); err != nil {
			return err
		}
	}
	return nil
}

// restore brings the store back after an accident.
func (d *demo) restore(ctx context.Context) error {
	d.chapter("The store is destroyed, and RestoreRuntimeBackup brings it back")
	opts := d.service.options
	stopped, err := stateOf(ctx, opts.DatabasePath)
	if err != nil {
		return err
	}
	d.say("The service has stopped. A script deletes all transfers, and Chroma's and the registry's files.")
	if err := destroy(ctx, opts); err != nil {
		return err
	}
	destroyed, err := stateOf(ctx, opts.DatabasePath)
	if err != nil {
		return err
	}

	result, err := backup.RestoreRuntimeBackup(ctx, opts, d.snapshot.Stamp)
	if err != nil {
		return err
	}
	restored, err := stateOf(ctx, opts.DatabasePath)
	if err != nil {
		return err
	}
	d.say("Restored %s: %d files with %s, compared with the snapshot.", result.Stamp, result.Files, size(result.Bytes))
	d.gap()
	d.say("Transfers:  %s when the service stopped, %s after the script, %s now: those of the snapshot.",
		humanize.Comma(stopped.transfers), humanize.Comma(destroyed.transfers), humanize.Comma(restored.transfers))
	if err := d.sayBatch(restored, opts.ChromaPath); err != nil {
		return err
	}
	d.say("What the script had left is now snapshot %s: no restore loses anything.", result.SafetyStamp)
	return nil
}

// destroy does to a store what a wrong script does.
func destroy(ctx context.Context, opts backup.Options) error {
	db, err := openDatabase(opts.DatabasePath)
	if err != nil {
		return err
	}
	defer db.Close()
	if _, err := db.ExecContext(ctx, "DELETE FROM transfer; DELETE FROM ingestion"); err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(opts.ChromaPath), os.Remove(opts.RegistryPath))
}

func (d *demo) farewell(kept bool) {
	d.gap()
	if kept {
		d.say("The store and its snapshots stay in %s.", d.dir)
		return
	}
	d.say("All of this was in a temporary directory, which is removed now; -keep DIR keeps it.")
}

// flipBit flips the lowest bit of the first byte of text in a file.
func flipBit(file, text string) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	at := bytes.Index(data, []byte(text))
	if at < 0 {
		return fmt.Errorf("%s has no %q", file, text)
	}
	data[at] ^= 1
	return os.WriteFile(file, data, 0o600)
}

// A timeline is what happened, line by line.
type timeline struct{ lines [][]string }

// begin starts a line.
func (t *timeline) begin(title string) { t.lines = append(t.lines, []string{title}) }

// add appends to the line what it does not end with yet.
func (t *timeline) add(event string) {
	line := &t.lines[len(t.lines)-1]
	if (*line)[len(*line)-1] != event {
		*line = append(*line, event)
	}
}

func (t *timeline) String() string {
	var b strings.Builder
	for _, line := range t.lines {
		fmt.Fprintf(&b, "  %-22s %s\n", line[0]+":", strings.Join(line[1:], ", "))
	}
	return strings.TrimRight(b.String(), "\n")
}

func size(bytes int64) string { return humanize.Bytes(uint64(bytes)) }
