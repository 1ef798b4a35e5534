package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite"
)

// A share is the value of --read-data, as offsite.VerifyOptions has it. It is empty
// if the flag is not given.
type share string

// IsBool lets the flag stand alone, which means all of the data.
func (s *share) IsBool() bool { return true }

// Decode reads a share.
func (s *share) Decode(ctx *kong.DecodeContext) error {
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		*s = "100%"
		return nil
	}
	text := ctx.Scan.Pop().String()
	if text == "0" || text == "0%" {
		*s = "0"
		return nil
	}
	number, isPercent := strings.CutSuffix(text, "%")
	percent, err := strconv.ParseFloat(number, 64)
	// ParseFloat takes NaN, which is less than nothing and more than nothing.
	if !isPercent || err != nil || strings.Trim(number, "0123456789.") != "" || percent <= 0 || percent > 100 {
		return fmt.Errorf("%q is not a share of the data, such as 5%%, or 0", text)
	}
	*s = share(text)
	return nil
}

type offsiteVerifyCommand struct {
	storeFlags
	repositoryFlags

	Stamp    *string `arg:"" optional:"" help:"The snapshot whose copy is pulled into a scratch directory below the backup directory, validated and deleted, or latest for the newest copy. Without it, the repository is checked."`
	ReadData share   `placeholder:"SHARE" help:"Read all of the stored data, or with --read-data=5% such a share of it, chosen at random, or with --read-data=0 none. Default: 5%. What is not read may be damaged."`
}

// Help returns the details for the help of this command.
func (c *offsiteVerifyCommand) Help() string {
	return `Without a stamp, the structure of the whole repository is checked, and what each copy says of itself, and a share of the data is read and compared with its hashes. With 5% every day, a single damaged place is found after 20 days on average.

With a stamp, the copy is what a restore would get. It is pulled and validated as by validate, and nothing stays.

The status is 0 if nothing is wrong, and 1 if something is.

Example: ` + commandName + ` offsite verify --read-data=10%`
}

func (c *offsiteVerifyCommand) Run(s *session) error {
	faults := []error{c.needRepository()}
	stamp := ""
	if c.Stamp != nil {
		stamp = *c.Stamp
		faults = append(faults, c.needBackupDir(), notEmpty(c.Stamp, "the stamp"))
		switch {
		case c.ReadData != "" && strings.HasSuffix(stamp, "%"):
			faults = append(faults, fmt.Errorf("%q is not a stamp: a share of the data is given as --read-data=%s", stamp, stamp))
		case c.ReadData != "":
			faults = append(faults, errors.New("give a stamp or --read-data, not both: the data of one copy are read in full"))
		}
	}
	if err := joinFor("offsite verify", faults...); err != nil {
		return err
	}
	verify := offsite.VerifyOptions{ReadData: string(c.ReadData), Options: c.options()}
	s.watchCopying(&verify.Options)
	repository := c.repository()
	var err error
	if verify.Stamp, err = s.findCopy(repository, verify.Options, stamp); err != nil {
		return advise(err)
	}
	report, err := repository.Verify(s.ctx, verify)
	if report == nil {
		return advise(err)
	}
	if err := s.writeResult(document(report)); err != nil {
		return fmt.Errorf("offsite verify: %w", err)
	}
	s.tellVerified(report, verify.Stamp)
	if !report.OK {
		return errors.Join(errProblems, err)
	}
	return err
}

// errProblems is the error of a verify that found something wrong. The result says
// what.
var errProblems = fmt.Errorf("%w: the result says what is wrong", offsite.ErrDamaged)

// tellVerified says what a verify found.
func (s *session) tellVerified(r *offsite.Report, stamp string) {
	what := "The repository"
	if stamp != "" {
		what = "The copy of " + stamp
	}
	switch {
	case !r.OK:
		s.tell("%s is not as it should be:", what)
		for _, problem := range r.Problems {
			s.tell("  %s", problem)
		}
	case stamp != "":
		s.tell("%s is valid.", what)
		for _, note := range validationNotes(r) {
			s.tell("Not checked, or only noted: %s", note)
		}
	default:
		s.tell("%s is sound: %s, and %s of the data was read.", what, copiesOf(r.Copies), readShare(r.ReadData))
	}
}

func validationNotes(r *offsite.Report) []backup.Note {
	if r.Validation == nil {
		return nil
	}
	return r.Validation.Notes
}

func readShare(share string) string {
	switch share {
	case "100%":
		return "all"
	case "0", "0%":
		return "none"
	}
	return share
}

type offsitePullCommand struct {
	storeFlags
	repositoryFlags

	Stamp string `arg:"" help:"The snapshot's name, as offsite list prints it, or latest for the newest copy."`
	Note  string `placeholder:"TEXT" help:"Keep TEXT beside the snapshot; list prints it."`

	DespiteFindings bool `help:"Pull a snapshot although SQLite, or the JSON check of the registry, objects to its content, if nothing shows damage."`
}

