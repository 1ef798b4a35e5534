// Package registry makes a consistent copy of one JSON file, a project
// registry, that other programs rewrite at any time and without a lock. What
// it copies was the file's content at one moment, and is JSON. It must not
// know what the JSON means or where the copy belongs.
package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"time"
	"unicode/utf8"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
	"github.com/atocore/backup/internal/poll"
)

// MaxSize is the largest size of a registry that is copied. It limits the
// memory used.
const MaxSize = 16 << 20

// Copy copies the file at path into dst, byte for byte, under the same name and
// with its mode and modification time, and returns its size. It follows a link
// at path. If there is no such file, ok is false.
//
// Some writers replace the file, others write into it. So Copy reads it until
// two consecutive readings are the same file with the same times and bytes, and
// these are JSON; a file that is only half written is not. It
// gives up after some 20 readings, 20 ms apart, and returns ErrSourceChanged if
// the last two differed, or ErrSourceInvalid if they were not JSON. A file
// larger than MaxSize is ErrSourceInvalid too.
func Copy(ctx context.Context, path string, dst *fsat.Dir) (size int64, ok bool, err error) {
	lastData, lastInfo, err := read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	if err != nil {
		return 0, false, err
	}
	const attempts = 20
	const pause = 20 * time.Millisecond
	attempt := 0
	err = poll.Until(ctx, pause, pause, func() (done bool, err error) {
		attempt++
		data, info, err := read(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // missing between two readings: replaced
			return false, err
		}
		var fault error
		switch {
		case err != nil || !info.Unchanged(lastInfo) || !bytes.Equal(data, lastData):
			fault = errdefs.ErrSourceChanged
		case !Valid(data):
			fault = fmt.Errorf("%w: not JSON", errdefs.ErrSourceInvalid)
		default:
			size, ok = int64(len(data)), true
			return true, write(dst, filepath.Base(path), data, info)
		}
		lastData, lastInfo = data, info
		if attempt == attempts {
			return false, fault
		}
		return false, nil
	})
	return size, ok, err
}

// Valid reports whether data is JSON in UTF-8. The Python module wants UTF-8,
// which json.Valid does not check.
func Valid(data []byte) bool { return utf8.Valid(data) && json.Valid(data) }

// Fault returns the reason why data is not Valid.
func Fault(data []byte) string {
	if err := json.Unmarshal(data, new(json.RawMessage)); err != nil {
		return err.Error()
	}
	return "not UTF-8"
}

func read(path string) ([]byte, fsat.Info, error) {
	// Stat comes first, because the process at the other end of a FIFO notices
	// that it is opened.
	info, err := fsat.Stat(path)
	if err != nil {
		return nil, info, err
	}
	if !info.Mode.IsRegular() {
		return nil, info, &fs.PathError{Op: "open", Path: path, Err: fsat.ErrNotRegular}
	}
	f, err := fsat.OpenFile(path)
	if err != nil {
		return nil, info, err
	}
	defer f.Close()
	if info, err = f.Stat(); err != nil {
		return nil, info, err
	}
	switch {
	case !info.Mode.IsRegular():
		return nil, info, &fs.PathError{Op: "open", Path: path, Err: fsat.ErrNotRegular}
	case info.Size > MaxSize:
		return nil, info, fmt.Errorf("%w: %d bytes are too many for a registry", errdefs.ErrSourceInvalid, info.Size)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	return data, info, err
}

func write(dst *fsat.Dir, name string, data []byte, info fsat.Info) error {
	f, err := dst.Create(name, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(info.Mode.Perm()); err != nil {
		return err
	}
	if err := dst.Chtimes(name, info.MtimeNano); err != nil {
		return err
	}
	return f.Close()
}
