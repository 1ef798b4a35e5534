package sqlitedb

import (
	"fmt"
	"path/filepath"
	"slices"
	"sync"

	"github.com/atocore/backup/internal/fsat"
)

// keptDescriptors holds one descriptor of each live database that was ever
// copied or looked at, and of a -shm whose locks were looked at, for the life of
// the process. Closing any descriptor of a database file drops all POSIX locks
// that the process holds on it, those of the host's own connections included
// (fcntl(2), "Record locking and file descriptors"; sqlite.org/howtocorrupt.html,
// section 2.2). So a descriptor is never closed while its file can be reached. A
// file that has lost its last name can no longer be opened by anybody, so its
// locks protect nothing; its descriptor is closed when one of another file is
// requested, when a Source is closed, and by CloseUnlinked. See also askKept.
//
// A host of many databases needs its descriptors for other things, so there are
// at most mostKept.
var keptDescriptors struct {
	sync.Mutex
	files map[fsat.ID]*fsat.File
}

// keptShare is the share of the descriptors which this process may have that are
// kept here: one in so many.
const keptShare = 16

// mostKept returns how many descriptors are kept at most.
func mostKept() int { return max(4, fsat.DescriptorLimit()/keptShare) }

// keepDescriptor returns a descriptor of the file at path, which must be the
// file id; otherwise, or if there are mostKept of other files, it returns
// errNoPinnedCopy. The caller must not close the
// descriptor. Others open the same one: it must be used with offsets only.
func keepDescriptor(path string, id fsat.ID) (*fsat.File, error) {
	keptDescriptors.Lock()
	defer keptDescriptors.Unlock()
	return keepLocked(path, id, false)
}

// CloseUnlinked closes the descriptors of files that were removed, so that the
// space which they take up is free: those that have no name any more, or only one
// that a FUSE server or NFS client keeps because they are open.
func CloseUnlinked() {
	keptDescriptors.Lock()
	defer keptDescriptors.Unlock()
	closeUnlinked()
}

// closeUnlinked is CloseUnlinked while keptDescriptors is locked.
func closeUnlinked() {
	for id, f := range keptDescriptors.files {
		info, err := f.Stat()
		if err == nil && info.Links == 0 || fsat.IsRemote(filepath.Dir(f.Path())) && isHidden(f.Path(), id) {
			closeKept(id, f)
		}
	}
}

func closeKept(id fsat.ID, f *fsat.File) {
	delete(keptDescriptors.files, id)
	f.Close()
}

// isHidden reports whether the file that was at path was removed or replaced, and
// is still there under another name because it is open. The file may have further
// names. On FUSE these can be other inodes to the kernel, with locks and a cache
// of their own, so they must not be read through this one.
func isHidden(path string, id fsat.ID) bool {
	dir, err := fsat.OpenDir(filepath.Dir(path))
	if err != nil {
		return false
	}
	defer dir.Close()
	entries, err := dir.ReadDir()
	return err == nil && slices.ContainsFunc(entries, func(entry fsat.Entry) bool {
		if !fsat.IsHiddenName(entry.Name) {
			return false
		}
		info, err := dir.Lstat(entry.Name)
		return err == nil && info.ID() == id
	})
}

// CloseKept closes the descriptor that is kept of a file, if there is one. The
// file must be about to be removed, and nobody in this process may have a lock on
// it: a FUSE server keeps a removed file under another name until it is closed.
// A file with several names is left alone.
func CloseKept(file fsat.Info) {
	if file.Links > 1 {
		return
	}
	keptDescriptors.Lock()
	defer keptDescriptors.Unlock()
	if f := keptDescriptors.files[file.ID()]; f != nil {
		closeKept(file.ID(), f)
	}
}

// KeepOpen takes descriptors of the database at path and of its -shm that stay
// open, and returns a function that returns them by the path of the file, or nil
// for another file. Whoever reads the database that way drops no lock of this
// process on it.
func KeepOpen(path string) func(path string) *fsat.File {
	kept := make(map[string]*fsat.File)
	for _, name := range []string{path, path + "-shm"} {
		info, err := fsat.Stat(name)
		if err != nil || !info.Mode.IsRegular() {
			continue
		}
		needed := openedHere(name, info.ID())
		keptDescriptors.Lock()
		if f, err := keepLocked(name, info.ID(), needed); err == nil {
			kept[name] = f
		}
		keptDescriptors.Unlock()
	}
	return func(path string) *fsat.File { return kept[path] }
}

// keepLocked is keepDescriptor while keptDescriptors is locked. needed means that
// the descriptor is kept however many there are.
func keepLocked(path string, id fsat.ID, needed bool) (*fsat.File, error) {
	if f := keptDescriptors.files[id]; f != nil {
		return f, nil
	}
	closeUnlinked()
	if !needed && len(keptDescriptors.files) >= mostKept() {
		return nil, errNoPinnedCopy
	}
	f, err := fsat.OpenFile(path)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err // f stays open: it is not known which file it is
	}
	if keptDescriptors.files == nil {
		keptDescriptors.files = make(map[fsat.ID]*fsat.File)
	}
	opened := info.ID()
	if keptDescriptors.files[opened] == nil {
		keptDescriptors.files[opened] = f
	}
	if opened != id { // replaced just now; the descriptor must be kept nevertheless
		return nil, errNoPinnedCopy
	}
	return f, nil
}

// isKeptDescriptor reports whether a descriptor of this process, by its number,
// is one of keptDescriptors.
func isKeptDescriptor(number string) bool {
	keptDescriptors.Lock()
	defer keptDescriptors.Unlock()
	for _, f := range keptDescriptors.files {
		if fmt.Sprint(f.Descriptor()) == number {
			return true
		}
	}
	return false
}
