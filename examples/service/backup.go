package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/atocore/backup"
)

// backups are the options of every call. All calls of package backup are in this file; what a restore asks of the
// store is in its function offline.
type backups backup.Options

func newBackups(h *host, dir string) backups {
	return backups{
		DatabasePath: h.store.database, RegistryPath: h.store.registry, ChromaPath: h.store.chroma,
		BackupDir: dir, IncludeChroma: true, Verify: true, RecordVerdicts: true, Logger: h.log,
		Locker:  backup.SyncLocker(&h.store.ingestion),
		Offline: h.store.offline,
		Wait:    time.Minute, // for the database, the guard and other calls
	}
}

func (b backups) routes(mux *http.ServeMux) {
	opts := backup.Options(b)
	mux.Handle("GET /backups", answer(opts, http.StatusOK, withoutStamp(backup.ListRuntimeBackups)))
	mux.Handle("POST /backups", answer(opts, http.StatusCreated, withoutStamp(backup.CreateRuntimeBackup)))
	mux.Handle("POST /backups/{stamp}/validate", answer(opts, http.StatusOK, backup.ValidateBackup))
	mux.Handle("POST /backups/{stamp}/restore", answer(opts, http.StatusOK, backup.RestoreRuntimeBackup))
	mux.Handle("GET /backups/{stamp}/archive", stream("application/x-tar", func(w io.Writer, r *http.Request) error {
		return backup.ExportRuntimeBackup(r.Context(), opts, r.PathValue("stamp"), w)
	}))
}

// unfinished reports whether the store must stay closed until it is restored: a restore was interrupted by a kill.
func (b backups) unfinished(ctx context.Context) (bool, error) {
	_, err := backup.ListRuntimeBackups(ctx, backup.Options(b))
	if errors.Is(err, backup.ErrRestoreUnfinished) {
		return true, nil
	}
	return false, err
}

// run creates a snapshot and removes old ones, at each tick until ctx ends.
func (b backups) run(ctx context.Context, ticker *time.Ticker) {
	keep := backup.Retention{KeepLast: 3, KeepHourly: 24, KeepDaily: 7, KeepWeekly: 4}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		_, createErr := backup.CreateRuntimeBackup(ctx, backup.Options(b))
		_, pruneErr := backup.PruneRuntimeBackups(ctx, backup.Options(b), keep) // also if there was no space for a create
		if err := errors.Join(createErr, pruneErr); err != nil && ctx.Err() == nil {
			b.Logger.Error("periodic_backup_failed", "error", err)
		}
	}
}

// statusOf returns the HTTP status of an error, by the table in the documentation of package backup.
func statusOf(err error) int {
	for _, known := range []struct {
		error
		status int
	}{
		{backup.ErrPanic, 500}, {backup.ErrInvalidOptions, 400}, {backup.ErrRestoreUnfinished, 503},
		{backup.ErrBusy, 409}, {backup.ErrNoSnapshot, 404}, {backup.ErrInvalidBackup, 422}, {backup.ErrOtherStore, 409},
		{backup.ErrDatabaseInUse, 409}, {backup.ErrCannotReplace, 409}, {backup.ErrSourceChanged, 503},
		{backup.ErrNoSpace, 507}, {context.Canceled, 499}, {context.DeadlineExceeded, 504},
	} {
		if errors.Is(err, known.error) {
			return known.status
		}
	}
	return http.StatusInternalServerError
}
