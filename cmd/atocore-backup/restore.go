package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/sqlitedb"
)

type restoreCommand struct {
	storeFlags

	Stamp string  `arg:"" help:"The name of the snapshot, as printed by create and list, or latest."`
	Into  *string `placeholder:"DIR" help:"Restore into DIR instead of over the store: the database and the registry under their own names (in DIR/db and DIR/config if the names collide), the Chroma directory as DIR/chroma."`
	Only  *string `placeholder:"PARTS" help:"Restore these parts only, separated by commas: database, registry, chroma. The others stay as they are, so the store is a mixture of two points in time afterwards. By default all that the snapshot has."`
	Yes   bool    `help:"Replace existing files without asking."`

	DespiteFindings bool `help:"Restore a snapshot although SQLite, or the JSON check of the registry, objects to its content, if nothing shows damage."`
	FromOtherStore  bool `help:"Replace the store with a snapshot of another store."`

	parts backup.Parts // what Only says

	Wait      time.Duration `default:"5m" placeholder:"TIME" help:"Give up after waiting this long for a create, a prune or another restore that is running, or for the guard file. 0 waits for ever. Default: 5m."`
	GuardFile *string       `placeholder:"PATH" help:"Hold an exclusive flock(2) on PATH while the store is replaced. Every writer to the Chroma directory must hold it, too. PATH is created if it does not exist."`
}

func (c *restoreCommand) Run(s *session) error {
	if err := c.check(); err != nil {
		return err
	}
	listed := c.options()
	listed.RecordVerdicts = true
	s.watch(&listed)
	found, err := s.locate(listed, c.Stamp)
	if err != nil {
		return joinFor("restore", err)
	}
	snapshot, interrupted := found.Snapshot, found.interrupted
	// An interrupted restore is finished or undone even if this snapshot cannot be
	// restored, or is missing together with its disk.
	if !isRestorable(snapshot) && (!interrupted || c.Into != nil) {
		return s.reportInvalid("restore", listed, snapshot.Stamp)
	}
	opts := listed
	if c.Into != nil {
		opts = c.optionsIn(*c.Into, snapshot)
	}
	if err := joinFor("restore", c.needParts(opts, snapshot)...); err != nil {
		return err
	}
	if err := c.confirm(s, opts, found); err != nil {
		return joinFor("restore", err)
	}
	// Whoever names a directory knows that the store is not in it.
	opts.DespiteFindings, opts.FromOtherStore = c.DespiteFindings, c.FromOtherStore || c.Into != nil
	opts.Parts, opts.Wait = c.parts, waitFor(c.Wait)
	s.announceWait(&opts)
	if !c.Yes && s.canAsk() {
		opts.Confirm = func(_ context.Context, plan []backup.RestorePart) error { return c.agree(s, found, plan) }
	}
	result, err := c.replace(s, opts, snapshot.Stamp)
	if s.wantsDespiteFindings(err) {
		opts.DespiteFindings = true
		result, err = c.replace(s, opts, snapshot.Stamp)
	}
	switch {
	case isInvalid(err):
		return s.reportRefused("restore", err)
	case errors.Is(err, backup.ErrOtherStore):
		return fmt.Errorf("%w: give --from-other-store if that is meant", err)
	case err != nil:
		return err
	}
	if err := s.writeResult(document(result)); err != nil {
		return fmt.Errorf("restore: snapshot %s is restored: %w", result.Stamp, err)
	}
	s.summarize(result)
	return nil
}

// replace restores the snapshot to the places in opts, and prints what became of
// an earlier restore that had been interrupted, also if this one fails.
func (c *restoreCommand) replace(s *session, opts backup.Options, stamp string) (*backup.RestoreResult, error) {
	if c.GuardFile != nil {
		opts.Locker = flockGuard(*c.GuardFile, s.say)
	}
	result, err := backup.RestoreRuntimeBackup(s.ctx, opts, stamp)
	if result != nil && result.Recovered != "" {
		s.say("An earlier restore, of snapshot %s, was interrupted; it was %s first.", result.RecoveredStamp, result.Recovered)
		for _, path := range result.SetAside {
			s.say("Files that are in no snapshot were moved to %s.", path)
		}
	}
	return result, err
}

