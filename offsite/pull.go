package offsite

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite/internal/restic"
)

// A pull is the state of one Pull.
type pull struct {
	repo    *Repository
	opts    backup.Options
	log     *slog.Logger
	meter   *meter
	program *restic.Program
	chosen  Copy
	scratch *scratch
	recipe  *recipe
}

// Pull adds the snapshot named stamp to opts.BackupDir, which is created if it does
// not exist, and returns its metadata; the package documentation says what it
// guarantees. If the snapshot is there already, nothing is downloaded: the same one
// is returned, and another one is backup.ErrSnapshotExists.
//
// If copies of several stores have that stamp, opts.DatabasePath and opts.Host
// choose; otherwise they don't matter. As in an import, opts.DespiteFindings, Note,
// RecordVerdicts, Verify and Connect are heeded.
//
// restic restores the copy into a directory in opts.BackupDir, and each of its files
// is removed when it is in the snapshot. So a pull needs the space of the snapshot
// and of its largest file, which is compared with what is free before. What a
// process that dies leaves there is removed by the next pull.
//
// Errors: ErrNoCopy, ErrOtherStore, ErrDamaged, ErrNoProgram, ErrProgramTooOld,
// ErrNoRepository, ErrPassword, ErrBusy, ErrStuck; backup.ErrInvalidOptions,
// ErrSnapshotExists, ErrInvalidBackup for one with findings, ErrNoSpace,
// ErrRestoreUnfinished and ErrPanic; ctx's error; or an *fs.PathError. Nothing was
// added then.
func (r *Repository) Pull(ctx context.Context, opts backup.Options, stamp string) (_ *backup.Metadata, err error) {
	defer wrapCall(&err, "pull backup %q", stamp)
	defer recovered(&err)
	p, err := r.newPull(opts, stamp)
	if err != nil {
		return nil, err
	}
	here, hereSum, err := p.local(ctx, stamp)
	if err != nil && !errors.Is(err, backup.ErrNoSnapshot) {
		return nil, err
	}
	isHere := err == nil
	p.download(restic.Status{})
	if err := p.choose(ctx, stamp); err != nil {
		return nil, err
	}
	if isHere {
		if hereSum.String() != p.chosen.ManifestSHA256 || here == nil {
			return nil, fmt.Errorf("%w: %s in %s, and it is another one: rename its directory to pull this one", backup.ErrSnapshotExists, stamp, opts.BackupDir)
		}
		p.meter.done()
		return here, nil
	}
	return p.fetch(ctx, p.importCopy)
}

// newPull returns a pull that has done nothing yet.
func (r *Repository) newPull(opts backup.Options, stamp string) (*pull, error) {
	if !isStamp(stamp) {
		return nil, fmt.Errorf("%w: %q is not the stamp of a snapshot, such as 20261124T115419Z", ErrNoCopy, stamp)
	}
	p := &pull{repo: r, opts: opts, log: loggerOf(opts), meter: newMeter(opts), program: r.program()}
	p.program.Log = p.log
	return p, nil
}

// local returns the metadata and the hash of SHA256SUMS of the snapshot in the
// backup directory. The metadata are nil if it cannot be read. The errors are those
// of backup.HoldRuntimeBackup.
func (p *pull) local(ctx context.Context, stamp string) (meta *backup.Metadata, manifest sum, err error) {
	err = hold(ctx, p.opts, stamp, func(_ context.Context, dir string) error {
		snap, err := openSnapshot(dir, p.opts.DatabasePath)
		if err != nil {
			return nil // it is another one than any copy
		}
		meta, manifest = snap.meta, snap.manifest
		return snap.Close()
	})
	return meta, manifest, err
}

// download reports how far restic is.
func (p *pull) download(s restic.Status) {
	p.meter.pass(backup.Progress{Phase: backup.PhaseImport, Files: s.Files, TotalFiles: s.TotalFiles, Bytes: s.Bytes, TotalBytes: s.TotalBytes}, 0, downloaded)
}

// choose finds the copy of that stamp.
func (p *pull) choose(ctx context.Context, stamp string) error {
	all, err := copiesIn(ctx, p.program)
	if err != nil {
		return err
	}
	p.chosen, err = chooseCopy(p.opts, stamp, all)
	return err
}

