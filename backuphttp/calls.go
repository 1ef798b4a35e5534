package backuphttp

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/atocore/backup"
	"github.com/atocore/backup/drill"
)

// serveRoot answers GET /.
func (h *Handler) serveRoot(w http.ResponseWriter, r *http.Request) {
	w.Header().Add("Vary", "Accept")
	if prefersHTML(r.Header.Values("Accept")) {
		h.servePage(w, r)
		return
	}
	list, err := h.list(r.Context())
	switch {
	case list == nil:
		h.fail(w, r, err)
	case err != nil:
		h.writeProblem(w, r, problemOf(err, list.json))
	default:
		h.write(w, r, http.StatusOK, "application/json", list.json)
	}
}

// latestJSON is the form of a backup.Latest in JSON.
type latestJSON struct {
	Snapshot   backup.Snapshot `json:"snapshot"`
	Skipped    []skippedJSON   `json:"skipped"`
	WithChroma string          `json:"with_chroma"`
}

type skippedJSON struct {
	Stamp  string `json:"stamp"`
	Reason string `json:"reason"`
}

func (h *Handler) latest(w http.ResponseWriter, r *http.Request) {
	latest, err := backup.LatestRuntimeBackup(r.Context(), h.opts)
	if latest == nil {
		h.fail(w, r, err)
		return
	}
	out := latestJSON{latest.Snapshot, []skippedJSON{}, latest.WithChroma}
	for _, s := range latest.Skipped {
		out.Skipped = append(out.Skipped, skippedJSON(s))
	}
	h.writeResult(w, r, encode(out), err)
}

// writeResult answers with a result, which may come with an error.
func (h *Handler) writeResult(w http.ResponseWriter, r *http.Request, result []byte, err error) {
	if err != nil {
		h.writeProblem(w, r, problemOf(err, result))
		return
	}
	h.write(w, r, http.StatusOK, "application/json", result)
}

func (h *Handler) snapshot(w http.ResponseWriter, r *http.Request, stamp string) {
	found, err := h.find(r.Context(), stamp)
	if found == nil {
		h.fail(w, r, err)
		return
	}
	h.writeResult(w, r, encode(found), err)
}

// find returns the entry of a snapshot in the list. It comes with
// backup.ErrRestoreUnfinished, too.
func (h *Handler) find(ctx context.Context, stamp string) (*backup.Snapshot, error) {
	list, err := h.list(ctx)
	if list == nil {
		return nil, err
	}
	i := slices.IndexFunc(list.snapshots, func(s backup.Snapshot) bool { return s.Stamp == stamp })
	if i < 0 {
		return nil, fmt.Errorf("find backup %q: %w in %s", stamp, backup.ErrNoSnapshot, h.opts.BackupDir)
	}
	return &list.snapshots[i], err
}

// createBody is the body of a create. A field that is nil leaves the option.
type createBody struct {
	IncludeChroma *bool   `json:"include_chroma"`
	Verify        *bool   `json:"verify"`
	Note          *string `json:"note"`
}

func (h *Handler) create(w http.ResponseWriter, r *http.Request) {
	var asked createBody
	if err := h.readBody(w, r, &asked); err != nil {
		h.fail(w, r, err)
		return
	}
	if asked.IncludeChroma != nil && *asked.IncludeChroma && !mayIncludeChroma(&h.opts) {
		h.fail(w, r, fmt.Errorf("%w: the server has no ingestion guard, and does not include the Chroma directory", backup.ErrInvalidOptions))
		return
	}
	h.operate(w, r, "create", "", func(ctx context.Context, opts backup.Options) (answer, error) {
		set(&opts.IncludeChroma, asked.IncludeChroma)
		set(&opts.Verify, asked.Verify)
		set(&opts.Note, asked.Note)
		meta, err := backup.CreateRuntimeBackup(ctx, opts)
		h.tracker.created(meta, err)
		if meta == nil {
			return answer{}, err
		}
		return answer{http.StatusCreated, meta, meta.Stamp}, err
	})
}

