package backup

import (
	"sync"

	"github.com/atocore/backup/internal/fsat"
)

// liveHandles holds one descriptor of each live database that was ever copied,
// for the life of the process. Closing any descriptor of a database file drops
// all POSIX locks that the process holds on it, those of the host's own
// connections included (fcntl(2), "Record locking and file descriptors";
// sqlite.org/howtocorrupt.html, section 2.2): so none is ever closed while the
// file can be reached. One whose file has lost its last name can no longer be
// opened by anybody, so its locks guard nothing; it is closed when another one
// is asked for.
var liveHandles struct {
	sync.Mutex
	files map[fileID]*fsat.File
}

// liveHandle gives a descriptor of the database at path, which must be the
// file id. The caller does not close it.
func liveHandle(path string, id fileID) (*fsat.File, error) {
	liveHandles.Lock()
	defer liveHandles.Unlock()
	if f := liveHandles.files[id]; f != nil {
		return f, nil
	}
	for id, f := range liveHandles.files {
		if info, err := f.Stat(); err == nil && info.Links == 0 {
			delete(liveHandles.files, id)
			f.Close()
		}
	}
	f, err := fsat.OpenFile(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err // f stays open: what it is is not known
	}
	if liveHandles.files == nil {
		liveHandles.files = make(map[fileID]*fsat.File)
	}
	got := fileID{info.Dev, info.Ino}
	if liveHandles.files[got] == nil {
		liveHandles.files[got] = f
	}
	if got != id { // replaced just now; what was opened is kept all the same
		return nil, errNoPinnedCopy
	}
	return f, nil
}
