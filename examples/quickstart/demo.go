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

// A demo runs and prints the chapters of the demonstration.
type demo struct {
	out      io.Writer
	dir      string
	service  *service
	chapters int

	snapshot *backup.Metadata // set by create
}

func (d *demo) chapter(title string) {
	d.chapters++
	fmt.Fprintf(d.out, "\n%d. %s\n\n", d.chapters, title)
}

// say prints one or more lines with the same indentation.
func (d *demo) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	fmt.Fprintln(d.out, "  ", strings.ReplaceAll(text, "\n", "\n   "))
}

func (d *demo) gap() { fmt.Fprintln(d.out) }

// short returns path relative to the demo's directory.
func (d *demo) short(path string) string {
	if rel, err := filepath.Rel(d.dir, path); err == nil {
		return filepath.ToSlash(rel)
	}
	return path
}

func (d *demo) introduce(context.Context) error {
	opts := d.service.options
	d.chapter("A service is running")
	d.say("Its machine store is in %s:", d.dir)
	d.say("  %-29s SQLite in WAL mode; a writer moves money between %d\n"+
		"%32saccounts all the time, and their sum is always 0",
		d.short(opts.DatabasePath), accounts, "")
	d.say("  %-29s the project registry", d.short(opts.RegistryPath))
	d.say("  %-29s a Chroma directory; an ingestion writes batches to it\n"+
		"%32sand to the database while it holds a mutex", d.short(opts.ChromaPath)+"/", "")
	return nil
}

func (d *demo) create(ctx context.Context) error {
	d.chapter("CreateRuntimeBackup takes a snapshot while the service runs")

	// The guard is the mutex that the ingestion holds. The timeline records when
	// it is locked and unlocked, among the phases that the library reports.
	var events timeline
	guard := backup.SyncLocker(&d.service.ingestion)
	opts := d.service.options
	opts.Locker = backup.LockerFunc(func(ctx context.Context) (func(), error) {
		unlock, err := guard.Lock(ctx)
		if err != nil {
			return nil, err
		}
		events.begin("ingestion is paused")
		return func() {
			events.begin("ingestion continues")
			unlock()
		}, nil
	})
	opts.OnProgress = func(p backup.Progress) { events.add(string(p.Phase)) }

	before, err := readState(ctx, d.service.db)
	if err != nil {
		return err
	}
	events.begin("before the guard")
	d.snapshot, err = backup.CreateRuntimeBackup(ctx, opts)
	if err != nil {
		return err
	}
	after, err := readState(ctx, d.service.db)
	if err != nil {
		return err
	}

	m := d.snapshot
	d.say("Created %s: database %s, registry, Chroma %d files with %s.", m.Stamp,
		size(m.DBSizeBytes), m.ChromaSnapshotFiles, size(m.ChromaSnapshotBytes))
	d.gap()
	d.say("The phases, in order:\n%s", events.String())
	d.gap()
	return d.compare(ctx, before, after)
}

// compare shows that the snapshot is from a single moment between before and
// after.
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
	d.say("            So the writer continued, with %s transfers during the call.",
		humanize.Comma(after.transfers-before.transfers))
	d.say("Balances:   their sum in the snapshot is %d, so it contains no half transaction.", got.sum)

	return d.sayBatch(got, d.snapshot.ChromaSnapshotPath)
}

// sayBatch prints the last batch in each of the three places.
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
	d.chapter("ListRuntimeBackups lists the snapshots")
	snapshots, err := backup.ListRuntimeBackups(ctx, d.service.options)
	if err != nil {
		return err
	}
	for _, s := range snapshots {
		d.say("%s  taken %s, in %s", s.Stamp, s.Metadata.CreatedAt.Format("2006-01-02 15:04:05 MST"), d.short(s.Path))
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
			"SHA256SUMS":           "the SHA-256 of every other file",
			"backup-metadata.json": "what the snapshot includes, and when it was taken",
			"chroma/":              "a copy of the Chroma directory",
			"config/":              "the registry",
			"db/":                  "the database, ready to open",
		}[name]
		d.say("  %-22s %s", name, about)
	}
	return nil
}

func (d *demo) validate(ctx context.Context) error {
	d.chapter("ValidateBackup reports whether the snapshot is intact")
	report, err := backup.ValidateBackup(ctx, d.service.options, d.snapshot.Stamp)
	if err != nil {
		return err
	}
	d.say("%s: valid %t, database %t, registry %t, Chroma %t, problems %d",
		report.Stamp, report.Valid, report.DBOK, *report.RegistryOK, *report.ChromaOK, len(report.Problems))
	return nil
}

// damage validates damaged copies of the snapshot.
func (d *demo) damage(ctx context.Context) error {
	d.chapter("ValidateBackup finds damage")
	opts := backup.Options{BackupDir: filepath.Join(d.dir, "elsewhere")}
	db := filepath.Join("db", filepath.Base(d.service.options.DatabasePath))
	for _, c := range []struct {
		what string
		do   func(snapshot string) error
	}{
		{"An undamaged copy in another directory", func(string) error { return nil }},
		{"A copy with one bit flipped in a text in the database, which SQLite's own check can't detect", func(snapshot string) error {
			return flipBit(filepath.Join(snapshot, db), "opening balance")
		}},
		{"A copy with one bit flipped in a vector index of Chroma", func(snapshot string) error {
			indexes, err := filepath.Glob(filepath.Join(snapshot, "chroma", "*", "data_level0.bin"))
			if err != nil || len(indexes) == 0 {
				return fmt.Errorf("no vector index in %s: %w", snapshot, err)
			}
			return flipBit(indexes[0], "")
		}},
		{"A copy without its registry, and with an unknown file", func(snapshot string) error {
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

// restore destroys the store and restores the snapshot.
func (d *demo) restore(ctx context.Context) error {
	d.chapter("The store is destroyed, and RestoreRuntimeBackup restores it")
	opts := d.service.options
	stopped, err := stateOf(ctx, opts.DatabasePath)
	if err != nil {
		return err
	}
	d.say("The service has stopped. A faulty script deletes all transfers, the Chroma directory and the registry.")
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
	d.say("Transfers:  %s when the service stopped, %s after the script, %s now, as in the snapshot.",
		humanize.Comma(stopped.transfers), humanize.Comma(destroyed.transfers), humanize.Comma(restored.transfers))
	if err := d.sayBatch(restored, opts.ChromaPath); err != nil {
		return err
	}
	d.say("What the script had left is saved as snapshot %s, so the restore lost nothing.", result.SafetyStamp)
	return nil
}

// destroy damages the store as a faulty script might.
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
		d.say("The store and its snapshots remain in %s.", d.dir)
		return
	}
	d.say("All files were in a temporary directory, which is now removed. Use -keep DIR to keep them.")
}

// flipBit flips the lowest bit of the first byte of text in file.
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

// A timeline records events in lines. The first element of a line is its title.
type timeline struct{ lines [][]string }

// begin starts a new line.
func (t *timeline) begin(title string) { t.lines = append(t.lines, []string{title}) }

// add appends event to the last line, unless the line already ends with it.
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
