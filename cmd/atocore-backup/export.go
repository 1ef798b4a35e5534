package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/term"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/fsat"
)

type exportCommand struct {
	storeFlags

	Stamp  string `arg:"" help:"The snapshot's name, as create and list print it, or latest."`
	Output string `short:"o" default:"-" placeholder:"FILE" help:"Write the archive to FILE, which must not exist. The default is standard output, unless that is a terminal."`
}

// Help returns the details for the help of this command.
func (c *exportCommand) Help() string {
	return `Writes the snapshot as a tar archive, for another disk or machine. Every file is compared with the snapshot's SHA256SUMS while it is read; if one is damaged, the status is 1 and the archive is not complete, which import finds. The archive is neither compressed nor encrypted, and has neither the note nor the verdict of the snapshot.

Example: ` + commandName + ` export latest | ssh backup@elsewhere ` + commandName + ` import --backup-dir /srv/backup`
}

func (c *exportCommand) Run(s *session) error {
	faults := []error{c.needBackupDir(), notEmpty(&c.Output, "--output")}
	if c.Output == "-" && term.IsTerminal(int(s.stdout.Fd())) {
		faults = append(faults, errors.New("an archive is not written to a terminal: give --output or redirect standard output"))
	}
	if err := joinFor("export", faults...); err != nil {
		return err
	}
	opts := c.options()
	s.watch(&opts)
	stamp := c.Stamp
	if stamp == latest {
		snapshot, interrupted, err := s.find(opts, stamp)
		if err != nil && !interrupted {
			return joinFor("export", err)
		}
		stamp = snapshot.Stamp
	}
	var written int64
	export := func(w io.Writer) error {
		counted := &counter{w: w}
		err := backup.ExportRuntimeBackup(s.ctx, opts, stamp, counted)
		written = counted.n
		return err
	}
	var err error
	if c.Output == "-" {
		err = s.exportToStdout(export)
	} else {
		err = writeNewFile(c.Output, export)
	}
	s.meter.clear()
	var invalid *backup.InvalidBackupError
	switch {
	case errors.As(err, &invalid):
		s.reportProblems(invalid.Report)
		return err
	case err != nil:
		return joinFor("export", err)
	}
	s.say("Snapshot %s is exported: %s.", stamp, size(written))
	return nil
}

// exportToStdout writes an archive to standard output. It returns when the
// context ends, even while a reader of standard output stalls.
func (s *session) exportToStdout(export func(io.Writer) error) error {
	r, w := io.Pipe()
	stop := context.AfterFunc(s.ctx, func() { r.CloseWithError(s.ctx.Err()) })
	defer stop()
	copied := make(chan error, 1)
	go func() {
		_, err := io.CopyBuffer(struct{ io.Writer }{s.stdout}, r, make([]byte, 1<<17))
		r.CloseWithError(err)
		copied <- err
	}()
	if err := export(w); err != nil {
		w.CloseWithError(err)
		return err
	}
	w.Close()
	select {
	case err := <-copied:
		if err == nil {
			err = s.stdout.Close() // a network file system may report a failed write only here
		}
		if err != nil {
			return fmt.Errorf("print the result: %w", err)
		}
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// writeNewFile creates a file that must not exist, with what write writes. The
// file gets its name when it is complete and synced, so a part of an archive is
// never mistaken for one.
func writeNewFile(path string, write func(io.Writer) error) (err error) {
	if _, err := os.Lstat(path); err == nil {
		return &fs.PathError{Op: "create", Path: path, Err: fs.ErrExist}
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ignoreMissing(os.Remove(f.Name()))) }()
	err = write(f)
	if err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	// Unlike a rename, a link does not replace a file that came into being meanwhile.
	err = os.Link(f.Name(), path)
	if err != nil && !errors.Is(err, fs.ErrExist) { // a file system without links
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return err
	}
	dir, err := fsat.OpenDir(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// A counter counts the bytes that are written through it.
type counter struct {
	w io.Writer
	n int64
}

// Write writes p.
func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
