// Package drill rehearses a restore: it restores a snapshot into a scratch
// directory, opens what was restored as a service would, and removes it again. A
// backup is worth as much as its restore, so a drill belongs on a timetable.
//
// A drill does not touch the live store: it neither reads nor locks it, and calls
// none of the functions with which a restore stops its users. The store may be in
// use meanwhile, and snapshots may be created and pruned.
package drill

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/sqlitedb"
)

// A Result is what a drill found. Its fields are named like those of a
// validation report.
type Result struct {
	Stamp string `json:"stamp"` // the snapshot
	// DBOK, RegistryOK and ChromaOK report that a part was restored, and that
	// nothing was found wrong with it. They are false for a part with findings.
	// RegistryOK and ChromaOK are nil if the snapshot has no such part.
	DBOK       bool  `json:"db_ok"`
	RegistryOK *bool `json:"registry_ok"`
	ChromaOK   *bool `json:"chroma_ok"`
	Files      int64 `json:"files"` // how many were restored
	Bytes      int64 `json:"bytes"` // the sum of their sizes
	// Findings are those despite which the snapshot was restored. Notes say what
	// could not be checked. Both quote the snapshot, which is untrusted: escape
	// them before they are shown.
	Findings []string `json:"findings,omitempty"`
	Notes    []string `json:"notes,omitempty"`
}

// Run rehearses a restore of the snapshot named stamp. It restores the snapshot
// into a scratch directory that it creates in parent, or in the directory for
// temporary files if parent is empty. It opens both databases for writing, as a
// service does, and has SQLite check them, reads the registry, and removes the
// scratch directory. Before, it removes the scratch directories in parent of
// drills that were killed: atocore-drill- and 16 hexadecimal digits. parent must
// exist, and must not lie inside the snapshots.
//
// A nil error means that the snapshot can be restored. One that is damaged is
// refused, and so is one with findings, unless opts.DespiteFindings is set; then
// the result lists them.
//
// Of opts, a drill uses BackupDir, DespiteFindings, RecordVerdicts (which is
// recommended: a drill validates the snapshot), Wait, Host, Clock, Logger,
// OnProgress and Connect. DatabasePath only serves to recognize the live database:
// a snapshot with a file that is a hard link to it is refused without being
// opened. The other paths, DB, Capture, InitDB, Locker, Parts, Confirm and Offline
// are not used.
//
// The directory for temporary files is often in memory; parent should be on a disk
// with space for one copy of the snapshot. A call reads the snapshot about five
// times, with the copy. After any error, and if ctx ends, the scratch directory is
// removed; what cannot be removed is part of the error.
//
// Errors: [backup.ErrInvalidBackup] with the report for a snapshot that cannot be
// restored, [backup.ErrNoSnapshot], [backup.ErrInvalidOptions],
// [backup.ErrRestoreUnfinished] while the backup directory records an unfinished
// restore, [backup.ErrBusy] beside a restore of the store that is running,
// [backup.ErrPanic], ctx's error, or an error that names the file that could not be
// restored or opened, or parent.
func Run(ctx context.Context, opts backup.Options, stamp, parent string) (result *Result, err error) {
	defer func() {
		if err != nil {
			result, err = nil, fmt.Errorf("drill: %w", err)
		}
	}()
	snapshot, err := find(ctx, opts, stamp)
	if err != nil {
		return nil, err
	}
	if nameOf(snapshot.Metadata) == "" {
		return nil, whyInvalid(ctx, opts, stamp)
	}
	// Between the two attempts of a rehearsal the snapshot must not be removed.
	var rehearsed error
	err = backup.HoldRuntimeBackup(ctx, opts, stamp, func(ctx context.Context, dir string) error {
		switch linked, err := hasLink(ctx, dir, opts.DatabasePath); {
		case err != nil:
			rehearsed = err
		case linked:
			rehearsed = whyInvalid(ctx, opts, stamp)
		default:
			result, rehearsed = rehearse(ctx, opts, snapshot, parent)
		}
		return nil
	})
	if rehearsed != nil {
		err = rehearsed
	}
	return result, err
}

