package sqlitedb

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"github.com/atocore/backup/internal/fsat"
)

var ownPID = os.Getpid()

// openedHere reports whether this process has the file at path open. Kept
// descriptors do not count.
func openedHere(path string, file fsat.ID) bool { return hasOpen(ownPID, path, file) }

// openedBy returns the numbers of the processes that have the file at path open. The
// descriptors that this package keeps (see keptDescriptors) do not count, but
// duplicates of them in other processes do.
func openedBy(path string, file fsat.ID) (pids []int) {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, process := range processes {
		pid, err := strconv.Atoi(process.Name())
		if err == nil && hasOpen(pid, path, file) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func hasOpen(pid int, path string, file fsat.ID) bool {
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	descriptors, err := os.ReadDir(dir)
	if err != nil {
		return false // it has ended, or this process may not look into it
	}
	for _, descriptor := range descriptors {
		// No server is asked: one of all those files may be on a mount that hangs.
		if !fsat.IsOpenAs(pid, descriptor.Name(), path, file) {
			continue
		}
		if pid != ownPID || !isKeptDescriptor(descriptor.Name()) {
			return true
		}
	}
	return false
}

// askKept finds out by a lease whether anybody has the file open that info
// describes: any process, also one that cannot be seen from here. Descriptors
// that this package keeps do not count, nor do their duplicates in other
// processes.
//
// The descriptor that it takes for that is kept like all others if somebody else
// has the file open, or may have: this process may have locks on it. While the
// lease is held, nobody has, so no lock is lost by closing the descriptor; the
// lease does not end before that. The descriptor is closed because the file is
// about to be replaced, and a removed file that is open takes up space.
func askKept(path string, info fsat.Info) openness {
	if !mayLease(path, info) {
		return unknown
	}
	keptDescriptors.Lock()
	defer keptDescriptors.Unlock()
	f, err := keepLocked(path, info.ID(), true)
	if err != nil {
		return unknown
	}
	answer := lease(f)
	if answer == openByNobody {
		delete(keptDescriptors.files, info.ID())
		f.Close()
	}
	return answer
}

// forget closes the descriptor that is kept of a file, if it can be told that
// nobody else has the file open, so that no lock is lost: otherwise other
// processes would find the file in use by this one.
func forget(file fsat.ID) {
	keptDescriptors.Lock()
	defer keptDescriptors.Unlock()
	f := keptDescriptors.files[file]
	if f == nil {
		return
	}
	if info, err := f.Stat(); err != nil || !mayLease(f.Path(), info) {
		return
	}
	if lease(f) == openByNobody {
		delete(keptDescriptors.files, file)
		f.Close()
	}
}

// askOnce is askKept for a file on which nobody has locks.
func askOnce(path string, info fsat.Info) openness {
	if !mayLease(path, info) {
		return unknown
	}
	f, err := fsat.OpenFile(path)
	if err != nil {
		return unknown
	}
	defer f.Close()
	return lease(f)
}

// mayLease reports whether it is worth while to open the file for a lease. On
// another system's file a lease could be granted while that has the file open.
func mayLease(path string, info fsat.Info) bool {
	euid := os.Geteuid()
	return info.Mode.IsRegular() && (info.UID == euid || euid == 0) && !fsat.IsRemote(path)
}

func lease(f *fsat.File) openness {
	switch err := f.TryLease(); {
	case err == nil:
		return openByNobody
	case errors.Is(err, fsat.ErrLocked):
		return openBySomebody
	}
	return unknown
}
