package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite"
)

// offsiteCommand groups the commands on the copies in a repository of restic's.
type offsiteCommand struct {
	Init   offsiteInitCommand   `cmd:"" help:"Make the repository that the copies are to be in."`
	Push   offsitePushCommand   `cmd:"" help:"Store a copy of a snapshot in the repository."`
	List   offsiteListCommand   `cmd:"" help:"List the copies in the repository, oldest first."`
	Verify offsiteVerifyCommand `cmd:"" help:"Check the repository, or pull a copy into a scratch directory and validate it there."`
	Pull   offsitePullCommand   `cmd:"" help:"Add the copy of a snapshot to the backup directory."`
	Forget offsiteForgetCommand `cmd:"" help:"Remove the copies that no rule keeps, and free their space."`
}

// Help returns the details for the help of these commands.
func (c *offsiteCommand) Help() string {
	return `The copies are in a repository of restic (restic.net), which encrypts them; restic 0.14 or newer must be installed. Every place that restic knows can be one: S3 and what speaks it, SFTP, a REST server, Azure, Google Cloud, rclone's, a directory. Their keys are in restic's variables, such as AWS_ACCESS_KEY_ID. docs/offsite.md shows how to begin.`
}

// repositoryFlags say where the copies are, and how restic reaches them.
type repositoryFlags struct {
	Repo         string   `placeholder:"LOCATION" env:"ATOCORE_OFFSITE_REPO" help:"The repository, as restic writes it: s3:https://HOST/BUCKET/DIR, sftp:USER@HOST:DIR, rest:https://HOST/, or a directory. By default what RESTIC_REPOSITORY or RESTIC_REPOSITORY_FILE say."`
	PasswordFile string   `placeholder:"FILE" env:"ATOCORE_OFFSITE_PASSWORD_FILE" help:"The file with the password of the repository. By default what RESTIC_PASSWORD_FILE, RESTIC_PASSWORD_COMMAND or RESTIC_PASSWORD say. Nobody is asked for it."`
	Restic       string   `placeholder:"FILE" env:"ATOCORE_OFFSITE_RESTIC" help:"The restic to run. The default is the one in PATH."`
	CACert       string   `name:"cacert" placeholder:"FILE" env:"ATOCORE_OFFSITE_CACERT" help:"The certificates that the server's is checked against, instead of the system's."`
	LimitUpload  rate     `placeholder:"N" env:"ATOCORE_OFFSITE_LIMIT_UPLOAD" help:"Upload at most N KiB in a second."`
	Patience     patience `default:"5m" placeholder:"TIME" env:"ATOCORE_OFFSITE_PATIENCE" help:"Give up when nothing went on for this long, or when the repository was in use by others for as long. Default: 5m."`
}

// A rate is a number of KiB in a second, or 0 for no limit. An empty text, as of a
// variable that is set to nothing, means the same as none.
type rate uint32

// UnmarshalText reads a rate.
func (r *rate) UnmarshalText(text []byte) error {
	n, err := strconv.ParseUint(cmp.Or(string(text), "0"), 10, 31)
	if err != nil {
		return fmt.Errorf("%q is not a number of KiB in a second", text)
	}
	*r = rate(n)
	return nil
}

// A patience is a length of time that is not 0. An empty text means the same as
// none.
type patience time.Duration

const defaultPatience = "5m"

// UnmarshalText reads a patience.
func (p *patience) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(cmp.Or(string(text), defaultPatience))
	if err != nil || d <= 0 {
		return fmt.Errorf("%q is not a length of time such as 5m or 90s", text)
	}
	*p = patience(d)
	return nil
}

// repository returns what the flags describe.
func (f *repositoryFlags) repository() *offsite.Repository {
	r := &offsite.Repository{Location: f.Repo, PasswordFile: f.PasswordFile, Program: f.Restic, Patience: time.Duration(f.Patience)}
	if f.CACert != "" {
		r.Args = append(r.Args, "--cacert", f.CACert)
	}
	if f.LimitUpload > 0 {
		r.Args = append(r.Args, "--limit-upload", strconv.FormatUint(uint64(f.LimitUpload), 10))
	}
	return r
}

