package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"

	"github.com/atocore/backup"
)

type importCommand struct {
	storeFlags

	Archive string `arg:"" default:"-" help:"The archive. The default is standard input."`
	Note    string `placeholder:"TEXT" help:"Keep TEXT beside the snapshot; list prints it."`

	DespiteFindings bool `help:"Import a snapshot although SQLite, or the JSON check of the registry, objects to its content, if nothing shows damage."`
}

// Help returns the details for the help of this command.
func (c *importCommand) Help() string {
	return `Adds the snapshot in an archive of export to the backup directory, under its own stamp. It is validated first, and the verdict is recorded; a snapshot that is not valid, or a part of one, leaves nothing behind, and the status is 1. Nothing is ever overwritten: if the same snapshot is there already, it stays as it is, and the status is 0.

Example: ssh backup@elsewhere ` + commandName + ` export latest | ` + commandName + ` import --backup-dir /srv/backup`
}

func (c *importCommand) Run(s *session) error {
	faults := []error{c.needBackupDir(), notEmpty(&c.Archive, "the archive's name")}
	if c.Archive == "-" && term.IsTerminal(int(s.stdin.Fd())) {
		faults = append(faults, errors.New("an archive is not read from a terminal: name its file or redirect standard input"))
	}
	if err := joinFor("import", faults...); err != nil {
		return err
	}
	opts := c.options()
	opts.RecordVerdicts, opts.DespiteFindings, opts.Note = true, c.DespiteFindings, c.Note
	s.watch(&opts)
	archive, closeArchive, err := c.open(s)
	if err != nil {
		return joinFor("import", err)
	}
	defer closeArchive()
	meta, err := backup.ImportRuntimeBackup(s.ctx, opts, archive)
	isThere := meta != nil && errors.Is(err, backup.ErrSnapshotExists)
	switch {
	case isInvalid(err):
		return s.reportRefused("import", err)
	case err != nil && !isThere:
		return err
	}
	if err := s.writeResult(document(meta)); err != nil {
		return fmt.Errorf("import: snapshot %s is complete: %w", meta.Stamp, err)
	}
	if isThere {
		s.tell("Snapshot %s is there already.", meta.Stamp)
	} else {
		s.tell("%s", summary(meta))
	}
	return nil
}

// open opens the archive. Reading it ends when the context does, even while the
// writer of standard input stalls.
func (c *importCommand) open(s *session) (io.Reader, func(), error) {
	if c.Archive != "-" {
		f, err := os.Open(c.Archive)
		if err != nil {
			return nil, nil, err
		}
		return f, func() { f.Close() }, nil
	}
	r, w := io.Pipe()
	stop := context.AfterFunc(s.ctx, func() { w.CloseWithError(s.ctx.Err()) })
	go func() {
		_, err := io.CopyBuffer(w, struct{ io.Reader }{s.stdin}, make([]byte, 1<<17))
		w.CloseWithError(err)
	}()
	return r, func() { stop() }, nil
}
