package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/atocore/backup/internal/backupdir"
	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/progress"
	"github.com/atocore/backup/internal/sqlitedb"
)

// ValidateBackup checks whether the snapshot named stamp in opts.BackupDir can
// be trusted. It fails closed:
//
//   - nil: every check that can be made here ran and passed, and the report's
//     Valid is true. Its Notes name what could not be checked.
//   - errors.Is(err, [ErrInvalidBackup]): the report lists every problem, up
//     to 1,000 of them. The error also matches [ErrNoSnapshot] if there is no
//     such snapshot, or no backup directory; then the report's Exists is false.
//   - any other error: the check could not be completed, nothing is known, and
//     there is no report. [ErrInvalidOptions], [ErrPanic], ctx's error, or a
//     file that cannot be read. Only [ErrRestoreUnfinished] comes with the
//     report.
//
// A snapshot of this package is compared with its manifest byte by byte, its
// metadata are compared with the files, its database gets SQLite's integrity
// check, its registry must be JSON, and a chroma.sqlite3 gets SQLite's quick
// check unless a journal lies beside it. A snapshot of the Python module has
// no manifest, so only the other checks apply to it.
//
// stamp is the name of any real directory in BackupDir/snapshots, because
// people rename snapshots. Everything in the snapshot is untrusted: no link is
// followed, nothing outside it is opened, nothing is changed, and a read-only
// disk is fine. If opts.DatabasePath is set, a snapshot file that is a hard
// link to the live database is reported and not opened.
//
// A call reads the snapshot twice, once to hash it and once, the databases
// only, by SQLite, both at the same time. Memory stays below 64 MB, half of
// which is SQLite's page cache.
func ValidateBackup(ctx context.Context, opts Options, stamp string) (report *Report, err error) {
	defer func() {
		switch {
		case err == nil, errors.Is(err, ErrInvalidBackup):
		case report != nil && errors.Is(err, ErrRestoreUnfinished):
			err = fmt.Errorf("validate backup %q: %w", stamp, err)
		default:
			report, err = nil, fmt.Errorf("validate backup %q: %w", stamp, err)
		}
	}()
	defer errdefs.Recover(&err)
	s, err := opts.resolve(ctx, false)
	if err != nil {
		return nil, err
	}
	s.planFor = s.planValidation
	report, err = validate(ctx, &s, stamp)
	if report == nil {
		return nil, err
	}
	if s.RecordVerdicts {
		s.recordVerdict(ctx, report)
	}
	s.finishProgress()
	if cutOff := s.restoreCutOff(); cutOff != nil {
		err = errors.Join(err, cutOff)
	}
	return report, err
}

// ValidateDir checks the snapshot in the directory dir, wherever that is: on a
// disk that is mounted read-only, for example, or where an archive was unpacked.
// The report and the errors are those of [ValidateBackup], except that the
// report's Stamp is the name of the directory, and that [ErrRestoreUnfinished]
// does not occur. If there is no such directory, the error matches
// [ErrNoSnapshot].
//
// opts.BackupDir is not used and may be empty. Nothing is written, not even a
// verdict. dir may be a symbolic link; no link below it is followed.
func ValidateDir(ctx context.Context, opts Options, dir string) (report *Report, err error) {
	defer func() {
		if err != nil && !errors.Is(err, ErrInvalidBackup) {
			report, err = nil, fmt.Errorf("validate %s: %w", dir, err)
		}
	}()
	defer errdefs.Recover(&err)
	if dir == "" {
		return nil, fmt.Errorf("%w: the directory is empty", ErrInvalidOptions)
	}
	opts.BackupDir = dir
	opts.RecordVerdicts, opts.Verify = false, false
	s, err := opts.resolve(ctx, false)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	report = &Report{Stamp: filepath.Base(s.BackupDir), Path: s.BackupDir}
	info, err := fsat.Stat(s.BackupDir)
	switch {
	case fsat.IsMissing(err):
		report.Problems = []Problem{{Code: CodeSnapshotMissing}}
	case err != nil:
		return nil, err
	case !info.Mode.IsDir():
		report.Problems = []Problem{{Code: CodeStampInvalid, Detail: "not a directory"}}
	}
	if len(report.Problems) > 0 {
		report.judge(false)
		return report.verdict()
	}
	opened, err := fsat.OpenDir(s.BackupDir)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	// So that it is not removed, if it is in a backup directory.
	if errors.Is(opened.TryRLock(), fsat.ErrLocked) {
		return nil, fmt.Errorf("%w: somebody creates or removes the snapshot", ErrBusy)
	}
	s.planFor = s.planValidation
	if report, err = s.validateOpened(ctx, opened, report); report != nil {
		s.finishProgress()
	}
	return report, err
}

