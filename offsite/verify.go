package offsite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite/internal/restic"
)

// Verify checks the repository, or one copy in it.
//
// Without v.Stamp it checks, with restic, that the repository has all that its
// snapshots need, which it learns from restic's lists, and reads v.ReadData of the
// data itself: a change of what is stored is found only where it is read. Then it
// reads the recipe of every copy and compares it with the files that restic lists
// for it. If the repository is damaged, the copies are not looked at. Other
// snapshots in the repository are checked by restic only. A call reads at least all
// lists, and runs restic twice for each copy, which takes most of a second each.
//
// With v.Stamp it rehearses the way back: it does what [Repository.Pull] does, into
// a directory in v.Options.BackupDir that it removes, and validates the result.
// v.Options names the store if several have that stamp, and must name BackupDir. A
// call costs what a Pull costs, and a validation.
//
// Damage is in Report.Problems, and the error then matches ErrDamaged. If the copy
// is what was pushed, and the validation has findings, it matches
// backup.ErrInvalidBackup as well. With any other error there is no report, and
// nothing is known: ErrNoCopy, ErrOtherStore, ErrNoProgram, ErrProgramTooOld,
// ErrNoRepository, ErrPassword, ErrBusy, ErrStuck; backup.ErrInvalidOptions,
// ErrNoSpace and ErrPanic; ctx's error; or an *fs.PathError.
func (r *Repository) Verify(ctx context.Context, v VerifyOptions) (_ *Report, err error) {
	defer func() {
		if v.Stamp != "" {
			wrapCall(&err, "verify the copy of %q", v.Stamp)
		} else {
			wrapCall(&err, "verify the repository")
		}
	}()
	defer recovered(&err)
	if v.Stamp != "" {
		return r.rehearse(ctx, v)
	}
	readData, err := parseShare(v.ReadData)
	if err != nil {
		return nil, err
	}
	c := &verification{
		program: r.programFor(v.Options), meter: newMeter(v.Options),
		report: &Report{ReadData: readData, Problems: []string{}},
	}
	if err := c.run(ctx); err != nil {
		return nil, err
	}
	c.meter.done()
	return c.report.judged()
}

// judged returns the report and the error that it makes.
func (r *Report) judged() (*Report, error) {
	r.OK = len(r.Problems) == 0
	if r.OK {
		return r, nil
	}
	more := ""
	if n := len(r.Problems); n > 1 {
		more = fmt.Sprintf(" (the first of %d problems)", n)
	}
	return r, fmt.Errorf("%w: %s%s", ErrDamaged, r.Problems[0], more)
}

// defaultShare is the share of the data that a Verify reads: a timer that runs it
// each day reads most of it within weeks.
const defaultShare = "5%"

// parseShare returns the share of the data to read, as restic takes it, or "0".
func parseShare(text string) (string, error) {
	if text == "" {
		return defaultShare, nil
	}
	number := strings.TrimSuffix(text, "%")
	percent, err := strconv.ParseFloat(number, 64)
	switch {
	case err != nil || len(text) > 10 || strings.Trim(number, "0123456789.") != "" || percent > 100 || text == number && percent != 0:
		return "", fmt.Errorf("%w: %.20q is not a share of the data, such as 5%%, 100%% or 0", backup.ErrInvalidOptions, text)
	case percent == 0:
		return "0", nil
	case percent == 100:
		return "100%", nil
	}
	return text, nil
}

// A verification is the state of a Verify of the whole repository.
type verification struct {
	program *restic.Program
	meter   *meter
	report  *Report
}

// The shares of the progress.
const checked = 0.5

func (v *verification) run(ctx context.Context) (err error) {
	v.meter.pass(backup.Progress{Phase: backup.PhaseVerify}, 0, checked)
	if v.report.Problems, err = v.program.Check(ctx, v.report.ReadData); err != nil {
		return err
	}
	if len(v.report.Problems) > 0 {
		return nil // the copies may be anything, and restic retries for minutes to read what is lost
	}
	v.report.Problems = []string{}
	copies, err := copiesIn(ctx, v.program)
	if err != nil {
		return err
	}
	for i, c := range copies {
		n, total := int64(i), int64(len(copies))
		v.meter.pass(backup.Progress{Phase: backup.PhaseVerify, Path: c.Stamp, Files: n, TotalFiles: total, Bytes: n, TotalBytes: total}, checked, 1)
		wrong, err := compare(ctx, v.program, c)
		if err != nil {
			return fmt.Errorf("look at the copy of %s: %w", c.Stamp, err)
		}
		for _, problem := range wrong {
			v.report.Problems = append(v.report.Problems, fmt.Sprintf("the copy of %s of %+q (%.8s): %s", c.Stamp, c.store().String(), c.ID, problem))
		}
		v.report.Copies++
	}
	return nil
}

// maxProblems bounds the problems of one copy.
const maxProblems = 20

// compare returns what is wrong with a copy, as far as its recipe and restic's
// list of its files say.
func compare(ctx context.Context, p *restic.Program, c Copy) (problems []string, err error) {
	recipe, err := readRecipe(ctx, p, c)
	if errors.Is(err, ErrDamaged) {
		return []string{err.Error()}, nil
	}
	if err != nil {
		return nil, err
	}
	problems, err = differences(ctx, p, c.ID, recipe, maxProblems)
	if errors.Is(err, ErrDamaged) {
		return []string{err.Error()}, nil
	}
	return problems, err
}

// rehearse pulls a copy into a scratch directory and validates it.
func (r *Repository) rehearse(ctx context.Context, v VerifyOptions) (*Report, error) {
	if v.Options.BackupDir == "" {
		return nil, fmt.Errorf("%w: the path of the backup directory is empty", backup.ErrInvalidOptions)
	}
	report := &Report{Problems: []string{}}
	p, err := r.newPull(v.Options, v.Stamp)
	if err != nil {
		return nil, err
	}
	p.download(restic.Status{})
	if err := p.choose(ctx, v.Stamp); err != nil {
		return nil, err
	}
	_, err = p.fetch(ctx, func(ctx context.Context) (*backup.Metadata, error) {
		p.opts.BackupDir = filepath.Join(p.scratch.state.dir, p.scratch.name, "backups")
		p.opts.DespiteFindings, p.opts.RecordVerdicts, p.opts.Verify, p.opts.Note = false, false, false, ""
		meta, err := p.importCopy(ctx)
		if err != nil {
			return nil, err
		}
		opts := p.opts
		opts.OnProgress = nil // the import has validated it already, without a report
		report.Validation, err = backup.ValidateBackup(ctx, opts, meta.Stamp)
		return meta, err
	})
	invalid := new(backup.InvalidBackupError)
	switch {
	case errors.As(err, &invalid):
		report.Validation = invalid.Report
		for _, problem := range invalid.Report.Problems {
			report.Problems = append(report.Problems, problem.String())
		}
		if !errors.Is(err, ErrDamaged) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		return report, err
	case errors.Is(err, ErrDamaged):
		report.Problems = append(report.Problems, err.Error())
		return report, err
	case err != nil:
		return nil, err
	}
	report.OK, report.Copies = true, 1
	p.meter.done()
	return report, nil
}