// mayIncludeChroma reports whether a request may ask for the Chroma directory: over
// HTTP nobody holds a guard around the call, as a host without a Locker does.
func mayIncludeChroma(opts *backup.Options) bool { return opts.IncludeChroma || opts.Locker != nil }

// set sets an option if the request has a value for it.
func set[T any](option, asked *T) {
	if asked != nil {
		*option = *asked
	}
}

// validate answers with the report, whether the snapshot is valid or not, and
// even if there is none, as the Python module's server does.
func (h *Handler) validate(w http.ResponseWriter, r *http.Request, stamp string) {
	if r.Method == http.MethodHead {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
		return
	}
	if err := h.readBody(w, r, &struct{}{}); err != nil {
		h.fail(w, r, err)
		return
	}
	h.operate(w, r, "validate", stamp, func(ctx context.Context, opts backup.Options) (answer, error) {
		report, err := backup.ValidateBackup(ctx, opts, stamp)
		if report == nil {
			return answer{}, err
		}
		if !errors.Is(err, backup.ErrRestoreUnfinished) {
			err = nil // at most ErrInvalidBackup, which the report says
		}
		return answer{http.StatusOK, report, ""}, err
	})
}

func (h *Handler) drill(w http.ResponseWriter, r *http.Request, stamp string) {
	if err := h.readBody(w, r, &struct{}{}); err != nil {
		h.fail(w, r, err)
		return
	}
	h.operate(w, r, "drill", stamp, func(ctx context.Context, opts backup.Options) (answer, error) {
		result, err := drill.Run(ctx, opts, stamp, h.cfg.DrillDir)
		if result == nil {
			return answer{}, err
		}
		return answer{http.StatusOK, result, ""}, err
	})
}

// allow answers 403 and returns false if the host does not allow something.
func (h *Handler) allow(w http.ResponseWriter, r *http.Request, allowed bool, what string) bool {
	if !allowed {
		h.fail(w, r, &problemError{"not_allowed", "the configuration of the server does not allow to " + what})
	}
	return allowed
}

// restoreBody is the body of a restore.
type restoreBody struct {
	Parts           []string `json:"parts"`
	DespiteFindings *bool    `json:"despite_findings"`
	FromOtherStore  *bool    `json:"from_other_store"`
}

func (h *Handler) restore(w http.ResponseWriter, r *http.Request, stamp string) {
	if !h.allow(w, r, h.cfg.AllowRestore, "restore a snapshot") {
		return
	}
	var asked restoreBody
	if err := h.readBody(w, r, &asked); err != nil {
		h.fail(w, r, err)
		return
	}
	parts, err := partsOf(asked.Parts)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	h.operate(w, r, "restore", stamp, func(ctx context.Context, opts backup.Options) (answer, error) {
		if parts != 0 {
			opts.Parts = parts
		}
		set(&opts.DespiteFindings, asked.DespiteFindings)
		set(&opts.FromOtherStore, asked.FromOtherStore)
		result, err := backup.RestoreRuntimeBackup(ctx, opts, stamp)
		if result == nil {
			return answer{}, err
		}
		return answer{http.StatusOK, result, ""}, err
	})
}

// partsOf returns the parts with these names.
func partsOf(names []string) (parts backup.Parts, err error) {
	for _, name := range names {
		var part backup.Parts
		for _, p := range []backup.Parts{backup.PartDatabase, backup.PartRegistry, backup.PartChroma} {
			if p.String() == name {
				part = p
			}
		}
		if part == 0 {
			return 0, badRequest("there is no part %.50q of a store", name)
		}
		parts |= part
	}
	return parts, nil
}