// validate returns a report together with nil or ErrInvalidBackup, or no
// report and another error.
func validate(ctx context.Context, s *settings, stamp string) (*Report, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	report := &Report{Stamp: stamp, Path: filepath.Join(s.BackupDir, format.SnapshotsName, stamp)}

	// 1. Open the snapshot and keep it from being removed.
	dir, fault, err := openSnapshot(ctx, s.BackupDir, stamp)
	if err != nil {
		return nil, err
	}
	if fault != nil {
		if !format.IsStamp(stamp) {
			report.Path = filepath.Join(s.BackupDir, format.SnapshotsName)
		}
		report.Problems = []Problem{*fault}
		report.judge(false)
		return report.verdict()
	}
	defer dir.Close()
	return s.validateOpened(ctx, dir, report)
}

// validateOpened completes the report about the snapshot dir, which has its name
// and path, as validate returns it.
func (s *settings) validateOpened(ctx context.Context, dir *fsat.Dir, report *Report) (_ *Report, err error) {
	began := s.Clock.Now()
	report.Exists = true

	// 2. Read the metadata, and find the manifest and the parts by them.
	snap := &openedSnapshot{dir: dir, live: sqlitedb.FilesOf(s.DatabasePath)}
	var problems []Problem
	if snap.meta, report.raw, problems, err = readMetadata(dir, snap.live); err != nil {
		return nil, err
	}
	report.Metadata = snap.meta
	if s.planFor != nil && snap.meta != nil {
		s.planFor(snap.meta)
	}
	var found []Problem
	if snap.manifest, found, err = openManifest(snap); err != nil {
		return nil, err
	}
	defer snap.manifest.Close()
	if snap.manifest != nil && (s.RecordVerdicts || s.Verify) {
		s.manifestSum, err = backupdir.ManifestSum(ctx, dir, snap.live.Contains)
		if err != nil && !errors.Is(err, fsat.ErrTooLarge) {
			return nil, err
		}
	}
	problems = append(problems, found...)
	snap.places, found = recordedPlaces(snap.meta)
	problems = append(problems, found...)

	// 3. Check the files and the parts.
	checked, err := s.check(ctx, snap)
	if err != nil {
		return nil, err
	}

	// 4. Judge.
	for _, found := range [][]Problem{checked.files, checked.registry, checked.chroma, checked.db, checked.chromaDB} {
		for _, p := range found {
			problems = addProblem(problems, p.Code, p.Path, p.Detail)
		}
	}
	report.Problems = problems
	report.DBOK = snap.places.db.passes(problems, checked.db)
	if snap.places.registry.recorded {
		ok := snap.places.registry.passes(problems, checked.registry)
		report.RegistryOK = &ok
	}
	if snap.places.chroma.recorded {
		ok := snap.places.chroma.passes(problems, checked.chroma, checked.chromaDB)
		report.ChromaOK = &ok
	}
	report.Notes = checked.notes
	report.judge(snap.manifest != nil)
	report.Cost = Cost{Duration: s.since(began), Files: checked.count, Bytes: checked.bytes}
	s.log.Info("runtime_backup_validated", "stamp", report.Stamp, "valid", report.Valid, "intact", report.Intact, "cost", report.Cost.value())
	for _, n := range report.Notes {
		s.log.Warn("snapshot_not_fully_checked", "stamp", report.Stamp, "path", n.Path, "detail", n.Detail)
	}
	return report.verdict()
}

// judge tells damage from findings and completes the report.
func (r *Report) judge(hasManifest bool) {
	damaged := slices.ContainsFunc(r.Problems, func(p Problem) bool { return !slices.Contains(findingCodes, p.Code) && p.Code != CodeTooManyProblems })
	for i := range r.Problems {
		r.Problems[i].Finding = !damaged
	}
	r.Intact = r.Exists && hasManifest && !damaged
	r.Valid = len(r.Problems) == 0
}