func (c *restoreCommand) check() error {
	faults := []error{c.needBackupDir(), notEmpty(c.Into, "--into"), notEmpty(c.GuardFile, "--guard-file")}
	if c.Wait < 0 {
		faults = append(faults, errors.New("--wait is negative"))
	}
	if c.Into == nil {
		faults = append(faults, c.needDB())
	}
	if c.Only != nil {
		var err error
		c.parts, err = parseParts(*c.Only)
		faults = append(faults, err)
	}
	return joinFor("restore", faults...)
}

// parseParts reads the value of --only.
func parseParts(text string) (parts backup.Parts, err error) {
	for _, name := range strings.Split(text, ",") {
		var found backup.Parts
		for part := backup.PartDatabase; part <= backup.PartChroma; part <<= 1 {
			if name == part.String() {
				found = part
			}
		}
		if found == 0 {
			return 0, fmt.Errorf("--only: %q is no part of a store: give database, registry or chroma, or several, separated by commas", name)
		}
		parts |= found
	}
	return parts, nil
}

// restores reports whether the part is to be restored, if the snapshot has it.
func (c *restoreCommand) restores(part backup.Parts) bool { return c.parts == 0 || c.parts&part != 0 }

// needParts returns an error for each part that the snapshot has and for which
// no path is given.
func (c *restoreCommand) needParts(opts backup.Options, snapshot backup.Snapshot) (faults []error) {
	if snapshot.Metadata == nil {
		return nil
	}
	if c.restores(backup.PartRegistry) && snapshot.Metadata.RegistrySnapshotPath != "" && opts.RegistryPath == "" {
		faults = append(faults, c.needRegistry())
	}
	if c.restores(backup.PartChroma) && snapshot.Metadata.ChromaSnapshotPath != "" && opts.ChromaPath == "" {
		faults = append(faults, c.needChroma())
	}
	return faults
}

// A located snapshot is the one that a command line names.
type located struct {
	backup.Snapshot        // its Metadata is nil if it does not exist or they cannot be read
	interrupted     bool   // an earlier restore is unfinished
	withChroma      string // the newest snapshot with a Chroma copy, if this one is the latest and has none
}

// find returns the snapshot called stamp as locate does.
func (s *session) find(opts backup.Options, stamp string) (_ backup.Snapshot, interrupted bool, err error) {
	found, err := s.locate(opts, stamp)
	return found.Snapshot, found.interrupted, err
}

// locate returns the snapshot called stamp, or the newest one if stamp is
// latest.
func (s *session) locate(opts backup.Options, stamp string) (found located, err error) {
	list, err := backup.ListRuntimeBackups(s.ctx, opts)
	found.interrupted = errors.Is(err, backup.ErrRestoreUnfinished)
	if err != nil && !found.interrupted {
		return located{}, err
	}
	found.Snapshot = backup.Snapshot{Stamp: stamp}
	for _, snapshot := range list {
		if snapshot.Stamp == stamp {
			found.Snapshot = snapshot
		}
	}
	if stamp != latest {
		return found, nil
	}
	if found.Path != "" {
		return found, fmt.Errorf("there is a snapshot called %s, so the name is ambiguous: rename that snapshot", latest)
	}
	newest, err := backup.LatestRuntimeBackup(s.ctx, opts)
	if newest == nil {
		return found, err
	}
	found.Snapshot, found.withChroma = newest.Snapshot, newest.WithChroma
	s.say("The latest snapshot is %s, made %s%s.", found.Stamp, formatTime(found.Metadata.CreatedAt), passedOver(newest.Skipped))
	if found.withChroma != "" {
		s.say("It has no Chroma copy. The newest snapshot that has one is %s.", found.withChroma)
	}
	return found, nil
}

const latest = "latest"

// passedOver lists the snapshots that are newer than the latest one that can be
// restored.
func passedOver(skipped []backup.SkippedSnapshot) string {
	const most = 10
	var texts []string
	for _, s := range skipped[:min(len(skipped), most)] {
		texts = append(texts, fmt.Sprintf("%s (%s)", s.Stamp, s.Reason))
	}
	if len(skipped) > most {
		texts = append(texts, fmt.Sprintf("and %d more", len(skipped)-most))
	}
	if len(texts) == 0 {
		return ""
	}
	return "; passed over: " + strings.Join(texts, ", ")
}

func formatTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }

// isInvalid reports whether err means only that the snapshot is not valid, and
// not also that a restore is unfinished.
func isInvalid(err error) bool {
	return errors.Is(err, backup.ErrInvalidBackup) && !errors.Is(err, backup.ErrRestoreUnfinished)
}

// reportInvalid prints the report of a snapshot that was found not to be valid,
// and returns the validation's error. It validates the snapshot again, because
// the call that failed returned no report.
func (s *session) reportInvalid(command string, opts backup.Options, stamp string) error {
	report, verdict := backup.ValidateBackup(s.ctx, opts, stamp)
	switch {
	case report == nil:
		return verdict
	case report.Valid:
		return errors.Join(verdict, fmt.Errorf("%s: snapshot %q has become valid: try again", command, stamp))
	}
	if err := s.writeReport(command, report); err != nil {
		return err
	}
	return verdict
}

// wantsDespiteFindings shows the findings if nothing but findings kept a
// snapshot from being restored, and asks whether it is to be restored all the
// same. It reports false if there is nobody to ask.
func (s *session) wantsDespiteFindings(err error) bool {
	var invalid *backup.InvalidBackupError
	if !errors.As(err, &invalid) || !onlyFindings(invalid.Report) || !s.canAsk() {
		return false
	}
	s.reportProblems(invalid.Report)
	answer, err := s.ask("Type yes to restore it all the same:")
	return err == nil && answer == "yes"
}

// onlyFindings reports whether nothing shows that the snapshot was damaged.
func onlyFindings(r *backup.Report) bool {
	return !slices.ContainsFunc(r.Problems, func(p backup.Problem) bool { return !p.Finding })
}

// reportRefused prints the report of a snapshot that was refused, and how to
// restore it all the same if that can be.
func (s *session) reportRefused(command string, err error) error {
	var invalid *backup.InvalidBackupError
	if !errors.As(err, &invalid) {
		s.say("%s: %s", commandName, explain(s.ctx, err))
		return err
	}
	if werr := s.writeReport(command, invalid.Report); werr != nil {
		return werr
	}
	if onlyFindings(invalid.Report) {
		switch command {
		case "import":
			s.say("Give --despite-findings to import it all the same.")
		case "offsite pull":
			s.say("Give --despite-findings to pull it all the same.")
		default:
			s.say("Give --despite-findings to restore it all the same.")
		}
	}
	return err
}

// optionsIn returns options in which all parts are in dir, under their names in
// the store or, if no flag gives these, under those that the snapshot records. If
// two parts would be in each other's way, database and registry are in
// subdirectories, as in a snapshot.
func (f *storeFlags) optionsIn(dir string, snapshot backup.Snapshot) backup.Options {
	opts := f.options()
	place := func(databaseDir, registryDir string) {
		opts.DatabasePath = nameIn(databaseDir, f.DB, snapshot.Metadata.DBSnapshotPath)
		opts.RegistryPath = nameIn(registryDir, f.Registry, snapshot.Metadata.RegistrySnapshotPath)
	}
	opts.ChromaPath = filepath.Join(dir, "chroma")
	place(dir, dir)
	if collide(opts) {
		place(filepath.Join(dir, "db"), filepath.Join(dir, "config"))
	}
	return opts
}

// collide reports whether two parts would have one path, if need be in a
// directory that ignores case. The registry must not have the name of a file that
// SQLite keeps beside the database either.
func collide(opts backup.Options) bool {
	taken := []string{opts.ChromaPath}
	for _, suffix := range sqlitedb.Suffixes {
		taken = append(taken, opts.DatabasePath+suffix)
	}
	isRegistry := func(path string) bool { return strings.EqualFold(path, opts.RegistryPath) }
	return strings.EqualFold(opts.DatabasePath, opts.ChromaPath) || opts.RegistryPath != "" && slices.ContainsFunc(taken, isRegistry)
}

// isRestorable reports whether the snapshot exists and its metadata name a
// database. If they do not, validating the snapshot shows what is wrong with it.
func isRestorable(snapshot backup.Snapshot) bool {
	return snapshot.Metadata != nil && nameIn("", "", snapshot.Metadata.DBSnapshotPath) != ""
}

