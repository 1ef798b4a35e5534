package backup

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/atocore/backup/internal/fsat"
)

// maxProblems bounds a report.
const maxProblems = 1000

// SQLite's two checks (sqlite.org/pragma.html).
const (
	integrityCheck = "integrity_check"
	quickCheck     = "quick_check"
)

// checkCache is SQLite's page cache for an integrity check in KiB. It is the
// indexes that have to be in it, whose pages are asked for in the order of the
// table's rows; a quick check asks for each page once or twice. In memory it is
// up to twice that, for pages of 4 KiB and what SQLite keeps beside each are
// allocated in pieces of 8 KiB.
const checkCache = 14_000

// ValidateBackup says whether the snapshot named stamp in opts.BackupDir can be
// trusted. It fails closed:
//
//   - nil: every check ran and passed, and the report's Valid is true.
//   - errors.Is(err, [ErrInvalidBackup]): the report lists every problem, at
//     most 1,000 of them.
//   - any other error: the check could not be finished, nothing is known, and
//     there is no report. [ErrInvalidOptions], [ErrPanic], ctx's error, or a
//     file that cannot be read. Only [ErrRestoreUnfinished] comes with the
//     report.
//
// A snapshot of this package is compared with its manifest byte by byte, its
// metadata are compared with what is there, its database gets SQLite's
// integrity check, its registry must be JSON, and a chroma.sqlite3 gets
// SQLite's quick check unless a journal lies beside it. A snapshot of the
// Python module has no manifest and is judged by what it has.
//
// stamp is any single name in BackupDir/snapshots that is a real directory;
// people rename snapshots. Everything in it is untrusted: no link is followed,
// nothing outside is opened, nothing is changed, and a read-only disk is fine.
// If opts.DatabasePath is set, a snapshot file that is a hard link to the live
// database is reported and not opened.
//
// The cost is reading the snapshot twice, once to hash it and once, for the
// databases, by SQLite, side by side. Memory stays below 64 MB, of which
// SQLite's page cache is half.
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
	defer recoverTo(&err)
	s, err := opts.resolve(false)
	if err != nil {
		return nil, err
	}
	report, err = s.validate(ctx, stamp)
	if report == nil {
		return nil, err
	}
	if cutOff := s.restoreCutOff(); cutOff != nil {
		err = errors.Join(err, cutOff)
	}
	return report, err
}

func (s *settings) validate(ctx context.Context, stamp string) (*Report, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	v := validation{settings: s, live: s.liveDatabase()}
	v.report = &Report{Stamp: stamp, Path: filepath.Join(s.BackupDir, snapshotsName, stamp)}
	if err := v.run(ctx); err != nil {
		return nil, err
	}
	return v.verdict()
}

type validation struct {
	*settings
	report *Report
	live   liveFiles

	dir      *fsat.Dir // the snapshot
	problems []Problem
	meta     *Metadata
	manifest *fsat.File
	db       string // recorded places below the snapshot, "" for none
	registry string
	chroma   string

	chromaFiles, chromaBytes int64
}

func (v *validation) problem(code Code, path, detail string) {
	v.problems = addProblem(v.problems, code, path, detail)
}

// addProblem appends a problem unless there are too many, which it says once.
func addProblem(problems []Problem, code Code, path, detail string) []Problem {
	switch {
	case len(problems) < maxProblems:
		return append(problems, Problem{code, path, oneLine(detail)})
	case len(problems) == maxProblems:
		return append(problems, Problem{Code: CodeTooManyProblems})
	}
	return problems
}

// oneLine keeps a message that quotes untrusted bytes in its line.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s)
}

