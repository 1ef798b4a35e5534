package backup

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

	"github.com/atocore/backup/internal/fsat"
)

// maxRegistrySize bounds what is held in memory of a registry.
const maxRegistrySize = 16 << 20

// captureRegistry copies the registry file into dir, byte for byte, with its
// mode and modification time, and returns its size. ok is false if there is
// none.
//
// Some writers replace the file, others write into it; so it is read until two
// readings in a row are the same file with the same times and bytes, and are
// JSON: half of a file that is just being written is not.
func (s *settings) captureRegistry(ctx context.Context, dir *fsat.Dir) (size int64, ok bool, err error) {
	if s.RegistryPath == "" {
		return 0, false, nil
	}
	const attempts = 20
	var lastData []byte
	var lastInfo fsat.Info
	var fault error
	for attempt := 0; ; attempt++ {
		data, info, err := readRegistry(s.RegistryPath)
		if errors.Is(err, fs.ErrNotExist) && attempt == 0 {
			s.log.Info("registry_snapshot_skipped_missing", "path", s.RegistryPath)
			return 0, false, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // gone between two readings: replaced
			return 0, false, err
		}
		switch {
		case err != nil || attempt == 0 || !info.Unchanged(lastInfo) || !bytes.Equal(data, lastData):
			fault = ErrSourceChanged
		case !isJSON(data):
			fault = fmt.Errorf("%w: not JSON", ErrSourceInvalid)
		default:
			return int64(len(data)), true, writeRegistry(dir, filepath.Base(s.RegistryPath), data, info)
		}
		lastData, lastInfo = data, info
		if attempt == attempts {
			return 0, false, fault
		}
		if attempt > 0 {
			if err := sleep(ctx, 20*time.Millisecond); err != nil {
				return 0, false, err
			}
		}
	}
}

// isJSON is as strict as the Python module, which wants UTF-8.
func isJSON(data []byte) bool { return utf8.Valid(data) && json.Valid(data) }

// jsonFault says why isJSON is false.
func jsonFault(data []byte) string {
	if err := json.Unmarshal(data, new(json.RawMessage)); err != nil {
		return err.Error()
	}
	return "not UTF-8"
}

func readRegistry(path string) ([]byte, fsat.Info, error) {
	// Looked at first, because opening a FIFO is felt at its other end.
	info, err := fsat.Stat(path)
	if err != nil {
		return nil, info, err
	}
	if !info.Mode.IsRegular() {
		return nil, info, &fs.PathError{Op: "open", Path: path, Err: errNotRegular}
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
		return nil, info, &fs.PathError{Op: "open", Path: path, Err: errNotRegular}
	case info.Size > maxRegistrySize:
		return nil, info, fmt.Errorf("%w: %d bytes are too many for a registry", ErrSourceInvalid, info.Size)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRegistrySize+1))
	return data, info, err
}

func writeRegistry(dir *fsat.Dir, name string, data []byte, info fsat.Info) error {
	f, err := dir.Create(name, 0o600)
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
	if err := dir.Chtimes(name, info.MtimeNano); err != nil {
		return err
	}
	return f.Close()
}
