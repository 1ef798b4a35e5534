package offsite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite/internal/restic"
)

// A push is the state of one Push.
type push struct {
	repo    *Repository
	opts    backup.Options
	log     *slog.Logger
	meter   *meter
	program *restic.Program
	state   *state
	tree    *tree
	recipe  *recipe
	result  *Pushed
}

// Push stores a copy of the snapshot named stamp; the package documentation says
// what it guarantees, and what is stored. If the repository has the same copy
// already, which the stamp, the store and the hash of SHA256SUMS decide, nothing is
// done.
//
// A file whose line in SHA256SUMS is that of the last push is not read. The others
// are hashed while they are linked, or while they are compared with the base and
// the deltas that the state has. A snapshot that is damaged, without SHA256SUMS (the
// Python module's), or has anything but directories and regular files is refused
// with backup.ErrInvalidBackup, and a report; nothing is stored then.
//
// Nobody removes the snapshot while it is read. Two pushes from one backup directory
// to one repository take turns. ctx is heeded; what was sent until then is not sent
// again by the next push. A call runs restic two or three times, which costs about
// half a second of CPU each; reads a changed file once, or a large one and the base
// it is compared with twice; and takes less than 200 MB of memory.
//
// Errors: ErrNoProgram, ErrProgramTooOld, ErrNoRepository, ErrPassword, ErrBusy,
// ErrStuck; backup.ErrInvalidOptions, ErrNoSnapshot, ErrInvalidBackup,
// ErrUnsupportedFile and ErrPanic; ctx's error; or an *fs.PathError.
func (r *Repository) Push(ctx context.Context, opts backup.Options, stamp string) (_ *Pushed, err error) {
	defer wrapCall(&err, "push backup %q", stamp)
	defer recovered(&err)
	p := &push{repo: r, opts: opts, log: loggerOf(opts), meter: newMeter(opts), result: new(Pushed)}
	p.program = r.program()
	p.program.Log = p.log
	defer func() {
		if p.state != nil {
			err = errors.Join(err, p.state.Close())
		}
	}()
	if err := hold(ctx, opts, stamp, p.read); err != nil {
		return nil, err
	}
	if !p.result.AlreadyThere {
		if err := p.send(ctx); err != nil {
			return nil, err
		}
	}
	p.meter.done()
	return p.result, nil
}

// read brings the tree of the state into the form of the snapshot in dir, unless
// the repository has a copy of it.
func (p *push) read(ctx context.Context, dir string) (err error) {
	snap, err := openSnapshot(dir, p.opts.DatabasePath)
	if err != nil {
		return err
	}
	defer snap.Close()
	p.result.Copy = Copy{
		Stamp: snap.stamp, Host: snap.meta.SourceHost, DatabasePath: snap.meta.SourceDBPath, ManifestSHA256: snap.manifest.String(),
		CreatedAt: snap.meta.CreatedAt.UTC().Truncate(time.Second), // as restic keeps it
	}
	p.meter.hash("", 0, 0, 0, 0)
	backupDir := filepath.Dir(filepath.Dir(dir))
	id, err := p.repo.identify(ctx, p.program, backupDir)
	if err != nil {
		return err
	}
	if p.state, err = openState(backupDir, id, p.result.store().stateName()); err != nil {
		return err
	}
	if err := p.state.acquire(ctx, p.repo.patience()); err != nil {
		return err
	}
	p.program.Cache = filepath.Join(filepath.Dir(p.state.dir), cacheName)
	p.program.Inherit = inherited(p.state.lock)
	known, err := p.program.Snapshots(ctx, ownTag)
	if err != nil {
		return err
	}
	if known, err = p.settle(ctx, known); err != nil {
		return err
	}
	if p.isThere(known) {
		return nil
	}
	if err := snap.walk(ctx); err != nil {
		return err
	}
	if err := p.state.prepare(); err != nil {
		return fmt.Errorf("prepare the state: %w", err)
	}
	p.tree = &tree{state: p.state, ctx: ctx, snap: snap, log: p.log, meter: p.meter, old: make(index), next: make(index)}
	if p.hasParent(known) {
		p.tree.old = readIndex(p.state.root)
	}
	if err := p.tree.store(); err != nil {
		return err
	}
	return p.finishTree(snap)
}