// verdict completes the report.
func (v *validation) verdict() (*Report, error) {
	r := v.report
	r.Problems = v.problems
	r.Metadata = v.meta
	for _, p := range r.Problems {
		switch {
		case within1(p.Path, dbDirName), p.Path != "" && p.Path == v.db:
			r.DBOK = false
		case r.RegistryOK != nil && (within1(p.Path, configDirName) || p.Path != "" && p.Path == v.registry):
			*r.RegistryOK = false
		case r.ChromaOK != nil && (within1(p.Path, chromaDirName) || p.Path != "" && p.Path == v.chroma):
			*r.ChromaOK = false
		}
	}
	r.Valid = len(r.Problems) == 0
	if r.Valid {
		return r, nil
	}
	return r, fmt.Errorf("%w: %q has %d problems, the first is %s", ErrInvalidBackup, r.Stamp, len(r.Problems), r.Problems[0])
}

func within1(path, dir string) bool { return path == dir || strings.HasPrefix(path, dir+"/") }

// run makes every check that can be made.
func (v *validation) run(ctx context.Context) error {
	if err := v.openSnapshot(ctx); err != nil || v.dir == nil {
		return err
	}
	defer v.dir.Close()
	v.report.Exists = true
	if err := v.readMetadata(); err != nil {
		return err
	}
	if err := v.openManifest(); err != nil {
		return err
	}
	defer v.manifest.Close()
	v.resolvePaths()

	// SQLite's checks and the hashing read the same bytes, mostly from the
	// page cache, on different processors.
	checkCtx, cancel := context.WithCancel(ctx)
	group, checkCtx := errgroup.WithContext(checkCtx)
	defer group.Wait()
	defer cancel()
	var dbProblems, chromaProblems []Problem
	if v.db != "" {
		v.settings.report(Progress{Phase: PhaseValidateDatabase, Path: v.db})
		group.Go(func() (err error) {
			dbProblems, err = v.checkDatabase(checkCtx)
			return err
		})
	}
	if v.chroma != "" {
		group.Go(func() (err error) {
			chromaProblems, err = v.checkChromaDatabase(checkCtx)
			return err
		})
	}
	if err := v.checkFiles(checkCtx); err != nil {
		cancel()
		if werr := group.Wait(); werr != nil && !errors.Is(werr, context.Canceled) {
			return werr
		}
		return err
	}
	if err := v.checkRegistry(); err != nil {
		return err
	}
	if err := v.checkChromaTree(); err != nil {
		return err
	}
	if err := group.Wait(); err != nil {
		return err
	}
	v.report.DBOK = v.db != "" && len(dbProblems) == 0
	for _, p := range append(dbProblems, chromaProblems...) {
		v.problem(p.Code, p.Path, p.Detail)
	}
	return ctx.Err()
}

// openSnapshot opens the snapshot's directory, or reports why there is none.
func (v *validation) openSnapshot(ctx context.Context) error {
	stamp := v.report.Stamp
	if !isStamp(stamp) {
		v.report.Path = filepath.Join(v.BackupDir, snapshotsName)
		v.problem(CodeStampInvalid, "", fmt.Sprintf("%q is not a single name", stamp))
		return nil
	}
	root, err := openSnapshots(v.BackupDir)
	if errors.Is(err, fs.ErrNotExist) {
		v.problem(CodeSnapshotMissing, "", "")
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	info, err := root.Lstat(stamp)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		v.problem(CodeSnapshotMissing, "", "")
		return nil
	case err != nil:
		return err
	case !info.Mode.IsDir():
		v.problem(CodeStampInvalid, "", fmt.Sprintf("%q is not a directory", stamp))
		return nil
	}
	dir, err := root.OpenDir(stamp)
	if err != nil {
		return err
	}
	gone, err := holdSnapshot(ctx, root, dir, stamp)
	if gone {
		v.problem(CodeSnapshotMissing, "", "")
	}
	if gone || err != nil {
		dir.Close()
		return err
	}
	v.dir = dir
	return nil
}