// needRepository returns an error for each thing that is missing before restic
// can be run. restic's own error would name its own flags, and it would ask for
// the password.
func (f *repositoryFlags) needRepository() error {
	var faults []error
	if !isSet("RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE") {
		faults = append(faults, need(f.Repo, "repository", "--repo", "ATOCORE_OFFSITE_REPO"))
	}
	if !isSet("RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND", "RESTIC_PASSWORD") {
		faults = append(faults, need(f.PasswordFile, "password", "--password-file", "ATOCORE_OFFSITE_PASSWORD_FILE"))
	}
	return errors.Join(faults...)
}

// watchCopying is watch for a call of package offsite, whose phases have the names of
// the nearest ones of package backup.
func (s *session) watchCopying(opts *backup.Options) {
	s.meter.names = map[backup.Phase]string{
		backup.PhaseHash: "comparing snapshot", backup.PhaseExport: "uploading", backup.PhaseImport: "fetching copy",
		backup.PhaseVerify: "checking repository", backup.PhasePrune: "removing copies",
	}
	s.watch(opts)
	s.announceWait(opts)
}

// isSet reports whether one of the variables is set.
func isSet(variables ...string) bool {
	return slices.ContainsFunc(variables, func(name string) bool { return os.Getenv(name) != "" })
}

// advise adds to an error what the user can do about it.
func advise(err error) error {
	for _, advice := range []struct {
		about error
		text  string
	}{
		{offsite.ErrNoProgram, "apt install restic, or --restic FILE"},
		{offsite.ErrProgramTooOld, "--restic FILE names another one"},
		{offsite.ErrNoRepository, "make one with atocore-backup offsite init, or correct --repo"},
		{offsite.ErrPassword, "it is what --password-file says"},
		{offsite.ErrOtherStore, "--db and --host"},
	} {
		if errors.Is(err, advice.about) {
			return fmt.Errorf("%w (%s)", err, advice.text)
		}
	}
	return err
}

type offsiteInitCommand struct{ repositoryFlags }

// Help returns the details for the help of this command.
func (c *offsiteInitCommand) Help() string {
	return `Without the password nothing in the repository can be read again, by anybody. Keep a second copy of it where neither this machine's loss nor that of the repository takes it away.

Example: ` + commandName + ` offsite init --repo s3:https://s3.example.org/backups/atocore --password-file /etc/atocore/offsite.password`
}

func (c *offsiteInitCommand) Run(s *session) error {
	if err := joinFor("offsite init", c.needRepository()); err != nil {
		return err
	}
	if err := c.repository().Init(s.ctx); err != nil {
		return advise(err)
	}
	s.say("The repository is made. Keep its password in a second place: without it, no copy can be read.")
	return nil
}

type offsitePushCommand struct {
	storeFlags
	repositoryFlags

	Stamp string `arg:"" default:"latest" help:"The snapshot's name, as create and list print it. The default is the latest one."`
}

// Help returns the details for the help of this command.
func (c *offsitePushCommand) Help() string {
	return `Of large files only what changed since the last push is uploaded. Every file is compared with the snapshot's SHA256SUMS while it is read; a snapshot that is damaged is not stored, and the status is 1. If the repository has this copy already, nothing is done, and the status is 0.

What the next push compares with is kept in the backup directory, in .atocore-offsite; it may be removed, and the next push is a full one then.

Example: ` + commandName + ` offsite push --repo sftp:backup@elsewhere:atocore --password-file /etc/atocore/offsite.password`
}

