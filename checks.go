package backup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/filetree"
	"github.com/atocore/backup/internal/format"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/progress"
	"github.com/atocore/backup/internal/pyjson"
	"github.com/atocore/backup/internal/registry"
	"github.com/atocore/backup/internal/sqlitedb"
)

// The checks of a validation. Each returns the problems that it found, or an
// error if it could not be completed.

// A checkResult is the problems that each check found, and what could not be
// checked.
type checkResult struct {
	files, registry, chroma, db, chromaDB []Problem
	notes                                 []Note
	count, bytes                          int64 // of the files
}

// check makes every check that can be made. SQLite's checks run beside the
// hashing: they read the same bytes, mostly from the page cache, on another
// CPU.
func (s *settings) check(ctx context.Context, snap *openedSnapshot) (found checkResult, err error) {
	checkCtx, cancel := context.WithCancel(ctx)
	group, checkCtx := errgroup.WithContext(checkCtx)
	defer group.Wait()
	defer cancel()
	var dbNotes, chromaNotes []Note
	if snap.places.db.path != "" {
		s.progress(Progress{Phase: PhaseValidateDatabase, Path: snap.places.db.path})
		group.Go(func() (err error) {
			found.db, dbNotes, err = s.checkDatabase(checkCtx, snap)
			return err
		})
	}
	if snap.places.chroma.path != "" {
		group.Go(func() (err error) {
			found.chromaDB, chromaNotes, err = s.checkChromaDatabase(checkCtx, snap)
			return err
		})
	}
	tree, err := s.checkFiles(checkCtx, snap)
	if err != nil {
		cancel()
		if werr := group.Wait(); werr != nil && !errors.Is(werr, context.Canceled) {
			return found, werr
		}
		return found, err
	}
	found.files, found.count, found.bytes = tree.problems, tree.files, tree.bytes
	if found.registry, err = checkRegistry(snap); err != nil {
		return found, err
	}
	if found.chroma, err = checkChromaTree(snap, tree); err != nil {
		return found, err
	}
	if err := group.Wait(); err != nil {
		return found, err
	}
	found.notes = append(dbNotes, chromaNotes...)
	return found, ctx.Err()
}

// A checkedTree is the result of walking over all files of a snapshot.
type checkedTree struct {
	problems                 []Problem
	files, bytes             int64 // of the regular files
	chromaFiles, chromaBytes int64
}

// codeOf maps the ways in which files can differ from the manifest to codes.
var codeOf = map[format.Mismatch]Code{
	format.Missing:   CodeFileMissing,
	format.Changed:   CodeFileChanged,
	format.Unknown:   CodeFileUnknown,
	format.Malformed: CodeManifestMalformed,
}

// checkFiles compares every file with the manifest, if there is one, and
// counts the Chroma copy's. Files and manifest come in the same order, so
// neither is held in memory.
func (s *settings) checkFiles(ctx context.Context, snap *openedSnapshot) (tree checkedTree, err error) {
	report := func(code Code, path, detail string) {
		tree.problems = addProblem(tree.problems, code, path, detail)
	}
	s.progress(Progress{Phase: PhaseValidateFiles, Path: snap.dir.Path()})
	var manifest *format.Cursor
	if snap.manifest != nil {
		manifest = format.NewCursor(format.NewReader(snap.manifest), func(kind format.Mismatch, path, detail string) {
			report(codeOf[kind], path, detail)
		})
	}
	err = filetree.Scan(ctx, snap.dir, filetree.ScanOptions{
		Hash:      manifest != nil,
		Skip:      func(path string) bool { return path == format.ManifestName },
		Forbidden: snap.live.Contains,
		Progress: func(path string, files, bytes int64) {
			s.progress(Progress{Phase: PhaseValidateFiles, Path: path, Files: files, Bytes: bytes})
		},
	}, func(f *filetree.File) error {
		if f.Irregular {
			report(CodeFileNotRegular, f.Path, f.Info.Mode.Type().String())
		} else if !f.IsDir() {
			tree.files++
			tree.bytes += f.Info.Size
		}
		if strings.HasPrefix(f.Path, format.ChromaDir+"/") && !f.IsDir() {
			tree.chromaFiles++
			tree.chromaBytes += f.Info.Size
		}
		if manifest == nil {
			return nil
		}
		return manifest.Compare(ctx, f.Path, f.IsDir(), f.Irregular, f.Sum)
	})
	if err != nil || manifest == nil {
		return tree, err
	}
	return tree, manifest.Drain(ctx)
}