// readMetadata reads backup-metadata.json, or reports why it cannot.
func (v *validation) readMetadata() error {
	text, err := readMetadataFile(v.dir, v.live)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		v.problem(CodeMetadataMissing, "", "")
		return nil
	case errors.Is(err, errNotRegular):
		v.problem(CodeMetadataNotFile, "", "")
		return nil
	case errors.Is(err, errTooLarge):
		v.problem(CodeMetadataTooLarge, "", fmt.Sprintf("more than %d bytes", maxMetadataSize))
		return nil
	case err != nil:
		return err
	}
	v.meta, err = parseMetadata(text)
	v.report.raw = foreignJSON(text, err)
	switch {
	case err == nil:
	case errors.Is(err, errNotJSON):
		v.problem(CodeMetadataInvalidJSON, "", err.Error())
	case errors.Is(err, errFormatVersion):
		v.problem(CodeFormatVersion, "", err.Error())
	default:
		v.problem(CodeMetadataShape, "", err.Error())
	}
	return nil
}

// openManifest opens SHA256SUMS. A snapshot of ours must have one; the Python
// module's do not.
func (v *validation) openManifest() error {
	info, err := v.dir.Lstat(manifestName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if v.meta != nil && v.meta.FormatVersion > 0 {
			v.problem(CodeManifestMissing, "", "")
		}
		return nil
	case err != nil:
		return err
	case !info.Mode.IsRegular() || v.live.contains(info):
		v.problem(CodeManifestNotFile, "", "")
		return nil
	}
	v.manifest, err = v.dir.Open(manifestName)
	return err
}

// resolvePaths finds the recorded places below the snapshot's real directory,
// wherever that has been moved.
func (v *validation) resolvePaths() {
	if v.meta == nil {
		return
	}
	for _, p := range []struct {
		recorded, parent string
		into             *string
		missing          Code
	}{
		{v.meta.DBSnapshotPath, dbDirName, &v.db, CodeDBMissing},
		{v.meta.RegistrySnapshotPath, configDirName, &v.registry, ""},
		{v.meta.ChromaSnapshotPath, "", &v.chroma, ""},
	} {
		if p.recorded == "" {
			if p.missing != "" {
				v.problem(p.missing, "", "none is recorded")
			}
			continue
		}
		rel, ok := relativeTo(v.meta.BackupRoot, p.recorded)
		if !ok {
			v.problem(CodePathOutside, "", fmt.Sprintf("%q", p.recorded))
			v.failPart(p.into)
			continue
		}
		right := path.Dir(rel) == p.parent
		if p.parent == "" {
			right = rel == chromaDirName
		}
		if !right {
			v.problem(CodeMetadataShape, "", fmt.Sprintf("%q is not where a snapshot keeps it", rel))
			v.failPart(p.into)
			continue
		}
		*p.into = rel
		v.beginPart(p.into)
	}
	if v.meta.FormatVersion > 0 && v.meta.ChromaSnapshotIncluded != (v.meta.ChromaSnapshotPath != "") {
		v.problem(CodeMetadataShape, "", "chroma_snapshot_included and chroma_snapshot_path disagree")
	}
}

// beginPart and failPart set the report's flag for a recorded part; later
// problems with its files clear it.
func (v *validation) beginPart(part *string) { v.setPart(part, true) }
func (v *validation) failPart(part *string)  { v.setPart(part, false) }

func (v *validation) setPart(part *string, ok bool) {
	switch part {
	case &v.registry:
		v.report.RegistryOK = &ok
	case &v.chroma:
		v.report.ChromaOK = &ok
	}
}