// onlyFindings reports whether nothing but findings speaks against the
// snapshot.
func (r *Report) onlyFindings() bool {
	return r.Exists && !slices.ContainsFunc(r.Problems, func(p Problem) bool { return !p.Finding })
}

// InvalidBackupError is the error for a snapshot that is not valid. It matches
// [ErrInvalidBackup] and carries the report, so that errors.As spares a second
// validation. If there is no such snapshot, it also matches [ErrNoSnapshot].
type InvalidBackupError struct{ Report *Report }

// Error returns the number of problems and the first of them.
func (e *InvalidBackupError) Error() string {
	r := e.Report
	if !r.Exists {
		return fmt.Sprintf("%v: %q: %s: %s", ErrNoSnapshot, r.Stamp, r.Path, r.Problems[0])
	}
	n := fmt.Sprintf("%d problems, the first is", len(r.Problems))
	if len(r.Problems) == 1 {
		n = "a problem:"
	}
	return fmt.Sprintf("%v: %q has %s %s", ErrInvalidBackup, r.Stamp, n, r.Problems[0])
}

// Is reports whether target is [ErrInvalidBackup], or, if there is no such
// snapshot, [ErrNoSnapshot] or fs.ErrNotExist.
func (e *InvalidBackupError) Is(target error) bool {
	return target == ErrInvalidBackup || !e.Report.Exists && (target == ErrNoSnapshot || target == fs.ErrNotExist)
}

// verdict returns the report and the error that goes with it.
func (r *Report) verdict() (*Report, error) {
	if r.Valid {
		return r, nil
	}
	return r, &InvalidBackupError{r}
}

// recordVerdict keeps the verdict beside the snapshot, with the sum of the
// manifest that it is about. A verdict that cannot be recorded is no failure.
func (s *settings) recordVerdict(ctx context.Context, r *Report) {
	if !r.Exists {
		return
	}
	findings := make([]string, 0, len(r.Problems))
	for _, p := range r.Problems {
		findings = append(findings, strings.ToValidUTF8(p.String(), "\ufffd"))
	}
	s.record(ctx, r.Stamp, "verdict_not_recorded", func(record *backupdir.Record) {
		record.Manifest = s.manifestSum
		record.VerifiedAt = truncateToMicroseconds(s.Clock.Now())
		record.Valid, record.Intact, record.Findings = r.Valid, r.Intact, findings
	})
}

// record changes what is recorded about a snapshot, or logs message.
func (s *settings) record(ctx context.Context, stamp, message string, change func(*backupdir.Record)) {
	dir, err := fsat.OpenDir(s.BackupDir)
	if err == nil {
		defer dir.Close()
		err = backupdir.UpdateRecord(ctx, dir, stamp, sqlitedb.FilesOf(s.DatabasePath).Contains, change)
	}
	if err != nil {
		s.log.Warn(message, "stamp", stamp, "reason", err.Error())
	}
}

// afterCreate records the host's note and, if asked to, validates the snapshot
// and records the verdict. The snapshot stays whatever that finds.
func (s *settings) afterCreate(ctx context.Context, meta *Metadata) (err error) {
	defer errdefs.Recover(&err)
	defer func() { meta.Cost.Duration = s.since(s.began) }()
	if s.Note != "" {
		s.record(ctx, meta.Stamp, "note_not_recorded", func(r *backupdir.Record) { r.Note = s.Note })
	}
	if !s.Verify {
		return nil
	}
	report, err := validate(ctx, s, meta.Stamp)
	if report == nil {
		return fmt.Errorf("verify snapshot %s: %w", meta.Stamp, err)
	}
	s.recordVerdict(ctx, report)
	return err
}

