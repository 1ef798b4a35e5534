package backuphttp

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/atocore/backup"
)

// The headers of RFC 9530.
const (
	reprDigest    = "Repr-Digest"
	contentDigest = "Content-Digest"
)

// An exportWriter passes an archive on to the client, which must take each piece
// in time.
type exportWriter struct {
	w       http.ResponseWriter
	rc      *http.ResponseController
	timeout time.Duration
	hash    hash.Hash // nil if no digest is wanted
	n       int64
	err     error
	late    bool // err is that the client was too slow

	mu          sync.Mutex // guards what follows, and the deadline
	interrupted bool
	closed      bool
}

// interrupt ends a Write that waits for the client, and all others.
func (e *exportWriter) interrupt() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.interrupted = true
		_ = e.rc.SetWriteDeadline(time.Unix(1, 0)) // in the past
	}
}

// close ends the use of the writer. An interrupt does nothing afterwards.
func (e *exportWriter) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
}

// extend sets the deadline for the next write, unless that was interrupted.
func (e *exportWriter) extend() (deadline time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	deadline = backup.SystemClock().Now().Add(e.timeout)
	if !e.interrupted {
		_ = e.rc.SetWriteDeadline(deadline)
	}
	return deadline
}

// Write sends a piece of the archive.
func (e *exportWriter) Write(p []byte) (int, error) {
	deadline := e.extend()
	n, err := e.w.Write(p)
	e.n += int64(n)
	if e.hash != nil {
		e.hash.Write(p[:n])
	}
	if err != nil {
		e.err = err
		e.late = errors.Is(err, os.ErrDeadlineExceeded) && !backup.SystemClock().Now().Before(deadline)
	}
	return n, err
}

// export answers with an archive. Its length is known before; its digest only at
// the end, so it is sent to those who read trailers. HTTP/1.1 has no trailers after
// a body whose length was announced.
func (h *Handler) export(w http.ResponseWriter, r *http.Request, stamp string) {
	if err := h.readBody(w, r, &struct{}{}); err != nil {
		h.fail(w, r, err)
		return
	}
	size, err := h.archiveSize(r.Context(), stamp)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	header := w.Header()
	trailer := strings.Contains(strings.ToLower(r.Header.Get("Te")), "trailers") && r.ProtoAtLeast(1, 1)
	if size > 0 && (!trailer || r.ProtoAtLeast(2, 0)) {
		header.Set("Content-Length", fmt.Sprint(size))
	}
	header.Set("Content-Type", "application/x-tar")
	header.Set("Content-Disposition", mime.FormatMediaType("attachment", map[string]string{"filename": stamp + ".tar"}))
	header.Set("Accept-Ranges", "none")
	if r.Method == http.MethodHead {
		w.WriteHeader(http.StatusOK)
		return
	}
	op, ctx, err := h.begin(r.Context(), "export", stamp, false)
	if err != nil {
		h.failExport(w, r, problemOf(err, nil))
		return
	}
	out := &exportWriter{w: w, rc: http.NewResponseController(w), timeout: h.cfg.BodyTimeout}
	if trailer {
		out.hash = sha256.New()
		header.Set("Trailer", reprDigest)
	}
	_, p := h.perform(ctx, op, func(ctx context.Context, opts backup.Options) (answer, error) {
		stop := context.AfterFunc(ctx, out.interrupt)
		err := backup.ExportRuntimeBackup(ctx, opts, stamp, out)
		stop()
		out.close()
		// A failed write ends the context of the request.
		switch {
		case err == nil || out.err == nil:
		case out.late:
			err = &problemError{"too_slow", fmt.Sprintf("the client did not take a piece of the archive within %s", out.timeout)}
		case ctx.Err() != nil:
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		return answer{status: http.StatusOK}, err
	})
	switch {
	case p == nil && out.hash != nil:
		header.Set(reprDigest, "sha-256=:"+base64.StdEncoding.EncodeToString(out.hash.Sum(nil))+":")
	case p == nil:
	case out.n == 0 && out.err == nil:
		p.Instance = href(r, "operations", op.now.ID)
		h.failExport(w, r, p)
	default:
		// The status is sent. The connection is cut, so that nobody takes the part
		// for the whole.
		panic(http.ErrAbortHandler)
	}
}

// failExport answers with a problem instead of an archive.
func (h *Handler) failExport(w http.ResponseWriter, r *http.Request, p *problem) {
	for _, name := range []string{"Content-Disposition", "Accept-Ranges", "Trailer"} {
		w.Header().Del(name)
	}
	h.writeProblem(w, r, p)
}

// archiveSize returns how long the archive of a snapshot is, which docs/format.md
// describes: a header for each directory and file, the files in blocks of 512
// bytes, and two blocks of zeros. It costs one lstat for each file. If anything
// in the snapshot is not as it should be, the size does not matter, because the
// export fails.
func (h *Handler) archiveSize(ctx context.Context, stamp string) (size int64, err error) {
	err = backup.HoldRuntimeBackup(ctx, h.opts, stamp, func(ctx context.Context, dir string) error {
		top := filepath.Base(dir)
		found, err := h.find(ctx, stamp)
		switch {
		case found == nil:
			return err
		case found.Metadata != nil && found.Metadata.Stamp != "":
			top = found.Metadata.Stamp
		}
		return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			size += entrySize(top, filepath.ToSlash(rel), info)
			return nil
		})
	})
	const end = 2 * blockSize
	return size + end, err
}