func (h *Handler) remove(w http.ResponseWriter, r *http.Request, stamp string) {
	if !h.allow(w, r, h.cfg.AllowRemove, "remove a snapshot") {
		return
	}
	if err := h.readBody(w, r, &struct{}{}); err != nil {
		h.fail(w, r, err)
		return
	}
	h.operate(w, r, "remove", stamp, func(ctx context.Context, opts backup.Options) (answer, error) {
		return answer{status: http.StatusNoContent}, backup.RemoveRuntimeBackup(ctx, opts, stamp)
	})
}

// protectBody is the body of a protection.
type protectBody struct {
	Protected *bool `json:"protected"`
}

func (h *Handler) protect(w http.ResponseWriter, r *http.Request, stamp string) {
	if !h.allow(w, r, h.cfg.AllowProtect, "protect a snapshot") {
		return
	}
	var asked protectBody
	if err := h.readBody(w, r, &asked); err != nil {
		h.fail(w, r, err)
		return
	}
	h.operate(w, r, "protect", stamp, func(ctx context.Context, opts backup.Options) (answer, error) {
		protected := true
		set(&protected, asked.Protected)
		if err := backup.ProtectRuntimeBackup(ctx, opts, stamp, protected); err != nil {
			return answer{}, err
		}
		found, err := h.find(ctx, stamp)
		if found == nil {
			return answer{}, err
		}
		return answer{http.StatusOK, found, ""}, nil // it is protected, even if a restore is unfinished
	})
}

// pruneBody is the body of a prune.
type pruneBody struct {
	Last    int    `json:"keep_last"`
	Hourly  int    `json:"keep_hourly"`
	Daily   int    `json:"keep_daily"`
	Weekly  int    `json:"keep_weekly"`
	Monthly int    `json:"keep_monthly"`
	Yearly  int    `json:"keep_yearly"`
	Within  string `json:"keep_within"`
	DryRun  bool   `json:"dry_run"`
}

func (h *Handler) prune(w http.ResponseWriter, r *http.Request) {
	if !h.allow(w, r, h.cfg.AllowPrune, "prune") {
		return
	}
	var asked pruneBody
	if err := h.readBody(w, r, &asked); err != nil {
		h.fail(w, r, err)
		return
	}
	keep := backup.Retention{
		KeepLast: asked.Last, KeepHourly: asked.Hourly, KeepDaily: asked.Daily,
		KeepWeekly: asked.Weekly, KeepMonthly: asked.Monthly, KeepYearly: asked.Yearly,
	}
	if err := setWithin(&keep, asked.Within); err != nil {
		h.fail(w, r, err)
		return
	}
	if keep == (backup.Retention{}) {
		keep = h.cfg.Keep
	}
	keep.DryRun = asked.DryRun
	h.operate(w, r, "prune", "", func(ctx context.Context, opts backup.Options) (answer, error) {
		result, err := backup.PruneRuntimeBackups(ctx, opts, keep)
		if result == nil {
			return answer{}, err
		}
		return answer{http.StatusOK, result, ""}, err
	})
}

// setWithin sets the rule of a length of time as restic writes it: 2y5m7d3h, in
// which m is months.
func setWithin(keep *backup.Retention, text string) error {
	const most = 1_000_000 // of each unit
	rest, units := text, "ymdh"
	for rest != "" {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789"))
		n, err := strconv.Atoi(rest[:digits])
		at := -1
		if digits < len(rest) {
			at = strings.IndexByte(units, rest[digits])
		}
		if err != nil || n > most || at < 0 {
			return badRequest("keep_within is %.50q, which is not a length of time such as 2y5m7d3h", text)
		}
		switch units[at] {
		case 'y':
			keep.KeepWithinYears = n
		case 'm':
			keep.KeepWithinMonths = n
		case 'd':
			keep.KeepWithinDays = n
		case 'h':
			keep.KeepWithin = time.Duration(n) * time.Hour
		}
		rest, units = rest[digits+1:], units[at+1:]
	}
	return nil
}