// nameIn returns the path in dir for a part that is at live in the store and at
// recorded in a snapshot. recorded is untrusted. The result is empty if the
// snapshot does not have the part, or if there is no usable name.
func nameIn(dir, live, recorded string) string {
	name := filepath.Base(cmp.Or(live, recorded))
	if recorded == "" || name == "." || !filepath.IsLocal(name) {
		return ""
	}
	return filepath.Join(dir, name)
}

// A part is one part of the store that a restore replaces.
type part struct{ what, path, with string }

// existingParts returns the parts of the store that exist and would be replaced.
// It opens no file, because closing a file of a live database would drop the
// process's locks on it.
func (c *restoreCommand) existingParts(opts backup.Options, m *backup.Metadata) (parts []part) {
	for _, path := range []string{opts.DatabasePath, opts.DatabasePath + "-wal", opts.DatabasePath + "-journal"} {
		if c.restores(backup.PartDatabase) && mayExist(path) {
			parts = append(parts, part{"the database", opts.DatabasePath, contentOf(m, backup.PartDatabase)})
			break
		}
	}
	if c.restores(backup.PartRegistry) && m.RegistrySnapshotPath != "" && mayExist(opts.RegistryPath) {
		parts = append(parts, part{"the registry", opts.RegistryPath, contentOf(m, backup.PartRegistry)})
	}
	noPart := func(name string) bool { return name == "lost+found" }
	if c.restores(backup.PartChroma) && m.ChromaSnapshotPath != "" && fsat.HasEntries(opts.ChromaPath, noPart) {
		parts = append(parts, part{"the Chroma directory", opts.ChromaPath, contentOf(m, backup.PartChroma)})
	}
	return parts
}

// nameOf names a part of the store in a sentence.
func nameOf(part backup.Parts) string {
	switch part {
	case backup.PartDatabase:
		return "the database"
	case backup.PartRegistry:
		return "the registry"
	}
	return "the Chroma directory"
}

// contentOf says what a snapshot has of a part.
func contentOf(m *backup.Metadata, part backup.Parts) string {
	switch part {
	case backup.PartDatabase:
		return size(m.DBSizeBytes)
	case backup.PartRegistry:
		return "the snapshot's"
	}
	return fmt.Sprintf("%s, %s", count(m.ChromaSnapshotFiles, "file"), size(m.ChromaSnapshotBytes))
}