// despiteFindings returns err, the error of a validation, unless nothing but
// findings speaks against the snapshot and the caller wants it all the same.
func (s *settings) despiteFindings(report *Report, err error) error {
	if report == nil || report.Valid || !report.onlyFindings() {
		return err
	}
	claim := "every byte is what was backed up, so this was in the live store"
	if !report.Intact {
		claim = "nothing proves that the snapshot is intact, for it has no manifest"
	}
	if !s.DespiteFindings {
		others := ""
		if len(report.Problems) > 1 { // err names the first one
			others = "; the others are " + listProblems(report.Problems[1:])
		}
		return fmt.Errorf("%w%s; %s; it can be restored despite its findings", err, others, claim)
	}
	s.log.Warn("restored_despite_findings", "stamp", report.Stamp, "findings", listProblems(report.Problems), "intact", report.Intact)
	return nil
}

// listProblems returns the first problems in one line.
func listProblems(problems []Problem) string {
	const most = 10
	texts := make([]string, 0, most+1)
	for _, p := range problems[:min(len(problems), most)] {
		texts = append(texts, p.String())
	}
	if len(problems) > most {
		texts = append(texts, fmt.Sprintf("and %d more", len(problems)-most))
	}
	return strings.Join(texts, "; ")
}

// An openedSnapshot is an open snapshot with its parsed metadata: the input of
// the checks.
type openedSnapshot struct {
	dir      *fsat.Dir
	live     sqlitedb.Files // files of the live database, which must not be opened
	meta     *Metadata      // nil if it cannot be read
	manifest *fsat.File     // nil if there is none
	places   places
}

// openSnapshot opens the directory of a snapshot, which cannot be removed
// while it is open. If there is no such snapshot, it returns the problem.
func openSnapshot(ctx context.Context, backupDir, stamp string) (*fsat.Dir, *Problem, error) {
	missing := &Problem{Code: CodeSnapshotMissing}
	if !format.IsStamp(stamp) {
		return nil, &Problem{Code: CodeStampInvalid, Detail: oneLine(fmt.Sprintf("%q is not a single name", stamp))}, nil
	}
	root, err := backupdir.OpenSnapshots(backupDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer root.Close()
	info, err := root.Lstat(stamp)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, missing, nil
	case err != nil:
		return nil, nil, err
	case !info.Mode.IsDir():
		return nil, &Problem{Code: CodeStampInvalid, Detail: oneLine(fmt.Sprintf("%q is not a directory", stamp))}, nil
	}
	dir, err := root.OpenDir(stamp)
	if err != nil {
		return nil, nil, err
	}
	gone, err := backupdir.Hold(ctx, root, dir, stamp)
	switch {
	case err != nil:
		dir.Close()
		return nil, nil, err
	case gone:
		dir.Close()
		return nil, missing, nil
	}
	return dir, nil, nil
}

// hold opens the directory of a snapshot, which cannot be removed while it is
// open. If there is no such snapshot, the error matches ErrNoSnapshot.
func (s *settings) hold(ctx context.Context, stamp string) (*fsat.Dir, error) {
	dir, missing, err := openSnapshot(ctx, s.BackupDir, stamp)
	if missing != nil {
		err = fmt.Errorf("%w in %s", ErrNoSnapshot, s.BackupDir)
		if missing.Detail != "" {
			err = fmt.Errorf("%w: %s", err, missing.Detail)
		}
	}
	return dir, err
}

// openManifest opens SHA256SUMS. A snapshot of this package must have one; the
// Python module's have none.
func openManifest(snap *openedSnapshot) (*fsat.File, []Problem, error) {
	info, err := snap.dir.Lstat(format.ManifestName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if snap.meta != nil && snap.meta.FormatVersion > 0 {
			return nil, []Problem{{Code: CodeManifestMissing}}, nil
		}
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	case !info.Mode.IsRegular() || snap.live.Contains(info):
		return nil, []Problem{{Code: CodeManifestNotFile}}, nil
	}
	manifest, err := snap.dir.Open(format.ManifestName)
	return manifest, nil, err
}

// validateSteps returns what a validation of a snapshot of this size will do. The
// last one is the rest of SQLite's checks, which begin together with the hashing.
func validateSteps(database, chroma int64) []progress.Step {
	return []progress.Step{
		{Phase: string(PhaseValidateFiles), Size: database + chroma, Weight: float64(database) + float64(chroma)},
		{Weight: float64(database) / 2},
	}
}

// planValidation plans what the validation of a snapshot will do.
func (s *settings) planValidation(m *Metadata) {
	s.meter.Plan(validateSteps(m.DBSizeBytes, m.ChromaSnapshotBytes))
}