// blockSize is that of a tar archive.
const blockSize = 512

// entrySize returns how long an entry of an archive is, with its header.
func entrySize(top, rel string, info fs.FileInfo) int64 {
	header := &tar.Header{Typeflag: tar.TypeReg, Name: top + "/" + rel, ModTime: info.ModTime(), Format: tar.FormatPAX}
	switch {
	case rel == ".":
		header.Typeflag, header.Name = tar.TypeDir, top+"/"
	case info.IsDir():
		header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
	default:
		header.Size = info.Size()
	}
	var b bytes.Buffer
	if err := tar.NewWriter(&b).WriteHeader(header); err != nil {
		return 0 // the export fails as well
	}
	return int64(b.Len()) + (header.Size+blockSize-1)/blockSize*blockSize
}

// An importBody is the body of an import, which is compared with its digest, if it
// has one.
type importBody struct {
	*body
	request *http.Request
	hash    hash.Hash
}

// Read reads some of the body. At its end it returns an error instead of io.EOF if
// the digest is another one, so that nothing is imported.
func (b *importBody) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	b.hash.Write(p[:n])
	if errors.Is(err, io.EOF) {
		if wrong := b.checkDigest(); wrong != nil {
			b.err = wrong
			return n, wrong
		}
	}
	return n, err
}

// checkDigest compares the body with its digest, in a header or a trailer.
func (b *importBody) checkDigest() error {
	for _, name := range []string{reprDigest, contentDigest} {
		for _, value := range append(b.request.Header.Values(name), b.request.Trailer.Values(name)...) {
			want, err := parseDigest(value)
			switch {
			case err != nil:
				return badRequest("%s: %v", name, err)
			case want != nil && !bytes.Equal(want, b.hash.Sum(nil)):
				return &problemError{"digest_mismatch", fmt.Sprintf("the SHA-256 of the body is %x, that of its %s is %x", b.hash.Sum(nil), name, want)}
			}
		}
	}
	return nil
}

// parseDigest returns the SHA-256 in the value of a digest header, nil if it has
// none.
func parseDigest(value string) ([]byte, error) {
	for part := range strings.SplitSeq(value, ",") {
		name, text, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			return nil, fmt.Errorf("%.100q is no digest", part)
		}
		if name != "sha-256" {
			continue
		}
		text, _, _ = strings.Cut(text, ";") // parameters
		if len(text) < 2 || text[0] != ':' || text[len(text)-1] != ':' {
			return nil, fmt.Errorf("%.100q is no digest", part)
		}
		sum, err := base64.StdEncoding.DecodeString(text[1 : len(text)-1])
		if err == nil && len(sum) != sha256.Size {
			err = fmt.Errorf("it has %d bytes", len(sum))
		}
		if err != nil {
			return nil, fmt.Errorf("%.100q is no digest: %w", part, err)
		}
		return sum, nil
	}
	return nil, nil
}

func (h *Handler) importArchive(w http.ResponseWriter, r *http.Request) {
	if !h.allow(w, r, h.cfg.MaxImport > 0, "import a snapshot") {
		return
	}
	if err := checkType(r, "application/x-tar", "application/tar", "application/octet-stream"); err != nil {
		h.fail(w, r, err)
		return
	}
	if r.ContentLength > h.cfg.MaxImport {
		h.fail(w, r, &problemError{"body_too_large", fmt.Sprintf("the body has %d bytes, more than %d", r.ContentLength, h.cfg.MaxImport)})
		return
	}
	op, ctx, err := h.begin(r.Context(), "import", "", false)
	if err != nil {
		h.fail(w, r, err)
		return
	}
	in := &importBody{h.bodyOf(w, r, h.cfg.MaxImport), r, sha256.New()}
	result, p := h.perform(ctx, op, func(ctx context.Context, opts backup.Options) (answer, error) {
		// An import heeds its context only between two reads.
		stop := context.AfterFunc(ctx, in.interrupt)
		defer in.close()
		defer stop()
		meta, err := backup.ImportRuntimeBackup(ctx, opts, in)
		switch {
		case err == nil:
		case in.err != nil && !errors.Is(in.err, errInterrupted):
			err = in.err // what is wrong with the body, and not what became of that
		case ctx.Err() != nil:
			err = fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		if meta == nil {
			return answer{}, err
		}
		return answer{http.StatusCreated, meta, meta.Stamp}, err
	})
	if !in.ended {
		w.Header().Set("Connection", "close") // the rest of the body is not read
	}
	h.respond(w, r, op, result, p)
}