// isThere looks for the copy that is to be made.
func (p *push) isThere(known []restic.Snapshot) bool {
	for _, s := range known {
		c, ok := copyOf(s)
		if ok && c.Stamp == p.result.Stamp && c.store() == p.result.store() && c.ManifestSHA256 == p.result.ManifestSHA256 {
			p.result.ID, p.result.AlreadyThere = c.ID, true
			return true
		}
	}
	return false
}

// hasParent reports whether restic finds a snapshot that it compares the tree with.
// Without one it reads all files again, so they are hashed again, too: what nobody
// has read for months may not be what it was.
func (p *push) hasParent(known []restic.Snapshot) bool {
	return slices.ContainsFunc(known, func(s restic.Snapshot) bool {
		return s.Host == p.result.store().resticHost() && slices.Equal(s.Paths, []string{p.state.treeDir()}) && !s.Time.After(p.result.CreatedAt)
	})
}

// finishTree writes the recipe and the index.
func (p *push) finishTree(snap *snapshot) error {
	p.recipe = &recipe{stamp: snap.stamp, manifest: snap.manifest, dirs: snap.dirs, files: snap.files}
	if err := p.state.write(path.Join(treeName, recipeName), p.recipe.write); err != nil {
		return fmt.Errorf("write the recipe: %w", err)
	}
	if err := p.state.saveIndex(p.tree.next); err != nil {
		return fmt.Errorf("write the index: %w", err)
	}
	p.result.ReadBytes, p.result.ChangedBytes = p.tree.read, p.tree.changed
	return nil
}

// send has restic store the tree.
func (p *push) send(ctx context.Context) error {
	if err := p.begin(); err != nil {
		return fmt.Errorf("note that the push is not whole yet: %w", err)
	}
	stored, err := p.backup(ctx)
	if errors.Is(err, restic.ErrIncomplete) {
		return forget(ctx, p.program, stored.ID, fmt.Errorf("read %s: %w", p.state.treeDir(), err))
	}
	if err != nil {
		return err
	}
	p.tree.ctx = ctx
	noted := p.tree.noted
	wrong, err := p.tree.recheck(p.recipe)
	if err == nil && len(wrong) > 0 {
		err = fmt.Errorf("%s changed while it was stored: %s; push again", p.state.treeDir(), strings.Join(wrong[:min(len(wrong), 10)], ", "))
	}
	if err != nil {
		return forget(ctx, p.program, stored.ID, err)
	}
	// The copy is whole. What cannot be written now costs time at the next push.
	if p.tree.noted > noted {
		if err := p.state.saveIndex(p.tree.next); err != nil {
			p.log.Warn("offsite_index_not_written", "path", p.state.dir, "reason", err.Error())
		}
	}
	if err := p.state.root.Remove(pendingName); err != nil {
		p.log.Warn("offsite_pending_left", "path", p.state.dir, "reason", err.Error())
	}
	p.result.ID, p.result.UploadedBytes = stored.ID, stored.Added
	p.log.Info("offsite_pushed", "stamp", p.result.Stamp, "id", p.result.ID, "read_bytes", p.result.ReadBytes,
		"changed_bytes", p.result.ChangedBytes, "uploaded_bytes", p.result.UploadedBytes)
	return nil
}

// backup runs restic backup.
func (p *push) backup(ctx context.Context) (stored restic.Summary, err error) {
	report := func(s restic.Status) {
		p.meter.pass(backup.Progress{Phase: backup.PhaseExport, Files: s.Files, TotalFiles: s.TotalFiles, Bytes: s.Bytes, TotalBytes: s.TotalBytes}, hashed, uploaded)
	}
	report(restic.Status{})
	err = watch(ctx, p.program, report, func(ctx context.Context) (err error) {
		stored, err = p.program.Backup(ctx, restic.BackupArgs{
			Dir: p.state.treeDir(), Host: p.result.store().resticHost(), Tags: p.result.tags(), Time: p.result.CreatedAt,
		})
		return err
	})
	return stored, err
}
