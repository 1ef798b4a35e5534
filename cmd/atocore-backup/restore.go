package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/atocore/backup"
)

type restoreCommand struct {
	storeFlags

	Stamp     string  `arg:"" help:"The snapshot's name, as create and list print it, or latest."`
	Into      *string `placeholder:"DIR" help:"Restore into DIR instead of the store's places: database and registry under their own names, Chroma as DIR/chroma."`
	Yes       bool    `help:"Replace what is there without a question."`
	GuardFile *string `placeholder:"PATH" help:"Hold an exclusive flock(2) on PATH, which every writer to the Chroma directory holds too, while the store is replaced."`
}

func (c *restoreCommand) Run(s *session) error {
	if err := c.check(); err != nil {
		return err
	}
	listed := c.options()
	s.watch(&listed)
	snapshot, cutOff, err := s.find(listed, c.Stamp)
	if err != nil {
		return all("restore", err)
	}
	if !isKnown(snapshot) {
		return s.refuse("restore", listed, snapshot.Stamp)
	}
	opts := listed
	if c.Into != nil {
		opts = c.optionsIn(*c.Into, snapshot)
	}
	if err := all("restore", c.needParts(opts, snapshot)...); err != nil {
		return err
	}
	if err := c.consent(s, opts, snapshot, cutOff); err != nil {
		return all("restore", err)
	}
	if c.GuardFile != nil {
		opts.Locker = flockGuard(*c.GuardFile, s.say)
	}
	result, err := backup.RestoreRuntimeBackup(s.ctx, opts, snapshot.Stamp)
	if isInvalid(err) {
		return s.refuse("restore", listed, snapshot.Stamp)
	}
	if err != nil {
		return err
	}
	if err := s.deliver(document(result)); err != nil {
		return fmt.Errorf("restore: snapshot %s is restored: %w", result.Stamp, err)
	}
	c.tell(s, opts, snapshot, result)
	return nil
}

func (c *restoreCommand) check() error {
	faults := []error{c.needBackupDir(), notEmpty(c.Into, "--into"), notEmpty(c.GuardFile, "--guard-file")}
	if c.Into == nil {
		faults = append(faults, c.needDB())
	}
	return all("restore", faults...)
}

// needParts asks for the places of what the snapshot has.
func (c *restoreCommand) needParts(opts backup.Options, snapshot backup.Snapshot) (faults []error) {
	if snapshot.Metadata.RegistrySnapshotPath != "" && opts.RegistryPath == "" {
		faults = append(faults, c.needRegistry())
	}
	if snapshot.Metadata.ChromaSnapshotPath != "" && opts.ChromaPath == "" {
		faults = append(faults, c.needChroma())
	}
	return faults
}

// find gives the snapshot called stamp, or the newest one for latest. Its
// Metadata are nil if there is no such snapshot or they cannot be read. cutOff
// tells of an earlier restore that is unfinished.
func (s *session) find(opts backup.Options, stamp string) (_ backup.Snapshot, cutOff bool, err error) {
	list, err := backup.ListRuntimeBackups(s.ctx, opts)
	cutOff = errors.Is(err, backup.ErrRestoreUnfinished)
	if err != nil && !cutOff {
		return backup.Snapshot{}, false, err
	}
	named := backup.Snapshot{Stamp: stamp}
	for _, snapshot := range list {
		if snapshot.Stamp == stamp {
			named = snapshot
		}
	}
	if stamp != latest {
		return named, cutOff, nil
	}
	if named.Path != "" {
		return named, cutOff, fmt.Errorf("there is a snapshot called %s, so that it is not clear which one is meant: rename it", latest)
	}
	newest, err := s.newest(list)
	return newest, cutOff, err
}

const latest = "latest"

// newest gives the newest snapshot by the time that it records; of several the
// last by stamp, as list has them. Safety snapshots are of stores that somebody
// wanted to be rid of.
func (s *session) newest(list []backup.Snapshot) (newest backup.Snapshot, err error) {
	var unknown []string
	for _, snapshot := range list {
		switch m := snapshot.Metadata; {
		case m == nil:
			unknown = append(unknown, snapshot.Stamp)
		case m.SafetyOf != "":
		case newest.Metadata == nil || !m.CreatedAt.Before(newest.Metadata.CreatedAt):
			newest = snapshot
		}
	}
	passed := ""
	if len(unknown) > 0 {
		passed = fmt.Sprintf("; without readable metadata: %s", strings.Join(unknown, ", "))
	}
	if newest.Metadata == nil {
		return newest, fmt.Errorf("there is no snapshot that could be the latest%s", passed)
	}
	s.say("The latest snapshot is %s, made %s%s.", newest.Stamp, moment(newest.Metadata.CreatedAt), passed)
	return newest, nil
}

func moment(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }

// isInvalid tells of an error that says nothing but that the snapshot is not to
// be trusted.
func isInvalid(err error) bool {
	return errors.Is(err, backup.ErrInvalidBackup) && !errors.Is(err, backup.ErrRestoreUnfinished)
}

