package backuphttp

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"

	"github.com/atocore/backup"
)

// A knownError is an error that a caller of package backup can act on.
type knownError struct {
	err    error
	code   string
	name   string // in the package's documentation; empty for those of others
	status int
}

// knownErrors is the table of package backup's documentation, in its order,
// because some errors match several.
func knownErrors() []knownError {
	return []knownError{
		{backup.ErrPanic, "panic", "ErrPanic", http.StatusInternalServerError},
		{backup.ErrInvalidOptions, "invalid_options", "ErrInvalidOptions", http.StatusBadRequest},
		{backup.ErrRestoreUnfinished, "restore_unfinished", "ErrRestoreUnfinished", http.StatusServiceUnavailable},
		{backup.ErrBusy, "busy", "ErrBusy", http.StatusConflict},
		{backup.ErrNoSnapshot, "no_snapshot", "ErrNoSnapshot", http.StatusNotFound},
		{backup.ErrSnapshotExists, "snapshot_exists", "ErrSnapshotExists", http.StatusConflict},
		{backup.ErrInvalidArchive, "invalid_archive", "ErrInvalidArchive", http.StatusUnprocessableEntity},
		{backup.ErrInvalidBackup, "invalid_backup", "ErrInvalidBackup", http.StatusUnprocessableEntity},
		{backup.ErrProtected, "protected", "ErrProtected", http.StatusConflict},
		{backup.ErrOtherStore, "other_store", "ErrOtherStore", http.StatusConflict},
		{backup.ErrDatabaseInUse, "database_in_use", "ErrDatabaseInUse", http.StatusConflict},
		{backup.ErrCannotReplace, "cannot_replace", "ErrCannotReplace", http.StatusConflict},
		{backup.ErrSourceChanged, "source_changed", "ErrSourceChanged", http.StatusServiceUnavailable},
		{backup.ErrSourceInvalid, "source_invalid", "ErrSourceInvalid", http.StatusInternalServerError},
		{backup.ErrUnsupportedFile, "unsupported_file", "ErrUnsupportedFile", http.StatusInternalServerError},
		{backup.ErrNoSpace, "no_space", "ErrNoSpace", http.StatusInsufficientStorage},
		{backup.ErrCrossDevice, "cross_device", "ErrCrossDevice", http.StatusInternalServerError},
		{context.Canceled, "canceled", "", statusClientClosed},
		{context.DeadlineExceeded, "deadline_exceeded", "", http.StatusGatewayTimeout},
	}
}

// statusClientClosed is nginx's status for a request whose client went away
// before the answer. Nobody but a log sees it, except after an operation was
// cancelled by another request.
const statusClientClosed = 499

// A problemError is an error of this package, with its code.
type problemError struct {
	code   string
	detail string
}

func (e *problemError) Error() string { return e.detail }

// ownProblem returns the title and the status of a code of this package.
func ownProblem(code string) (title string, status int) {
	switch code {
	case "not_found":
		return "there is nothing at this address", http.StatusNotFound
	case "no_operation":
		return "no such operation", http.StatusNotFound
	case "method_not_allowed":
		return "the method is not allowed here", http.StatusMethodNotAllowed
	case "bad_request":
		return "the request can't be understood", http.StatusBadRequest
	case "not_allowed":
		return "the server's configuration does not allow this", http.StatusForbidden
	case "cross_origin":
		return "the request comes from another site", http.StatusForbidden
	case "operation_ended":
		return "the operation has ended", http.StatusConflict
	case "too_slow":
		return "the client is too slow", http.StatusRequestTimeout
	case "body_too_large":
		return "the body is too large", http.StatusRequestEntityTooLarge
	case "media_type":
		return "the body is of another type", http.StatusUnsupportedMediaType
	case "digest_mismatch":
		return "the body does not have its digest", http.StatusUnprocessableEntity
	case "too_many_operations":
		return "too many operations are running", http.StatusServiceUnavailable
	case "too_many_followers":
		return "too many clients follow the events", http.StatusServiceUnavailable
	case "shutting_down":
		return "the server is shutting down", http.StatusServiceUnavailable
	}
	return "internal error", http.StatusInternalServerError
}

// The addresses of the documentation of problems.
const (
	backupDoc = "https://pkg.go.dev/github.com/atocore/backup#"
	ownDoc    = "https://pkg.go.dev/github.com/atocore/backup/backuphttp#hdr-Problems"
)

// A problem is a problem document (RFC 9457).
type problem struct {
	Type     string          `json:"type"`
	Title    string          `json:"title"`
	Status   int             `json:"status"`
	Detail   string          `json:"detail"`
	Instance string          `json:"instance,omitempty"`
	Code     string          `json:"code"`
	Report   *backup.Report  `json:"report,omitempty"`
	Result   json.RawMessage `json:"result,omitempty"`
}

// size returns about how much memory p takes.
func (p *problem) size() int {
	n := len(p.Detail) + len(p.Result)
	if p.Report != nil {
		for _, x := range p.Report.Problems {
			n += 2*len(x.Path) + 2*len(x.Detail) + 100
		}
	}
	return n
}

// problemOf describes err. result is what the call returned with it, if
// anything.
func problemOf(err error, result json.RawMessage) *problem {
	p := &problem{Type: ownDoc, Detail: err.Error(), Code: "internal", Result: result}
	if own := new(problemError); errors.As(err, &own) {
		p.Code = own.code
		p.Title, p.Status = ownProblem(p.Code)
		return p
	}
	p.Title, p.Status = ownProblem(p.Code)
	for _, known := range knownErrors() {
		if !errors.Is(err, known.err) {
			continue
		}
		p.Code, p.Title, p.Status = known.code, known.err.Error(), known.status
		p.Type = backupDoc + "hdr-Errors"
		if known.name != "" {
			p.Type = backupDoc + known.name
		}
		if known.err == backup.ErrPanic {
			p.Detail, _, _ = strings.Cut(p.Detail, "\n") // what follows is the stack, for the log
		}
		break
	}
	if invalid := new(backup.InvalidBackupError); errors.As(err, &invalid) {
		p.Report = invalid.Report
	}
	return p
}

// fail answers with the problem document of err.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, err error) {
	p := problemOf(err, nil)
	h.logFailure(p, err, "method", r.Method, "path", r.URL.Path)
	h.writeProblem(w, r, p)
}

// logFailure logs an error that is not the client's, because nobody else learns
// of it. A Logger that panics does not change the answer.
func (h *Handler) logFailure(p *problem, err error, about ...any) {
	if p.Status != http.StatusInternalServerError && p.Status != http.StatusInsufficientStorage {
		return
	}
	defer func() { _ = recover() }()
	h.log.Error("backup_request_failed", append(about, "code", p.Code, "error", err.Error())...)
}

// writeProblem answers with p, about this request unless it names another
// instance.
func (h *Handler) writeProblem(w http.ResponseWriter, r *http.Request, p *problem) {
	if p.Instance == "" {
		p.Instance = publicPath(r)
	}
	switch p.Code {
	case "busy", "too_many_operations", "too_many_followers", "shutting_down", "source_changed", "database_in_use":
		w.Header().Set("Retry-After", strconv.Itoa(retryAfter))
	}
	h.write(w, r, p.Status, "application/problem+json", encode(p))
}

// retryAfter is how many seconds a client should wait for the end of another
// call. Most end within seconds.
const retryAfter = 5