// openParent opens the directory of the snapshot that holds the entry rel.
func openParent(snapshot *fsat.Dir, rel string) (*fsat.Dir, error) {
	dir, err := snapshot.Reopen()
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

// checkDatabase checks the database copy.
func (s *settings) checkDatabase(ctx context.Context, snap *openedSnapshot) (problems []Problem, notes []Note, err error) {
	report := func(code Code, path, detail string) { problems = addProblem(problems, code, path, detail) }
	db := snap.places.db.path
	name := path.Base(db)
	dir, err := openParent(snap.dir, db)
	if err == nil {
		defer dir.Close()
	}
	var info fsat.Info
	if err == nil {
		info, err = dir.Lstat(name)
	}
	switch {
	case err != nil && fsat.IsMissing(err):
		report(CodeDBMissing, "", db)
		return problems, nil, nil
	case err != nil:
		return nil, nil, err
	case !info.Mode.IsRegular() || snap.live.Contains(info):
		// Reported here as well as by the walk over all files, so that the
		// database does not pass.
		report(CodeDBOpen, db, "not a regular file of the snapshot's own")
		return problems, nil, nil
	}
	if info.Size != snap.meta.DBSizeBytes {
		report(CodeDBSize, db, fmt.Sprintf("%d bytes, recorded are %d", info.Size, snap.meta.DBSizeBytes))
	}
	for _, suffix := range []string{"-wal", "-journal"} {
		if side, err := dir.Lstat(name + suffix); err == nil {
			// The Python module's own check leaves an empty -wal for a while,
			// which says nothing about the database.
			if snap.meta.FormatVersion > 0 || side.Size > 0 {
				report(CodeDBSidecar, db+suffix, "")
			}
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENAMETOOLONG) {
			return nil, nil, err
		}
	}
	if info.Size == 0 {
		report(CodeDBIntegrity, db, "the file is empty")
		return problems, nil, nil
	}
	if snap.meta.FormatVersion > 0 {
		if inForm, err := sqlitedb.IsRollbackForm(dir, name); err != nil {
			return nil, nil, err
		} else if !inForm {
			report(CodeDBForm, db, "")
		}
	}
	checked, err := s.checkSQLite(ctx, dir, name, sqlitedb.IntegrityCheck)
	for _, f := range checked.Findings {
		code := CodeDBIntegrity
		if f.Unreadable {
			code = CodeDBOpen
		}
		report(code, db, f.Text)
	}
	return problems, notesOf(db, checked), err
}

// checkSQLite runs one of SQLite's checks on a file. Functions of the host run
// in it, on a goroutine of its own.
func (s *settings) checkSQLite(ctx context.Context, dir *fsat.Dir, name string, kind sqlitedb.Kind) (_ sqlitedb.Checked, err error) {
	defer errdefs.Recover(&err)
	return sqlitedb.Check(ctx, dir, name, sqlitedb.CheckOptions{Kind: kind, Limit: maxProblems + 1, Connect: s.Connect})
}

func notesOf(file string, checked sqlitedb.Checked) (notes []Note) {
	for _, text := range checked.Notes {
		notes = append(notes, Note{file, oneLine(text)})
	}
	return notes
}

// checkRegistry checks that the registry copy is JSON. A copy that is not a
// regular file is reported by the walk over all files.
func checkRegistry(snap *openedSnapshot) (problems []Problem, err error) {
	at := snap.places.registry.path
	if at == "" {
		return nil, nil
	}
	dir, err := openParent(snap.dir, at)
	if err == nil {
		defer dir.Close()
	}
	var data []byte
	if err == nil {
		data, err = dir.ReadSmall(path.Base(at), registry.MaxSize, snap.live.Contains, nil)
	}
	switch {
	case err != nil && fsat.IsMissing(err):
		return addProblem(nil, CodeRegistryMissing, "", at), nil
	case errors.Is(err, fsat.ErrNotRegular):
		return nil, nil
	case errors.Is(err, fsat.ErrTooLarge):
		return addProblem(nil, CodeRegistryInvalidJSON, at, "too large"), nil
	case err != nil:
		return nil, err
	}
	if fault := registry.Fault(data); fault != "" {
		return addProblem(nil, CodeRegistryInvalidJSON, at, fault), nil
	}
	return nil, nil
}

// checkChromaTree compares the number and the size of the Chroma copy's files
// with the metadata.
func checkChromaTree(snap *openedSnapshot, tree checkedTree) (problems []Problem, err error) {
	at := snap.places.chroma.path
	if at == "" {
		return nil, nil
	}
	info, err := snap.dir.Lstat(format.ChromaDir)
	switch {
	case err != nil && fsat.IsMissing(err) && snap.meta.ChromaSnapshotFiles == 0 && snap.meta.ChromaSnapshotBytes == 0:
		return nil, nil // an empty directory, which an object store does not keep
	case err != nil && fsat.IsMissing(err), err == nil && !info.Mode.IsDir():
		return addProblem(nil, CodeChromaMissing, "", at), nil
	case err != nil:
		return nil, err
	}
	if want := snap.meta.ChromaSnapshotFiles; tree.chromaFiles != want {
		problems = addProblem(problems, CodeChromaFiles, at, fmt.Sprintf("%d files, recorded are %d", tree.chromaFiles, want))
	}
	if want := snap.meta.ChromaSnapshotBytes; tree.chromaBytes != want {
		problems = addProblem(problems, CodeChromaBytes, at, fmt.Sprintf("%d bytes, recorded are %d", tree.chromaBytes, want))
	}
	return problems, nil
}

// checkChromaDatabase runs SQLite's quick check on the Chroma copy's own
// database. If a journal or WAL lies beside it, the database is whole only
// together with that, and a copy must not be opened in a way that applies it;
// then the manifest is the only check.
func (s *settings) checkChromaDatabase(ctx context.Context, snap *openedSnapshot) (problems []Problem, notes []Note, err error) {
	const name = format.ChromaDBName
	dir, err := snap.dir.OpenDir(format.ChromaDir)
	if err != nil {
		if fsat.IsMissing(err) {
			return nil, nil, nil // reported by checkChromaTree
		}
		return nil, nil, err
	}
	defer dir.Close()
	info, err := dir.Lstat(name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil, nil
	case err != nil:
		return nil, nil, err
	case !info.Mode.IsRegular() || snap.live.Contains(info):
		return nil, nil, nil // reported by checkFiles
	}
	for _, suffix := range []string{"-wal", "-journal"} {
		side, err := dir.Lstat(name + suffix)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
		if err == nil && side.Size > 0 {
			return nil, nil, nil
		}
	}
	const file = format.ChromaDir + "/" + name
	checked, err := s.checkSQLite(ctx, dir, name, sqlitedb.QuickCheck)
	for _, f := range checked.Findings {
		problems = addProblem(problems, CodeChromaDBCheck, file, f.Text)
	}
	return problems, notesOf(file, checked), err
}

// readMetadata reads backup-metadata.json. If that fails for a reason that
// lies in the snapshot, it returns the problem. raw is the file's JSON, even
// if it is not the JSON of metadata.
func readMetadata(dir *fsat.Dir, live sqlitedb.Files) (meta *Metadata, raw string, problems []Problem, err error) {
	problem := func(code Code, detail string) []Problem { return addProblem(nil, code, "", detail) }
	text, err := readMetadataFile(dir, live)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, "", problem(CodeMetadataMissing, ""), nil
	case errors.Is(err, fsat.ErrNotRegular):
		return nil, "", problem(CodeMetadataNotFile, ""), nil
	case errors.Is(err, fsat.ErrTooLarge):
		return nil, "", problem(CodeMetadataTooLarge, fmt.Sprintf("more than %d bytes", format.MaxMetadataSize)), nil
	case err != nil:
		return nil, "", nil, err
	}
	meta, fault := parseMetadata(text)
	raw = foreignJSON(text, meta, fault)
	switch {
	case fault == nil:
		return meta, raw, nil, nil
	case errors.Is(fault, pyjson.ErrNotJSON):
		problems = problem(CodeMetadataInvalidJSON, fault.Error())
	case errors.Is(fault, errFormatVersion):
		problems = problem(CodeFormatVersion, fault.Error())
	default:
		problems = problem(CodeMetadataShape, fault.Error())
	}
	return nil, raw, problems, nil
}