// checkFiles compares every file with the manifest, if there is one, and
// counts those of Chroma. Both come in the same order, so neither is held in
// memory.
func (v *validation) checkFiles(ctx context.Context) error {
	v.settings.report(Progress{Phase: PhaseValidateFiles, Path: v.report.Path})
	var manifest *manifestCursor
	if v.manifest != nil {
		manifest = &manifestCursor{r: newManifestReader(v.manifest), report: v.problem}
		if err := manifest.advance(ctx); err != nil {
			return err
		}
	}
	files := scan{
		root:  v.dir,
		hash:  v.manifest != nil,
		skip:  func(path string) bool { return path == manifestName },
		alien: v.live.contains,
		progress: func(path string, files, bytes int64) {
			v.settings.report(Progress{Phase: PhaseValidateFiles, Path: path, Files: files, Bytes: bytes})
		},
	}
	err := files.run(ctx, func(f *scannedFile) error {
		if f.irregular {
			v.problem(CodeFileNotRegular, f.path, f.info.Mode.Type().String())
		}
		if strings.HasPrefix(f.path, chromaDirName+"/") && !f.isDir() {
			v.chromaFiles++
			v.chromaBytes += f.info.Size
		}
		if manifest == nil {
			return nil
		}
		return manifest.compare(ctx, f)
	})
	if err != nil || manifest == nil {
		return err
	}
	return manifest.drain(ctx)
}

// A manifestCursor walks along the manifest while files are walked along.
type manifestCursor struct {
	r      *manifestReader
	report func(code Code, path, detail string)
	entry  manifestEntry
	done   bool // no entry: the end, or a line that cannot be read
	broken bool // the latter: what follows cannot be judged
}

func (c *manifestCursor) advance(ctx context.Context) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	c.entry, err = c.r.next()
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errManifest):
		c.report(CodeManifestMalformed, "", strings.TrimPrefix(err.Error(), errManifest.Error()+": "))
		c.done, c.broken = true, true
		return nil
	case err == io.EOF:
		c.done = true
		return nil
	}
	return err
}

// compare judges one file and what the manifest names before it.
func (c *manifestCursor) compare(ctx context.Context, f *scannedFile) error {
	for !c.done && c.entry.path < f.path {
		c.report(CodeFileMissing, c.entry.path, "")
		if err := c.advance(ctx); err != nil {
			return err
		}
	}
	if f.isDir() {
		// The manifest names no directories. Chroma may have empty ones, and
		// config is empty without a registry.
		if !strings.HasPrefix(f.path, chromaDirName+"/") && f.path != configDirName+"/" {
			c.report(CodeFileUnknown, f.path, "")
		}
		return nil
	}
	if c.done || c.entry.path != f.path {
		if !c.broken {
			c.report(CodeFileUnknown, f.path, "")
		}
		return nil
	}
	if !f.irregular && f.sum != c.entry.sum {
		c.report(CodeFileChanged, f.path, "")
	}
	return c.advance(ctx)
}

// drain reports what the manifest names after the last file.
func (c *manifestCursor) drain(ctx context.Context) error {
	for !c.done {
		c.report(CodeFileMissing, c.entry.path, "")
		if err := c.advance(ctx); err != nil {
			return err
		}
	}
	return nil
}

// parentOf opens the directory that holds the entry rel of the snapshot.
func (v *validation) parentOf(rel string) (*fsat.Dir, error) {
	dir, err := v.dir.Reopen()
	if err != nil {
		return nil, err
	}
	parts := strings.Split(rel, "/")
	for _, part := range parts[:len(parts)-1] {
		next, err := dir.OpenDir(part)
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = next
	}
	return dir, nil
}

// absent tells of errors by which a recorded entry is not there, or not as
// such: a link in its way is reported by the walk over all files, and no file
// can have a name that is too long.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) || errors.Is(err, syscall.ELOOP) ||
		errors.Is(err, syscall.ENAMETOOLONG)
}