// mayExist reports whether there is a file at path. If that cannot be determined
// it returns true, so that the user is asked before anything is replaced.
func mayExist(path string) bool {
	_, err := fsat.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// confirm returns an error unless the user agrees to replace the existing parts,
// with --yes or by answering a question. It does not ask if no part exists, no
// interrupted restore has to be dealt with, and the latest snapshot has all that
// an older one has. If there is a terminal, agree asks when it is known what is to
// be done, unless an interrupted restore has to be dealt with before that.
func (c *restoreCommand) confirm(s *session, opts backup.Options, found located) error {
	var parts []part
	snapshot, interrupted := found.Snapshot, found.interrupted
	restorable := isRestorable(snapshot)
	if restorable {
		parts = c.existingParts(opts, snapshot.Metadata)
	}
	if c.Yes || len(parts) == 0 && !interrupted && found.withChroma == "" {
		return nil
	}
	if !s.canAsk() {
		switch {
		case len(parts) > 0:
		case interrupted:
			return errors.New("an earlier restore was interrupted and would be finished or undone first: give --yes to confirm")
		default:
			return fmt.Errorf("the latest snapshot has no Chroma copy, and %s has one: name the one that is to be restored, or give --yes to restore without", found.withChroma)
		}
		names := make([]string, len(parts))
		for i, p := range parts {
			names[i] = p.what + " " + p.path
		}
		return fmt.Errorf("%s would be replaced: give --yes to confirm", strings.Join(names, ", "))
	}
	if !interrupted {
		return nil
	}
	s.say("An earlier restore was interrupted. It will be finished or undone first.")
	switch {
	case !restorable:
		s.say("Snapshot %s cannot be restored.", snapshot.Stamp)
	case len(parts) == 0:
		s.say("Snapshot %s, made %s, will be restored.", snapshot.Stamp, formatTime(snapshot.Metadata.CreatedAt))
	default:
		s.say("Snapshot %s, made %s, will replace:", snapshot.Stamp, formatTime(snapshot.Metadata.CreatedAt))
		for _, p := range parts {
			s.say("  %s %s with %s", p.what, p.path, p.with)
		}
		s.say("A safety snapshot of the existing store will be taken first.")
	}
	return s.confirm()
}

// confirm asks the user to go on.
func (s *session) confirm() error {
	answer, err := s.ask("Type yes to continue:")
	if err == nil && answer != "yes" {
		err = errors.New("not confirmed; nothing was changed")
	}
	return err
}

// agree shows what a restore is about to do, and returns an error unless the user
// agrees to it. It does not ask if nothing would be replaced, unless an older
// snapshot has the Chroma directory that this one lacks.
func (c *restoreCommand) agree(s *session, found located, plan []backup.RestorePart) error {
	if found.interrupted {
		return nil // the user has agreed before
	}
	var lines []string
	replaces, saved := false, false
	for _, p := range plan {
		line := nameOf(p.Part) + " " + p.Path
		switch p.Action {
		case backup.ActionReplace, backup.ActionOverwrite:
			replaces, saved = true, true
			line += " with " + contentOf(found.Metadata, p.Part)
			if p.Action == backup.ActionOverwrite {
				line += ", in place, because it is mounted as a single file"
			}
		case backup.ActionCreate:
			line += ", which does not exist, with " + contentOf(found.Metadata, p.Part)
		case backup.ActionEqual:
			saved = true
			line += ": not at all, it is equal already"
		case backup.ActionLeaveOut:
			line += ": not at all, --only leaves it out"
		case backup.ActionAbsent:
			continue
		}
		lines = append(lines, line)
	}
	if !replaces && found.withChroma == "" {
		return nil
	}
	s.say("Snapshot %s, made %s, will replace:", found.Stamp, formatTime(found.Metadata.CreatedAt))
	for _, line := range lines {
		s.say("  %s", line)
	}
	if c.parts != 0 {
		s.say("The store will be a mixture of two points in time.")
	}
	if saved {
		s.say("A safety snapshot of the existing store will be taken first.")
	}
	return s.confirm()
}

// sayPart prints what is to be said about one part after a restore.
func (s *session) sayPart(p backup.RestorePart) {
	name := nameOf(p.Part)
	switch {
	case p.Action == backup.ActionEqual:
		s.tell("Nothing was done to %s %s: it is equal already.", name, p.Path)
	case p.Action == backup.ActionLeaveOut:
		s.tell("Nothing was done to %s %s: --only leaves it out.", name, p.Path)
	case p.Action == backup.ActionAbsent && p.Path != "" && mayExist(p.Path):
		s.tell("The snapshot has no %s; %s was left unchanged.", strings.TrimPrefix(name, "the "), p.Path)
	}
	own := fmt.Sprintf("%d:%d", os.Geteuid(), os.Getegid())
	if slices.ContainsFunc(p.Owners, func(owner string) bool { return owner != own }) {
		s.tell("What was restored of %s %s belongs to %s (user:group).", name, p.Path, strings.Join(p.Owners, ", "))
	}
	for _, text := range p.NotKept {
		s.tell("Not kept: %s", text)
	}
}

// summarize prints what the restore did, and which parts it left unchanged.
func (s *session) summarize(r *backup.RestoreResult) {
	s.tell("Snapshot %s is restored: %s, %s, compared with the snapshot.", r.Stamp, count(r.Files, "file"), size(r.Bytes))
	for _, p := range r.Parts {
		s.sayPart(p)
	}
	if r.Mixed {
		s.tell("Only some parts were restored: the store is a mixture of two points in time.")
	}
	if r.SafetyStamp != "" {
		s.tell("The previous store is saved as snapshot %s.", r.SafetyStamp)
	}
	if r.Recovered != "" {
		return // replace has named what was set aside
	}
	for _, path := range r.SetAside {
		s.tell("No safety snapshot could be taken; previous files were moved to %s.", path)
	}
}