// refuse says why a snapshot that is not valid is not restored.
func (s *session) refuse(command string, opts backup.Options, stamp string) error {
	report, verdict := backup.ValidateBackup(s.ctx, opts, stamp)
	switch {
	case report == nil:
		return verdict
	case report.Valid:
		return errors.Join(verdict, fmt.Errorf("%s: snapshot %q is valid by now: try again", command, stamp))
	}
	if err := s.deliverReport(command, report); err != nil {
		return err
	}
	return verdict
}

// optionsIn puts everything into dir, under the names that it has in the store
// or had when the snapshot was made.
func (f *storeFlags) optionsIn(dir string, snapshot backup.Snapshot) backup.Options {
	opts := f.options()
	opts.DatabasePath = nameIn(dir, f.DB, snapshot.Metadata.DBSnapshotPath)
	opts.RegistryPath = nameIn(dir, f.Registry, snapshot.Metadata.RegistrySnapshotPath)
	opts.ChromaPath = filepath.Join(dir, "chroma")
	return opts
}

// isKnown tells whether the snapshot is there and says what to restore. If not,
// the validation says what is wrong with it.
func isKnown(snapshot backup.Snapshot) bool {
	return snapshot.Metadata != nil && nameIn("", "", snapshot.Metadata.DBSnapshotPath) != ""
}

// nameIn gives the path in dir of what is at live in the store, and was
// recorded in a snapshot, which is untrusted.
func nameIn(dir, live, recorded string) string {
	name := filepath.Base(cmp.Or(live, recorded))
	if recorded == "" || name == "." || !filepath.IsLocal(name) {
		return ""
	}
	return filepath.Join(dir, name)
}

// A part is one of the things that a restore replaces.
type part struct{ what, path, by string }

// inTheWay lists what is there and would be replaced. It opens no file: closing
// a live database drops locks.
func inTheWay(opts backup.Options, m *backup.Metadata) (parts []part) {
	for _, path := range []string{opts.DatabasePath, opts.DatabasePath + "-wal", opts.DatabasePath + "-journal"} {
		if isThere(path) {
			parts = append(parts, part{"the database", opts.DatabasePath, size(m.DBSizeBytes)})
			break
		}
	}
	if m.RegistrySnapshotPath != "" && isThere(opts.RegistryPath) {
		parts = append(parts, part{"the registry", opts.RegistryPath, "the snapshot's"})
	}
	if m.ChromaSnapshotPath != "" && hasEntries(opts.ChromaPath) {
		parts = append(parts, part{"the Chroma directory", opts.ChromaPath, fmt.Sprintf("%s with %s", count(m.ChromaSnapshotFiles, "file"), size(m.ChromaSnapshotBytes))})
	}
	return parts
}

func isThere(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

func hasEntries(dir string) bool {
	entries, err := os.ReadDir(dir)
	return len(entries) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist)
}

// consent makes sure that somebody wants what is there to be replaced.
func (c *restoreCommand) consent(s *session, opts backup.Options, snapshot backup.Snapshot, cutOff bool) error {
	parts := inTheWay(opts, snapshot.Metadata)
	if c.Yes || len(parts) == 0 && !cutOff {
		return nil
	}
	if !s.canAsk() {
		if len(parts) == 0 {
			return errors.New("an earlier restore that was cut off is finished or undone first: say --yes if that is meant")
		}
		names := make([]string, len(parts))
		for i, p := range parts {
			names[i] = p.what + " " + p.path
		}
		return fmt.Errorf("%s would be replaced: say --yes if that is meant", strings.Join(names, ", "))
	}
	if cutOff {
		s.say("An earlier restore was cut off here. It is finished or undone first.")
	}
	s.say("Snapshot %s, made %s, will replace", snapshot.Stamp, moment(snapshot.Metadata.CreatedAt))
	for _, p := range parts {
		s.say("  %s %s by %s", p.what, p.path, p.by)
	}
	s.say("A snapshot of what is there now is taken first.")
	answer, err := s.ask("Type yes to go on:")
	if err == nil && answer != "yes" {
		err = errors.New("not confirmed; nothing was done")
	}
	return err
}

// tell says what was done, and what was not.
func (c *restoreCommand) tell(s *session, opts backup.Options, snapshot backup.Snapshot, r *backup.RestoreResult) {
	if r.Recovered != "" {
		s.say("An earlier restore that had been cut off was %s first.", r.Recovered)
	}
	s.say("Snapshot %s is restored: %s, %s, compared with the snapshot.", r.Stamp, count(r.Files, "file"), size(r.Bytes))
	for _, p := range []struct{ what, path, restored string }{
		{"registry", opts.RegistryPath, r.RegistryPath},
		{"Chroma directory", opts.ChromaPath, r.ChromaPath},
	} {
		if p.restored == "" && p.path != "" && isThere(p.path) {
			s.say("The snapshot has no %s: %s is as it was.", p.what, p.path)
		}
	}
	if r.SafetyStamp != "" {
		s.say("What was there before is snapshot %s.", r.SafetyStamp)
	}
	for _, path := range r.SetAside {
		s.say("What was there before could not be taken into a snapshot; it is in %s.", path)
	}
}
