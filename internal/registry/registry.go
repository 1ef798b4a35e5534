// Package registry makes a consistent copy of one JSON file, a project
// registry, that other programs rewrite at any time and without a lock. What
// it copies was the file's content at one moment. It must not know what the
// JSON means or where the copy belongs.
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
	"github.com/atocore/backup/internal/pyjson"
)

// MaxSize is the largest size of a registry that is copied. It limits the
// memory used.
const MaxSize = 16 << 20

// Copy copies the file at path into dst, byte for byte, under the same name and
// with its mode and modification time, and returns its size. It follows a link
// at path. If there is no such file, and none appears within some 15 ms, ok is
// false. unkept notes whether the file
// system of dst keeps modes and times.
//
// Some writers replace the file, others write into it. So Copy reads it until
// two consecutive readings are the same file with the same times and bytes, and
// these are JSON, which half of a file that is just being written isn't. It
// gives up after some 20 readings, 20 ms apart. Then, if the last ten were the
// same and not JSON, it copies the file as it is, and fault says why it is not
// JSON: a broken registry must not cost the rest of the store its backup.
// Otherwise it returns ErrSourceChanged: half of a file must not be taken for a
// broken one. A file larger than MaxSize is ErrSourceInvalid.
func Copy(ctx context.Context, path string, dst *fsat.Dir, unkept *fsat.Unkept) (size int64, ok bool, fault string, err error) {
	lastData, lastInfo, err := readAgain(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, "", nil
	}
	if err != nil {
		return 0, false, "", err
	}
	const attempts = 20
	const pause = 20 * time.Millisecond
	attempt, stable := 0, 0 // how often it was found, and how often as before
	err = poll.Until(ctx, pause, pause, func() (done bool, err error) {
		attempt++
		data, info, err := read(path)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // missing between two readings: replaced
			return false, err
		}
		still := err == nil && info.Unchanged(lastInfo) && bytes.Equal(data, lastData)
		if !still {
			stable = 0
		} else {
			stable++
			fault = Fault(data)
		}
		if still && (fault == "" || attempt == attempts && stable >= attempts/2) {
			size, ok = int64(len(data)), true
			return true, write(dst, filepath.Base(path), data, info, unkept)
		}
		lastData, lastInfo = data, info
		if attempt == attempts {
			return false, errdefs.ErrSourceChanged
		}
		return false, nil
	})
	if err != nil {
		fault = ""
	}
	return size, ok, fault, err
}

// readAgain reads a file that may be missing only because it is being replaced:
// some editors move the old file away before they write the new one. If it is
// missing, it is looked for again for some 15 ms.
func readAgain(ctx context.Context, path string) (data []byte, info fsat.Info, err error) {
	err = poll.Again(ctx, 3, 5*time.Millisecond, 20*time.Millisecond, fs.ErrNotExist, func() (err error) {
		data, info, err = read(path)
		return err
	})
	return data, info, err
}

// Fault returns the reason why data is not JSON as the Python module reads it,
// or an empty text if it is: in UTF-8, and with the constants NaN and Infinity,
// which Python writes and reads.
func Fault(data []byte) string {
	if !utf8.Valid(data) {
		return "not UTF-8"
	}
	if err := json.Unmarshal([]byte(pyjson.Relax(string(data))), new(json.RawMessage)); err != nil {
		return err.Error()
	}
	return ""
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

func write(dst *fsat.Dir, name string, data []byte, info fsat.Info, unkept *fsat.Unkept) error {
	f, err := dst.Create(name, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := unkept.Modes(f.Chmod(info.Mode.Perm())); err != nil {
		return err
	}
	if err := unkept.Times(dst.Chtimes(name, info.Mtime)); err != nil {
		return err
	}
	return f.Close()
}
