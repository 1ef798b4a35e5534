package sqlitedb

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"

	"github.com/atocore/backup/internal/filehash"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
)

// WorkName is the name of a copy until it is sealed. It is short because
// SQLite appends "-journal" and "-wal" to it, which a file name of 255 bytes
// would leave no room for.
const WorkName = "capture.db"

// A Capture describes how one live database is to be copied.
type Capture struct {
	// Path is the database file. With a Handle on a database in memory, and with
	// Write, it is only a name.
	Path string
	// Handle, if it is set, is the host's own handle on the database. The copy
	// is made through a connection of it, and the file is not opened here.
	Handle *sql.DB
	// Write, if it is set, is a function of the host that writes a copy of the
	// database to path, which does not exist. The database itself is not looked at
	// here. Write is called while CopyTo runs; its errors and panics pass through.
	Write func(ctx context.Context, path string) error
	// Source, if it is set, is used instead of opening Path. It has begun a
	// transaction, and stays open.
	Source *Source
	// Online selects SQLite's online backup API where the files themselves
	// could be copied.
	Online bool
	// Hash allows hashing the copy on another CPU while it is made. It should
	// be false if writers are kept waiting meanwhile: then the CPUs should only
	// copy.
	Hash bool
	// Progress, if it is not nil, is called with the number of bytes copied so
	// far and with the number that there are, which may change. If it panics,
	// the panic passes through CopyTo, unless there is a Handle: then CopyTo
	// returns it as errdefs.ErrPanic.
	Progress func(done, total int64)

	opened *Source
}

// A Copy is a copy of a live database that CopyTo made in a directory, under
// WorkName until it is sealed. Discard must be called when it is no longer
// needed.
type Copy struct {
	hash    *filehash.Follower
	written pageSet // the pages that SQLite wrote and did not copy
	byHost  bool    // the host wrote it; see checkContent
}

// Ready waits until the database can be read, and leaves it unlocked. Whenever
// it cannot be read yet, Ready calls waiting, which may be nil, and tries again
// soon. The errors are those of CopyTo without ErrBusy, or that of ctx. The
// caller must call Close in the end.
func (c *Capture) Ready(ctx context.Context, waiting func()) error {
	if c.Source != nil || c.Write != nil {
		return nil
	}
	try := c.tryFile
	if c.Handle != nil {
		try = c.tryHandle
	}
	return poll.Until(ctx, firstPause, mostPause, func() (bool, error) {
		err := ctx.Err()
		if err == nil {
			err = try(ctx)
		}
		if !errors.Is(err, ErrBusy) {
			return true, err
		}
		if waiting != nil {
			waiting()
		}
		return false, nil
	})
}

// tryFile opens the database, unless it is open, and reads once.
func (c *Capture) tryFile(ctx context.Context) error {
	if c.opened == nil {
		src, err := Open(c.Path)
		if err != nil {
			return err
		}
		c.opened = src
	}
	err := c.opened.Begin(ctx)
	if err == nil {
		c.opened.End()
	}
	return err
}

// Close closes what Ready or CopyTo opened.
func (c *Capture) Close() error {
	src := c.opened
	if src == nil {
		return nil
	}
	c.opened = nil
	return src.Close()
}

// CopyTo copies the database to dir/WorkName as it is at one moment, after
// CopyTo was called. ctx also ends the hash, which may still be running when
// CopyTo returns. If Ready was not called before, CopyTo does so.
//
// A file that is not a database, or one whose users have it open by another name
// (see CheckName), is errdefs.ErrSourceInvalid; one that was replaced while it
// was copied is errdefs.ErrSourceChanged, one whose journal is in use is
// errdefs.ErrDatabaseInUse, and a Handle that has another file open is
// errdefs.ErrInvalidOptions. What Write has left is errdefs.ErrSourceInvalid if it
// is not a copy. A database that is busy for more than a moment is
// ErrBusy: then nothing is in dir. After another error, what was written stays.
func (c *Capture) CopyTo(ctx context.Context, dir *fsat.Dir) (*Copy, error) {
	made := new(Copy)
	complete := false
	defer func() { // also if Progress panics
		if !complete {
			made.Discard()
		}
	}()
	if err := c.copyTo(ctx, dir, made); errors.Is(err, ErrBusy) {
		return nil, errors.Join(err, removeCopy(dir))
	} else if err != nil {
		return nil, withSystemError(err)
	}
	complete = true
	return made, nil
}

func (c *Capture) copyTo(ctx context.Context, dir *fsat.Dir, made *Copy) error {
	switch {
	case c.Write != nil:
		return c.copyByHost(ctx, dir, made)
	case c.Handle != nil:
		return c.copyHandle(ctx, dir, made)
	}
	src := c.Source
	if src == nil {
		if c.opened == nil {
			if err := c.Ready(ctx, nil); err != nil {
				return err
			}
		}
		src = c.opened
		if err := briefly(ctx, func() error { return src.Begin(ctx) }); err != nil {
			return err
		}
		defer src.End()
	}
	if !c.Online {
		if err := c.copyPinned(ctx, src, dir, made); !errors.Is(err, errNoPinnedCopy) {
			return errors.Join(err, src.checkStill())
		}
	}
	return errors.Join(c.copyOnline(ctx, src, dir, made), src.checkStill())
}

// removeCopy removes what was begun of a copy.
func removeCopy(dir *fsat.Dir) error {
	for _, suffix := range Suffixes {
		if err := dir.Remove(WorkName+suffix, false); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

func (c *Capture) progress(done, total int64) {
	if c.Progress != nil {
		c.Progress(done, total)
	}
}

// Hash returns the hash that was begun while the copy was made. It is nil if
// the copy has to be hashed later: none was begun, or the copy was changed
// since.
func (c *Copy) Hash() *filehash.Follower {
	if c == nil {
		return nil
	}
	return c.hash
}

// Discard ends the hash, if one is running. The files are left to the caller.
// A nil Copy has nothing to discard.
func (c *Copy) Discard() {
	if c != nil {
		c.hash.Stop()
		c.hash = nil
	}
}

// createEmpty creates the file in which SQLite will write a copy, so that its
// mode is not SQLite's 0644.
func createEmpty(dir *fsat.Dir, name string) error {
	f, err := dir.Create(name, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}