func (c *offsitePushCommand) Run(s *session) error {
	if err := joinFor("offsite push", c.needBackupDir(), c.needRepository()); err != nil {
		return err
	}
	opts := c.options()
	s.watchCopying(&opts)
	stamp := c.Stamp
	if stamp == latest {
		snapshot, interrupted, err := s.find(opts, stamp)
		if err != nil && !interrupted {
			return joinFor("offsite push", err)
		}
		stamp = snapshot.Stamp
	}
	pushed, err := c.repository().Push(s.ctx, opts, stamp)
	var invalid *backup.InvalidBackupError
	switch {
	case isInvalid(err) && errors.As(err, &invalid):
		s.reportProblems(invalid.Report)
		s.say("It was not pushed.")
		return err
	case err != nil:
		return advise(err)
	}
	if err := s.writeResult(document(pushed)); err != nil {
		return fmt.Errorf("offsite push: the copy of %s is stored: %w", pushed.Stamp, err)
	}
	s.tell("%s", pushSummary(pushed))
	return nil
}

func pushSummary(p *offsite.Pushed) string {
	if p.AlreadyThere {
		return fmt.Sprintf("The repository has a copy of %s already.", p.Stamp)
	}
	return fmt.Sprintf("Snapshot %s is copied to the repository: %s read, %s changed, %s uploaded.",
		p.Stamp, size(p.ReadBytes), size(p.ChangedBytes), size(p.UploadedBytes))
}

type offsiteListCommand struct{ repositoryFlags }

// Help returns the details for the help of this command.
func (c *offsiteListCommand) Help() string {
	return `Prints a line for each copy: the stamp of its snapshot, its age, the store that it is of, and restic's name for it. In a pipe, or with --json, the result is a JSON array.

Example: ` + commandName + ` offsite list --repo /mnt/usb/atocore --password-file /etc/atocore/offsite.password`
}

func (c *offsiteListCommand) Run(s *session) error {
	if err := joinFor("offsite list", c.needRepository()); err != nil {
		return err
	}
	copies, err := c.repository().List(s.ctx)
	if err != nil {
		return advise(err)
	}
	if err := s.writeResult(array(copies)); err != nil {
		return fmt.Errorf("offsite list: %w", err)
	}
	if len(copies) > 0 {
		s.writeTable(copyTable(copies, backup.SystemClock().Now()))
	}
	s.tell("%s in the repository%s.", copiesOf(len(copies)), ofStores(copies))
	return nil
}

func copyTable(copies []offsite.Copy, now time.Time) *table {
	t := &table{columns: []column{
		{head: "STAMP", least: len("20060102T150405Z-1000")},
		{head: "AGE", right: true},
		{head: "STORE", least: len("host:/srv"), rank: 1},
		{head: "RESTIC'S ID", short: "ID", rank: 2},
	}}
	for _, c := range copies {
		t.rows = append(t.rows, []cell{{text: c.Stamp}, {text: age(now.Sub(c.CreatedAt))}, {text: cmp.Or(storeOfCopy(&c), "-")}, {text: shortID(c.ID)}})
	}
	return t
}

// shortID returns what restic prints of an ID, which its commands take, too.
func shortID(id string) string { return id[:min(len(id), 8)] }

// storeOfCopy names the store that a copy is of, or is empty if its snapshot did
// not record it.
func storeOfCopy(c *offsite.Copy) string {
	if c.DatabasePath == "" {
		return ""
	}
	return c.Host + ":" + c.DatabasePath
}

// storesOf names the stores that copies are of, each once, sorted.
func storesOf(copies []offsite.Copy) (stores []string) {
	for _, c := range copies {
		stores = append(stores, cmp.Or(storeOfCopy(&c), "an unknown store"))
	}
	slices.Sort(stores)
	return slices.Compact(stores)
}

func ofStores(copies []offsite.Copy) string {
	if n := len(storesOf(copies)); n > 1 {
		return fmt.Sprintf(", of %d stores", n)
	}
	return ""
}

func copiesOf(n int) string {
	if n == 1 {
		return "1 copy"
	}
	return humanize.Comma(int64(n)) + " copies"
}