// chooseCopy returns the copy of a stamp, the last one if the store was pushed more
// than once. If several stores have one, the options must say which is meant.
func chooseCopy(opts backup.Options, stamp string, all []Copy) (c Copy, err error) {
	found := slices.DeleteFunc(slices.Clone(all), func(c Copy) bool { return c.Stamp != stamp })
	if len(found) == 0 {
		return c, fmt.Errorf("%w of %s%s", ErrNoCopy, stamp, listStamps(all))
	}
	last := found[len(found)-1]
	if !slices.ContainsFunc(found, func(c Copy) bool { return c.store() != last.store() }) {
		return last, nil
	}
	own, _, err := ofStore(opts, found)
	if err != nil {
		return c, err
	}
	if len(own) == 0 {
		return c, fmt.Errorf("%w of %s of this store; there are some of %s", ErrNoCopy, stamp, joinStores(found))
	}
	return own[len(own)-1], nil
}

// listStamps says which copies there are.
func listStamps(all []Copy) string {
	const most = 10
	if len(all) == 0 {
		return "; the repository has none at all"
	}
	var stamps []string
	for _, c := range all[max(0, len(all)-most):] {
		stamps = append(stamps, c.Stamp)
	}
	more := ""
	if len(all) > most {
		more = fmt.Sprintf(", and %d older ones", len(all)-most)
	}
	return "; there are " + strings.Join(stamps, ", ") + more
}

// fetch restores the chosen copy into a scratch directory, judges it, and calls
// use, which imports it.
func (p *pull) fetch(ctx context.Context, use func(context.Context) (*backup.Metadata, error)) (_ *backup.Metadata, err error) {
	backupDir, err := filepath.Abs(p.opts.BackupDir)
	if err != nil {
		return nil, err
	}
	id, err := p.repo.identify(ctx, p.program, backupDir)
	if err != nil {
		return nil, err
	}
	state, err := openState(backupDir, id)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	p.program.Cache = filepath.Join(state.dir, cacheName)
	if p.recipe, err = readRecipe(ctx, p.program, p.chosen); err != nil {
		return nil, err
	}
	if err := checkSpace(state.dir, p.recipe); err != nil {
		return nil, err
	}
	// restic would restore whatever is stored: files that fill the disk, devices, and
	// links, which others of its files could go through.
	if problems, err := differences(ctx, p.program, p.chosen.ID, p.recipe, 1); err != nil {
		return nil, err
	} else if len(problems) > 0 {
		return nil, fmt.Errorf("%w: %s", ErrDamaged, problems[0])
	}
	if p.scratch, err = state.newScratch(p.log); err != nil {
		return nil, fmt.Errorf("make a directory for the copy in %s: %w", state.dir, err)
	}
	defer func() { err = errors.Join(err, p.scratch.remove()) }()
	p.program.Inherit = inherited(p.scratch.lock)
	if err := watch(ctx, p.program, p.download, func(ctx context.Context) error {
		return p.program.Restore(ctx, p.chosen.ID, p.scratch.dir())
	}); err != nil {
		return nil, err
	}
	if err := p.scratch.judge(p.recipe); err != nil {
		return nil, err
	}
	if err := p.checkFirst(); err != nil {
		return nil, err
	}
	return use(ctx)
}

// readRecipe reads the recipe of a copy and compares it with the tags.
func readRecipe(ctx context.Context, program *restic.Program, c Copy) (*recipe, error) {
	data, err := program.Dump(ctx, c.ID, "/"+recipeName, maxRecipe)
	if errors.Is(err, restic.ErrTooMuch) {
		return nil, badRecipe("%w", err)
	}
	if exit := new(restic.ExitError); errors.As(err, &exit) &&
		(strings.Contains(exit.Message, "not found in snapshot") || strings.Contains(exit.Message, "should be a file")) {
		return nil, fmt.Errorf("%w: %w", errNoRecipe, err)
	}
	if err != nil {
		return nil, err
	}
	r, err := parseRecipe(data)
	if err != nil {
		return nil, err
	}
	if r.stamp != c.Stamp || r.manifest.String() != c.ManifestSHA256 {
		return nil, badRecipe("it is that of %.100q with the SHA256SUMS of hash %s, and the tags name %s and %s", r.stamp, r.manifest, c.Stamp, c.ManifestSHA256)
	}
	return r, nil
}