// Help returns the details for the help of this command.
func (c *offsitePullCommand) Help() string {
	return `The snapshot gets its own stamp again. It is compared with the hashes of the push and validated first, and the verdict is recorded; a copy that is damaged leaves nothing behind, and the status is 1. Nothing is ever overwritten: if the same snapshot is there already, it stays as it is, and the status is 0.

On an empty machine: install restic, give --repo, --password-file and the keys of the place, and an empty --backup-dir; pull latest; and restore.

Example: ` + commandName + ` offsite pull latest --backup-dir /srv/backup`
}

func (c *offsitePullCommand) Run(s *session) error {
	if err := joinFor("offsite pull", c.needBackupDir(), c.needRepository()); err != nil {
		return err
	}
	opts := c.options()
	opts.RecordVerdicts, opts.DespiteFindings, opts.Note = true, c.DespiteFindings, c.Note
	s.watchCopying(&opts)
	repository := c.repository()
	stamp, err := s.findCopy(repository, opts, c.Stamp)
	if err != nil {
		return advise(err)
	}
	_, err = os.Lstat(filepath.Join(c.BackupDir, "snapshots", stamp))
	isThere := err == nil
	meta, err := repository.Pull(s.ctx, opts, stamp)
	switch {
	case isInvalid(err):
		return s.reportRefused("offsite pull", err)
	case err != nil:
		return advise(err)
	}
	if err := s.writeResult(document(meta)); err != nil {
		return fmt.Errorf("offsite pull: snapshot %s is complete: %w", meta.Stamp, err)
	}
	if isThere {
		s.tell("Snapshot %s is there already.", meta.Stamp)
	} else {
		s.tell("%s", summary(meta))
	}
	return nil
}

// findCopy returns stamp, or the stamp of the newest copy if it is latest.
func (s *session) findCopy(r *offsite.Repository, opts backup.Options, stamp string) (string, error) {
	if stamp != latest {
		return stamp, nil
	}
	newest, err := r.Latest(s.ctx, opts)
	if err != nil {
		return "", err
	}
	s.say("The newest copy is %s, made %s%s.", newest.Stamp, formatTime(newest.CreatedAt), madeOf(newest))
	return newest.Stamp, nil
}

func madeOf(c *offsite.Copy) string {
	if store := storeOfCopy(c); store != "" {
		return " of " + store
	}
	return ""
}

type offsiteForgetCommand struct {
	storeFlags
	repositoryFlags
	keepFlags

	DryRun bool `short:"n" help:"Print what would be removed, without removing it."`
}

// Help returns the details for the help of this command.
func (c *offsiteForgetCommand) Help() string {
	return `The rules are those of prune and of restic: they add up, and a copy is kept if any of them keeps it. Only the copies of one store are judged, the one that --db and --host name; without --db, all copies must be of one store. The newest copy is never removed. Protection is not copied: to keep a copy for good, give rules that keep it.

Example: ` + commandName + ` offsite forget --keep-daily 14 --keep-monthly 24 --dry-run`
}

func (c *offsiteForgetCommand) Run(s *session) error {
	keep := c.retention()
	faults := []error{c.needBackupDir(), c.needRepository()}
	if keep == (backup.Retention{}) {
		faults = append(faults, errors.New("no keep rule: give --keep-last or another --keep flag"))
	}
	if err := joinFor("offsite forget", faults...); err != nil {
		return err
	}
	keep.DryRun = c.DryRun
	opts := c.options()
	s.watchCopying(&opts)
	result, err := c.repository().Forget(s.ctx, opts, keep)
	if result == nil {
		return advise(err)
	}
	if derr := s.writeResult(document(result)); derr != nil {
		return errors.Join(err, fmt.Errorf("offsite forget: %w", derr))
	}
	if table := forgetTable(result, backup.SystemClock().Now()); len(table.rows) > 0 {
		s.writeTable(table)
	}
	removed := "removed"
	if result.DryRun {
		removed = "would be removed"
	}
	s.tell("%s kept, %d %s.", copiesOf(len(result.Kept)), len(result.Removed), removed)
	return advise(err)
}

// forgetTable returns a table of what became of each copy.
func forgetTable(r *offsite.Forgotten, now time.Time) *table {
	t := &table{columns: []column{
		{head: "STAMP", least: len("20060102T150405Z-1000")},
		{head: "AGE", right: true, rank: 2},
		{head: "RESULT", least: len("to remove")},
		{head: "WHY", least: len("removed"), rank: 1},
	}}
	add := func(c offsite.Copy, fate, why string) {
		t.rows = append(t.rows, []cell{{text: c.Stamp}, {text: age(now.Sub(c.CreatedAt))}, {text: fate}, {text: why}})
	}
	for _, k := range r.Kept {
		add(k.Copy, "kept", strings.Join(k.Reasons, ", "))
	}
	fate := "removed"
	if r.DryRun {
		fate = "to remove"
	}
	for _, c := range r.Removed {
		add(c, fate, "no rule keeps it")
	}
	return t
}
