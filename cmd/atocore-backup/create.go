package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/atocore/backup"
)

type createCommand struct {
	storeFlags
	repositoryFlags

	Verify        bool          `help:"Validate the snapshot afterwards, in the same call, and record the verdict."`
	Push          bool          `help:"Copy the snapshot to the repository afterwards, as offsite push does. If that fails, the snapshot stays, and the status is 2."`
	Note          string        `placeholder:"TEXT" help:"Keep TEXT beside the snapshot; list prints it."`
	IncludeChroma bool          `help:"Include the Chroma directory. Nothing may write to it during the copy; see --guard-file."`
	Wait          time.Duration `default:"5m" placeholder:"TIME" help:"Give up after waiting this long for a database that somebody keeps from being read, for a restore that is running, or for the guard file. 0 waits for ever. Default: 5m."`
	GuardFile     *string       `placeholder:"PATH" help:"Hold an exclusive flock(2) on PATH while the store is read. Every writer to the Chroma directory must hold it, too. PATH is created if it does not exist. Used only with --include-chroma. If --guard-file is not given, the caller must keep writers away."`
}

func (c *createCommand) Run(s *session) error {
	if err := c.check(); err != nil {
		return err
	}
	opts := c.options()
	opts.IncludeChroma = c.IncludeChroma
	opts.Verify, opts.Note, opts.Wait = c.Verify, c.Note, waitFor(c.Wait)
	if c.GuardFile != nil {
		opts.Locker = flockGuard(*c.GuardFile, s.say)
	}
	s.watch(&opts)
	s.announceWait(&opts)
	var notes noteCollector
	if opts.Logger == nil {
		opts.Logger = slog.New(&notes)
	}
	meta, err := backup.CreateRuntimeBackup(s.ctx, opts)
	if meta == nil {
		return err
	}
	var pushed *pushedSnapshot
	result := document(meta)
	if c.Push {
		pushed = c.push(s, meta, err)
		result = document(pushed)
	}
	if werr := s.writeResult(result); werr != nil {
		return errors.Join(fmt.Errorf("create: snapshot %s is complete: %w", meta.Stamp, werr), pushed.failure())
	}
	if c.IncludeChroma && !meta.ChromaSnapshotIncluded {
		s.tell("There is no Chroma directory %s; the snapshot does not include it.", c.Chroma)
	}
	if c.Registry != "" && meta.RegistrySnapshotPath == "" {
		s.tell("There is no registry %s; the snapshot does not include it.", c.Registry)
	}
	s.tell("%s", summary(meta))
	var invalid *backup.InvalidBackupError
	switch {
	case errors.As(err, &invalid):
		s.tellReport(invalid.Report)
	case err == nil && c.Verify:
		s.tell("It is valid.")
		for _, note := range notes.texts {
			s.tell("Not checked, or only noted: %s", note)
		}
	}
	if pushed != nil && pushed.Pushed != nil {
		s.tell("%s", pushSummary(pushed.Pushed))
	}
	if failure := pushed.failure(); failure != nil {
		return errors.Join(failure, err)
	}
	return err
}

// A noteCollector is a log handler that collects the notes of a validation. A
// create returns no report if the snapshot is valid.
type noteCollector struct{ texts []string }

// Enabled reports whether notes are logged at this level.
func (c *noteCollector) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn
}

// Handle collects a note, and discards other messages.
func (c *noteCollector) Handle(_ context.Context, record slog.Record) error {
	if record.Message != "snapshot_not_fully_checked" {
		return nil
	}
	var path, detail string
	record.Attrs(func(a slog.Attr) bool {
		switch a.Key {
		case "path":
			path = a.Value.String()
		case "detail":
			detail = a.Value.String()
		}
		return true
	})
	c.texts = append(c.texts, backup.Note{Path: path, Detail: detail}.String())
	return nil
}

// WithAttrs returns c.
func (c *noteCollector) WithAttrs([]slog.Attr) slog.Handler { return c }

// WithGroup returns c.
func (c *noteCollector) WithGroup(string) slog.Handler { return c }

func (c *createCommand) check() error {
	faults := []error{c.needDB(), c.needBackupDir()}
	if c.IncludeChroma {
		faults = append(faults, c.needChroma())
	}
	if c.Wait < 0 {
		faults = append(faults, errors.New("--wait is negative"))
	}
	if c.Push {
		faults = append(faults, c.needRepository())
	}
	return joinFor("create", append(faults, notEmpty(c.GuardFile, "--guard-file"))...)
}

func summary(m *backup.Metadata) string {
	registry, chroma := "no registry", "no Chroma"
	if m.RegistrySnapshotPath != "" {
		registry = "registry"
	}
	if m.ChromaSnapshotIncluded {
		chroma = fmt.Sprintf("Chroma %s %s", count(m.ChromaSnapshotFiles, "file"), size(m.ChromaSnapshotBytes))
	}
	return fmt.Sprintf("Snapshot %s: database %s, %s, %s.", m.Stamp, size(m.DBSizeBytes), registry, chroma)
}