// checkDatabase judges the database copy.
func (v *validation) checkDatabase(ctx context.Context) (problems []Problem, err error) {
	report := func(code Code, path, detail string) { problems = addProblem(problems, code, path, detail) }
	dir, err := v.parentOf(v.db)
	if err == nil {
		defer dir.Close()
	}
	var info fsat.Info
	if err == nil {
		info, err = dir.Lstat(path.Base(v.db))
	}
	switch {
	case err != nil && absent(err):
		report(CodeDBMissing, "", v.db)
		return problems, nil
	case err != nil:
		return nil, err
	case !info.Mode.IsRegular() || v.live.contains(info):
		// Counted as a problem so that the database does not pass; the walk
		// over all files says the same of it.
		report(CodeDBOpen, v.db, "not a regular file of the snapshot's own")
		return problems, nil
	}
	if info.Size != v.meta.DBSizeBytes {
		report(CodeDBSize, v.db, fmt.Sprintf("%d bytes, recorded are %d", info.Size, v.meta.DBSizeBytes))
	}
	for _, suffix := range []string{"-wal", "-journal"} {
		if side, err := dir.Lstat(path.Base(v.db) + suffix); err == nil {
			// The Python module's own check leaves an empty -wal for a while,
			// which says nothing about the database.
			if v.meta.FormatVersion > 0 || side.Size > 0 {
				report(CodeDBSidecar, v.db+suffix, "")
			}
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENAMETOOLONG) {
			return nil, err
		}
	}
	if info.Size == 0 {
		report(CodeDBIntegrity, v.db, "the file is empty")
		return problems, nil
	}
	if v.meta.FormatVersion > 0 {
		if inForm, err := v.inRollbackForm(dir); err != nil {
			return nil, err
		} else if !inForm {
			report(CodeDBForm, v.db, "")
		}
	}
	err = checkSQLite(ctx, dir, path.Base(v.db), integrityCheck, func(code Code, detail string) {
		report(code, v.db, detail)
	})
	return problems, err
}

// inRollbackForm tells whether the copy can be read without making a WAL. What
// has no header at all is for SQLite to complain about.
func (v *validation) inRollbackForm(dir *fsat.Dir) (bool, error) {
	f, err := dir.Open(path.Base(v.db))
	if err != nil {
		return false, err
	}
	defer f.Close()
	header, err := readHeader(f)
	var pathErr *fs.PathError
	if errors.As(err, &pathErr) {
		return false, err
	}
	return err != nil || header.rollbackForm(), nil
}

// A finding is what SQLite has to say against a database.
type finding struct {
	code   Code
	detail string
}

// checkSQLite runs one of SQLite's checks on a file that nothing writes to.
//
// SQLite tells of a page that it could not read as it does of a damaged one
// (sqlite.org/rescode.html, SQLITE_IOERR_CORRUPTFS; integrity_check's "unable
// to get the page"). So what it says against the file counts only if the file
// can be read, and if it says so again then.
func checkSQLite(ctx context.Context, dir *fsat.Dir, name, pragma string, report func(code Code, detail string)) error {
	findings, err := runSQLiteCheck(ctx, dir, name, pragma)
	if err != nil || len(findings) == 0 {
		return err
	}
	if err := readThrough(ctx, dir, name); err != nil {
		return err
	}
	if findings, err = runSQLiteCheck(ctx, dir, name, pragma); err != nil {
		return err
	}
	for _, f := range findings {
		report(f.code, f.detail)
	}
	return nil
}

func runSQLiteCheck(ctx context.Context, dir *fsat.Dir, name, pragma string) (findings []finding, err error) {
	f, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	switch info, err := f.Stat(); {
	case err != nil:
		return nil, err
	case !info.Mode.IsRegular():
		return nil, &fs.PathError{Op: "open", Path: f.Path(), Err: errNotRegular}
	}
	// Without cell_size_check: both checks look at every cell's place as they
	// walk the trees (checkTreePage in btree.c), before they look up rows, so
	// it finds nothing more and costs a quarter of the time.
	conn, release, err := openReadAhead(f, "_pragma=trusted_schema(0)", "_pragma=temp_store(2)")
	if err == nil {
		defer release()
		if pragma == integrityCheck {
			// Not while it is opened: it makes SQLite read the schema, which may
			// be a large one and has to end when ctx does.
			err = conn.exec(ctx, fmt.Sprintf("PRAGMA cache_size(-%d)", checkCache))
		}
	}
	if err == nil {
		// Without a number SQLite stops at 100 rows (sqlite.org/pragma.html).
		err = conn.query(ctx, fmt.Sprintf("PRAGMA %s(%d)", pragma, maxProblems+1), func(row []driver.Value) error {
			if text := fmt.Sprint(row[0]); text != "ok" && len(findings) <= maxProblems {
				findings = append(findings, finding{CodeDBIntegrity, text})
			}
			return nil
		})
	}
	switch sqliteCode(err) {
	case 0:
		return findings, err
	case sqliteError, sqliteCorrupt, sqliteNotADB, sqliteFormat:
		return append(findings, finding{CodeDBOpen, err.Error()}), nil
	}
	return nil, fmt.Errorf("check %s: %w", f.Path(), err)
}