// find returns the snapshot named stamp.
func find(ctx context.Context, opts backup.Options, stamp string) (backup.Snapshot, error) {
	list, err := backup.ListRuntimeBackups(ctx, opts)
	// A restore of the live store that is unfinished does not concern a drill,
	// unless the backup directory records it: then the rehearsal is refused.
	if err != nil && !errors.Is(err, backup.ErrRestoreUnfinished) {
		return backup.Snapshot{}, err
	}
	at := slices.IndexFunc(list, func(s backup.Snapshot) bool { return s.Stamp == stamp })
	if at < 0 {
		return backup.Snapshot{}, whyInvalid(ctx, opts, stamp)
	}
	return list[at], nil
}

// whyInvalid returns the error of the validation of a snapshot that cannot be
// restored.
func whyInvalid(ctx context.Context, opts backup.Options, stamp string) error {
	_, err := backup.ValidateBackup(ctx, opts, stamp)
	if err == nil {
		err = fmt.Errorf("snapshot %q has become valid: try again", stamp)
	}
	return err
}

// hasLink reports whether a file below dir is a hard link to the database at live
// or to a file that SQLite keeps beside it. Closing such a file would drop the
// locks that the process has on the database.
func hasLink(ctx context.Context, dir, live string) (linked bool, err error) {
	var files []fs.FileInfo
	for _, suffix := range sqlitedb.Suffixes {
		if info, err := os.Stat(live + suffix); live != "" && err == nil {
			files = append(files, info)
		}
	}
	if len(files) == 0 {
		return false, nil
	}
	err = filepath.WalkDir(dir, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		info, err := entry.Info()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(files, func(file fs.FileInfo) bool { return os.SameFile(file, info) }) {
			linked = true
			return filepath.SkipAll
		}
		return nil
	})
	return linked, err
}

// rehearse restores the snapshot in a scratch directory: without the findings, if
// it has any, and then despite them, if opts say so.
func rehearse(ctx context.Context, opts backup.Options, snapshot backup.Snapshot, parent string) (_ *Result, err error) {
	defer recoverPanic(&err)
	dir, err := newScratch(ctx, parent)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dir.remove()) }()
	in := backup.Options{
		BackupDir: opts.BackupDir, Host: opts.Host, Connect: opts.Connect, RecordVerdicts: opts.RecordVerdicts,
		Wait: opts.Wait, Clock: opts.Clock, Logger: opts.Logger, OnProgress: opts.OnProgress,

		DatabasePath: filepath.Join(dir.path(), "db", nameOf(snapshot.Metadata)),
		ChromaPath:   filepath.Join(dir.path(), "chroma"),
	}
	if name := base(snapshot.Metadata.RegistrySnapshotPath); name != "" {
		in.RegistryPath = filepath.Join(dir.path(), "config", name)
	}
	result, err := restore(ctx, in, snapshot.Stamp)
	var invalid *backup.InvalidBackupError
	if !opts.DespiteFindings || !errors.As(err, &invalid) || slices.ContainsFunc(invalid.Report.Problems, isDamage) {
		return result, err
	}
	in.DespiteFindings = true
	if result, err = restore(ctx, in, snapshot.Stamp); err != nil {
		return nil, err
	}
	result.DBOK, result.RegistryOK, result.ChromaOK = invalid.Report.DBOK, invalid.Report.RegistryOK, invalid.Report.ChromaOK
	for _, p := range invalid.Report.Problems {
		result.Findings = append(result.Findings, p.String())
	}
	return result, nil
}

func isDamage(p backup.Problem) bool { return !p.Finding }

// nameOf returns the name of the database in a snapshot. It is empty if the
// metadata could not be read or name none.
func nameOf(m *backup.Metadata) string {
	if m == nil {
		return ""
	}
	return base(m.DBSnapshotPath)
}

// base returns the last element of a path that a snapshot records, which is
// untrusted, or an empty string if that cannot be the name of a file.
func base(recorded string) string {
	name := filepath.Base(recorded)
	if recorded == "" || name == "." || !filepath.IsLocal(name) {
		return ""
	}
	return name
}

// recoverPanic turns a panic of Options.Connect into an error. It must be
// deferred directly, before what cleans up.
func recoverPanic(err *error) {
	if v := recover(); v != nil {
		*err = errors.Join(fmt.Errorf("%w: %v\n%s", backup.ErrPanic, v, debug.Stack()), *err)
	}
}
