package main

import (
	"fmt"

	"github.com/dustin/go-humanize"

	"github.com/atocore/backup"
)

type createCommand struct {
	storeFlags

	IncludeChroma bool    `help:"Include the Chroma directory. Nothing may write to it during the copy; see --guard-file."`
	GuardFile     *string `placeholder:"PATH" help:"Hold an exclusive flock(2) on PATH while the store is read. Every writer to the Chroma directory must hold it, too. PATH is created if it does not exist. Used only with --include-chroma. If --guard-file is not given, the caller must keep writers away."`
}

func (c *createCommand) Run(s *session) error {
	if err := c.check(); err != nil {
		return err
	}
	opts := c.options()
	opts.IncludeChroma = c.IncludeChroma
	if c.GuardFile != nil {
		opts.Locker = flockGuard(*c.GuardFile, s.say)
	}
	s.watch(&opts)
	meta, err := backup.CreateRuntimeBackup(s.ctx, opts)
	if err != nil {
		return err
	}
	if err := s.writeResult(document(meta)); err != nil {
		return fmt.Errorf("create: snapshot %s is complete: %w", meta.Stamp, err)
	}
	if c.IncludeChroma && !meta.ChromaSnapshotIncluded {
		s.say("There is no Chroma directory %s; the snapshot does not include it.", c.Chroma)
	}
	s.say("%s", summary(meta))
	return nil
}

func (c *createCommand) check() error {
	faults := []error{c.needDB(), c.needBackupDir()}
	if c.IncludeChroma {
		faults = append(faults, c.needChroma())
	}
	return joinFor("create", append(faults, notEmpty(c.GuardFile, "--guard-file"))...)
}

func summary(m *backup.Metadata) string {
	registry, chroma := "no registry", "no Chroma"
	if m.RegistrySnapshotPath != "" {
		registry = "registry"
	}
	if m.ChromaSnapshotIncluded {
		chroma = fmt.Sprintf("Chroma %s %s", count(m.ChromaSnapshotFiles, "file"), size(m.ChromaSnapshotBytes))
	}
	return fmt.Sprintf("Snapshot %s: database %s, %s, %s.", m.Stamp, size(m.DBSizeBytes), registry, chroma)
}

func size(bytes int64) string { return humanize.Bytes(uint64(bytes)) }

func count(n int64, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return humanize.Comma(n) + " " + noun
}