// readThrough reads the file to its end.
func readThrough(ctx context.Context, dir *fsat.Dir, name string) error {
	f, err := dir.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, hashChunk)
	for off := int64(0); ; off += hashChunk {
		if err := ctx.Err(); err != nil {
			return err
		}
		switch _, err := f.ReadAt(buf, off); {
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}

// checkRegistry judges the registry copy.
func (v *validation) checkRegistry() error {
	if v.registry == "" {
		return nil
	}
	dir, err := v.parentOf(v.registry)
	if err == nil {
		defer dir.Close()
	}
	var data []byte
	if err == nil {
		data, err = readSmall(dir, path.Base(v.registry), maxRegistrySize, v.live, nil)
	}
	switch {
	case err != nil && absent(err):
		v.problem(CodeRegistryMissing, "", v.registry)
		v.failPart(&v.registry)
	case errors.Is(err, errNotRegular): // reported by the walk over all files
		v.failPart(&v.registry)
	case errors.Is(err, errTooLarge):
		v.problem(CodeRegistryInvalidJSON, v.registry, "too large")
	case err != nil:
		return err
	case !isJSON(data):
		v.problem(CodeRegistryInvalidJSON, v.registry, jsonFault(data))
	}
	return nil
}

// checkChromaTree compares the Chroma copy with what is recorded of it.
func (v *validation) checkChromaTree() error {
	if v.chroma == "" {
		return nil
	}
	info, err := v.dir.Lstat(chromaDirName)
	switch {
	case err != nil && absent(err), err == nil && !info.Mode.IsDir():
		v.problem(CodeChromaMissing, "", v.chroma)
		v.failPart(&v.chroma)
		return nil
	case err != nil:
		return err
	}
	if v.chromaFiles != v.meta.ChromaSnapshotFiles {
		v.problem(CodeChromaFiles, v.chroma, fmt.Sprintf("%d files, recorded are %d", v.chromaFiles, v.meta.ChromaSnapshotFiles))
	}
	if v.chromaBytes != v.meta.ChromaSnapshotBytes {
		v.problem(CodeChromaBytes, v.chroma, fmt.Sprintf("%d bytes, recorded are %d", v.chromaBytes, v.meta.ChromaSnapshotBytes))
	}
	return nil
}

// checkChromaDatabase runs SQLite's quick check on the Chroma copy's own
// database. If a journal or WAL lies beside it, the database is whole only
// together with that, and a copy must not be opened in a way that would apply
// it: then the manifest has to do.
func (v *validation) checkChromaDatabase(ctx context.Context) (problems []Problem, err error) {
	const name = chromaDBName
	dir, err := v.dir.OpenDir(chromaDirName)
	if err != nil {
		if absent(err) {
			return nil, nil // for checkChromaTree to report
		}
		return nil, err
	}
	defer dir.Close()
	info, err := dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !info.Mode.IsRegular() || v.live.contains(info):
		return nil, nil // for checkFiles to report
	}
	for _, suffix := range []string{"-wal", "-journal"} {
		side, err := dir.Lstat(name + suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil && side.Size > 0 {
			return nil, nil
		}
	}
	err = checkSQLite(ctx, dir, name, quickCheck, func(_ Code, detail string) {
		problems = addProblem(problems, CodeChromaDBCheck, chromaDirName+"/"+name, detail)
	})
	return problems, err
}
