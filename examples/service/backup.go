package main

import (
	"context"
	"errors"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
	"github.com/atocore/backup/schedule"
)

// openBackups reports whether a restore was interrupted: then the store must stay closed until another one.
func (h *host) openBackups(ctx context.Context, dir string) (interrupted bool, err error) {
	opts := backup.Options{
		DatabasePath: h.store.database, RegistryPath: h.store.registry, ChromaPath: h.store.chroma, BackupDir: dir,
		Locker: backup.SyncLocker(&h.store.ingestion), Offline: h.store.offline, Wait: grace,
		IncludeChroma: true, Verify: true, RecordVerdicts: true, Logger: h.log,
	}
	plan := schedule.Plan{Every: h.every, Verify: true, Keep: backup.Retention{KeepLast: 3, KeepHourly: 24, KeepDaily: 7, KeepWeekly: 4}}
	handler := backuphttp.New(opts, backuphttp.Config{Keep: plan.Keep, AllowRestore: true, AllowRemove: true, AllowProtect: true, AllowPrune: true})
	opts.OnProgress, plan.OnResult = handler.ObserveProgress, func(r schedule.Result) { handler.Observe(string(r.Step), r.Stamp, r.Began, r.Created, r.Err) }
	h.backups, h.schedule = handler, func(ctx context.Context) error { return schedule.Run(ctx, opts, plan) }
	_, err = backup.ListRuntimeBackups(ctx, opts)
	return errors.Is(err, backup.ErrRestoreUnfinished), err
}