// checkSpace compares what a pull needs with the space that is free. A file of the
// copy is there until the snapshot has it.
func checkSpace(dir string, r *recipe) error {
	free, known := freeSpace(dir)
	if !known {
		return nil
	}
	var copied, most int64
	for _, f := range r.files {
		for _, n := range stored(f) {
			copied += n
		}
	}
	written := int64(0)
	for _, f := range r.files { // in about that order
		written += f.size
		most = max(most, copied+written)
		for _, n := range stored(f) {
			copied -= n
		}
	}
	if most > free {
		return fmt.Errorf("%w: it needs about %d bytes in %s and %d are free", backup.ErrNoSpace, most, dir, free)
	}
	return nil
}

// checkFirst compares SHA256SUMS with the tag and the recipe, and the metadata with
// the tags. All other files are compared with SHA256SUMS while they are imported.
func (p *pull) checkFirst() error {
	f, err := openAnyMode(p.scratch.root, path.Join(filesName, manifestName))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it has no %s", ErrDamaged, manifestName)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	lines, whole, err := readManifest(f)
	if errors.Is(err, errManifest) {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if err != nil {
		return err
	}
	if whole != p.recipe.manifest {
		return fmt.Errorf("%w: its %s does not have the hash of its tag", ErrDamaged, manifestName)
	}
	for _, f := range p.recipe.files {
		switch {
		case f.path == manifestName:
			continue
		case len(lines) == 0 || lines[0].path != f.path || lines[0].sum != f.sum:
			return fmt.Errorf("%w: its recipe and its %s differ at %.200q", ErrDamaged, manifestName, f.path)
		}
		lines = lines[1:]
	}
	if len(lines) > 0 {
		return fmt.Errorf("%w: its recipe lacks %.200q", ErrDamaged, lines[0].path)
	}
	return p.checkMetadata()
}

func (p *pull) checkMetadata() error {
	f, err := openAnyMode(p.scratch.root, path.Join(filesName, metadataName))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: it has no %s", ErrDamaged, metadataName)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxMetadata+1))
	if err != nil {
		return err
	}
	meta, err := parseMetadata(bytes.Clone(data))
	if err != nil {
		return fmt.Errorf("%w: its metadata: %w", ErrDamaged, err)
	}
	if meta.Stamp != p.chosen.Stamp || meta.SourceHost != p.chosen.Host || meta.SourceDBPath != p.chosen.DatabasePath {
		return fmt.Errorf("%w: its metadata are those of %s of %s:%s, and its tags say %s of %s:%s", ErrDamaged,
			meta.Stamp, meta.SourceHost, meta.SourceDBPath, p.chosen.Stamp, p.chosen.Host, p.chosen.DatabasePath)
	}
	return nil
}

// importCopy imports the archive that the scratch directory makes.
func (p *pull) importCopy(ctx context.Context) (*backup.Metadata, error) {
	ctx, cancel := context.WithCancel(ctx)
	r, w := io.Pipe()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var err error
		defer func() { w.CloseWithError(err) }()
		defer recovered(&err)
		err = writeArchive(ctx, w, p.scratch.root, p.recipe)
	}()
	defer func() { <-ended }()
	defer r.Close() // ends a write that waits
	defer cancel()
	opts := p.opts
	if opts.OnProgress != nil {
		opts.OnProgress = p.meter.imported
	}
	meta, err := backup.ImportRuntimeBackup(ctx, opts, r)
	invalid := new(backup.InvalidBackupError)
	switch {
	case errors.Is(err, backup.ErrSnapshotExists) && meta != nil: // somebody was faster
		return meta, nil
	case errors.Is(err, backup.ErrInvalidArchive), errors.As(err, &invalid) && !invalid.Report.Intact:
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	case err != nil:
		return nil, err
	}
	p.log.Info("offsite_pulled", "stamp", meta.Stamp, "id", p.chosen.ID)
	return meta, nil
}
