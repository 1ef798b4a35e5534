package offsite

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite/internal/restic"
)

func (r *Repository) patience() time.Duration {
	if r.Patience <= 0 {
		return restic.DefaultPatience
	}
	return r.Patience
}

// loggerOf returns the logger of a call.
func loggerOf(opts backup.Options) *slog.Logger {
	if opts.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return opts.Logger
}

// recovered, deferred, makes a panic of a function of the host an error.
func recovered(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%w: %v\n%s", backup.ErrPanic, v, debug.Stack())
	}
}

// wrapCall, deferred, adds to an error which call failed.
func wrapCall(err *error, call string, args ...any) {
	if *err != nil {
		*err = fmt.Errorf(call+": %w", append(args, *err)...)
	}
}

// hold calls use as backup.HoldRuntimeBackup does. It returns errors without that
// call's name: what holds the snapshot adds its own.
func hold(ctx context.Context, opts backup.Options, stamp string, use func(ctx context.Context, dir string) error) error {
	var used error
	err := backup.HoldRuntimeBackup(ctx, opts, stamp, func(ctx context.Context, dir string) error {
		used = use(ctx, dir)
		return used
	})
	if used != nil {
		return used
	}
	if reason := errors.Unwrap(err); reason != nil {
		return reason
	}
	return err
}

// watch calls do on another goroutine, and on this one passes on what do reports,
// because functions of the host are called on the goroutine of the call. It waits
// for do, also after a panic.
func watch(ctx context.Context, p *restic.Program, report func(restic.Status), do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	latest := make(chan restic.Status, 1)
	p.Progress = func(s restic.Status) {
		select {
		case <-latest: // nobody took it
		default:
		}
		latest <- s
	}
	ended := make(chan struct{})
	var err error // of do, once it has ended
	go func() {
		defer close(ended)
		defer recovered(&err) // of the Logger
		err = do(ctx)
	}()
	defer func() {
		cancel()
		<-ended // also after a panic of report
	}()
	for {
		select {
		case s := <-latest:
			report(s)
		case <-ended:
			return err
		}
	}
}

// forget removes a restic snapshot that must not stay. It does so although ctx has
// ended.
func forget(ctx context.Context, p *restic.Program, id string, reason error) error {
	if id == "" {
		return reason
	}
	if err := p.Forget(context.WithoutCancel(ctx), id); err != nil {
		return errors.Join(reason, fmt.Errorf("restic's snapshot %.8s is incomplete and could not be forgotten; forget it by hand: %w", id, err))
	}
	return reason
}

// identify returns the ID of the repository. Asking restic costs a second, so the
// location is remembered beside the ID, as a hash, because it may have a password.
// If there is another repository at that place since, a push finds no copies in it,
// and trusts nothing of the state.
func (r *Repository) identify(ctx context.Context, p *restic.Program, backupDir string) (string, error) {
	if r.Location == "" { // the environment names it
		return p.ID(ctx)
	}
	id, location := r.known(backupDir)
	if id != "" {
		return id, nil
	}
	id, err := p.ID(ctx)
	if err != nil {
		return "", err
	}
	s, err := openState(backupDir, id)
	if err != nil {
		return "", err
	}
	err = s.root.WriteFile(locationName, []byte(location), 0o600)
	return id, errors.Join(err, s.Close())
}

// known returns the ID of the repository at r.Location, or "" if the backup directory
// does not have the state of one, or of several; and the hash of the location.
func (r *Repository) known(backupDir string) (id, location string) {
	hash := sha256.Sum256([]byte(restic.AbsoluteLocation(r.Location)))
	location = hex.EncodeToString(hash[:])
	entries, _ := os.ReadDir(filepath.Join(backupDir, stateDirName)) // none if it cannot be read
	var found []string
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(backupDir, stateDirName, e.Name(), locationName))
		if err == nil && string(text) == location && isHash(e.Name()) {
			found = append(found, e.Name())
		}
	}
	if len(found) != 1 {
		return "", location
	}
	return found[0], location
}

// programFor returns the restic of a call that changes nothing in the state. It
// uses the cache there, if there is one: a service may have no other.
func (r *Repository) programFor(opts backup.Options) *restic.Program {
	p := r.program()
	p.Log = loggerOf(opts)
	if r.Location == "" || opts.BackupDir == "" {
		return p
	}
	if id, _ := r.known(opts.BackupDir); id != "" {
		p.Cache = filepath.Join(opts.BackupDir, stateDirName, id, cacheName)
	}
	return p
}