// places holds the places of a snapshot's parts that its metadata record.
type places struct{ db, registry, chroma place }

// A place is the recorded place of one part.
type place struct {
	recorded bool   // the metadata name one
	path     string // relative to the snapshot; empty if the part has no usable place
	dir      string // the directory of the snapshot that belongs to the part
}

// passes reports whether the part is where it should be and no check found a
// problem with it: neither one of its own checks, nor another one with any
// of its files.
func (p place) passes(all []Problem, own ...[]Problem) bool {
	for _, found := range own {
		if len(found) > 0 {
			return false
		}
	}
	return p.path != "" && !slices.ContainsFunc(all, func(problem Problem) bool {
		return fsat.IsBelow(problem.Path, p.dir) || problem.Path == p.path
	})
}

// recordedPlaces finds the recorded parts relative to the snapshot, which may
// have been moved.
func recordedPlaces(meta *Metadata) (at places, problems []Problem) {
	if meta == nil {
		return at, nil
	}
	for _, p := range []struct {
		recorded, dir string
		into          *place
	}{
		{meta.DBSnapshotPath, format.DBDir, &at.db},
		{meta.RegistrySnapshotPath, format.ConfigDir, &at.registry},
		{meta.ChromaSnapshotPath, format.ChromaDir, &at.chroma},
	} {
		p.into.dir = p.dir
		if p.recorded == "" {
			if p.dir == format.DBDir {
				problems = addProblem(problems, CodeDBMissing, "", "none is recorded")
			}
			continue
		}
		p.into.recorded = true
		rel, ok := format.Relative(meta.BackupRoot, p.recorded)
		if !ok {
			problems = addProblem(problems, CodePathOutside, "", fmt.Sprintf("%q", p.recorded))
			continue
		}
		right := path.Dir(rel) == p.dir
		if p.dir == format.ChromaDir {
			right = rel == p.dir
		}
		if !right {
			problems = addProblem(problems, CodeMetadataShape, "", fmt.Sprintf("%q is not where a snapshot keeps it", rel))
			continue
		}
		p.into.path = rel
	}
	if meta.FormatVersion > 0 && meta.ChromaSnapshotIncluded != (meta.ChromaSnapshotPath != "") {
		problems = addProblem(problems, CodeMetadataShape, "", "chroma_snapshot_included and chroma_snapshot_path disagree")
	}
	return at, problems
}

// createSteps returns what a create will do with a live store of this size. The
// weights count reading, and writing through to the disk.
func createSteps(database, chroma int64, verify bool) []progress.Step {
	all := float64(database) + float64(chroma)
	hash := all
	if chroma == 0 { // the database may be hashed while it is copied
		hash /= 4
	}
	steps := []progress.Step{
		{Phase: string(PhaseDatabase), Size: database, Weight: float64(database)},
		{Phase: string(PhaseChroma), Size: chroma, Weight: float64(chroma)},
		{Phase: string(PhaseHash), Size: database + chroma, Weight: hash},
		{Phase: string(PhaseSync), Size: database + chroma, Weight: all / 2},
	}
	if verify {
		steps = append(steps, validateSteps(database, chroma)...)
	}
	return steps
}
