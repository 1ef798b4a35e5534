package offsite_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/offsite"
)

// Whatever becomes of the state between two pushes, the next ones are right.
func TestDamagedState(t *testing.T) {
	t.Parallel()
	inTree := func(h *host, name string) string { return filepath.Join(h.stateDir(), "tree", name) }
	cases := []struct {
		name   string
		damage func(t *testing.T, r *offsite.Repository, h *host)
	}{
		{"none", func(*testing.T, *offsite.Repository, *host) {}},
		{"all is lost", func(t *testing.T, _ *offsite.Repository, h *host) { h.RemoveAll(h.offsiteDir()) }},
		{"the index", func(t *testing.T, _ *offsite.Repository, h *host) {
			h.RemoveAll(filepath.Join(h.stateDir(), "index.json"))
		}},
		{"the recipe", func(t *testing.T, _ *offsite.Repository, h *host) { h.RemoveAll(inTree(h, "recipe.json")) }},
		{"small files", func(t *testing.T, _ *offsite.Repository, h *host) { h.RemoveAll(inTree(h, "files")) }},
		{"large files", func(t *testing.T, _ *offsite.Repository, h *host) { h.RemoveAll(inTree(h, "large")) }},
		{"cache", func(t *testing.T, _ *offsite.Repository, h *host) {
			h.RemoveAll(filepath.Join(filepath.Dir(h.stateDir()), "cache"))
		}},
		{"the location", func(t *testing.T, _ *offsite.Repository, h *host) {
			h.RemoveAll(filepath.Join(filepath.Dir(h.stateDir()), "location"))
		}},
		{"both advices", func(t *testing.T, _ *offsite.Repository, h *host) {
			h.RemoveAll(inTree(h, "recipe.json"))
			h.RemoveAll(filepath.Join(h.stateDir(), "index.json"))
		}},
		{"a base", func(t *testing.T, _ *offsite.Repository, h *host) {
			base, _ := parts(t, h, large)
			h.RemoveAll(base)
		}},
		{"the first delta", func(t *testing.T, _ *offsite.Repository, h *host) {
			_, deltas := parts(t, h, large)
			h.RemoveAll(deltas[0])
		}},
		{"the last delta", func(t *testing.T, _ *offsite.Repository, h *host) {
			_, deltas := parts(t, h, large)
			h.RemoveAll(deltas[len(deltas)-1])
		}},
		{"a byte of the index", func(t *testing.T, _ *offsite.Repository, h *host) {
			flip(t, filepath.Join(h.stateDir(), "index.json"), true)
		}},
		{"a byte of the recipe", func(t *testing.T, _ *offsite.Repository, h *host) { flip(t, inTree(h, "recipe.json"), true) }},
		{"a byte of a base", func(t *testing.T, _ *offsite.Repository, h *host) {
			base, _ := parts(t, h, large)
			unlink(t, base)
			flip(t, base, false)
		}},
		{"a byte of a base and its time", func(t *testing.T, _ *offsite.Repository, h *host) {
			base, _ := parts(t, h, large)
			unlink(t, base)
			flip(t, base, true)
		}},
		{"a byte of a base in place", func(t *testing.T, _ *offsite.Repository, h *host) {
			base, _ := parts(t, h, large)
			flip(t, base, true) // in the snapshot, too
		}},
		{"a byte of a delta", func(t *testing.T, _ *offsite.Repository, h *host) {
			_, deltas := parts(t, h, large)
			flip(t, deltas[len(deltas)-1], false)
		}},
		{"a byte of a delta and its time", func(t *testing.T, _ *offsite.Repository, h *host) {
			_, deltas := parts(t, h, large)
			flip(t, deltas[len(deltas)-1], true)
		}},
		{"a byte of a small file and its time", func(t *testing.T, _ *offsite.Repository, h *host) {
			unlink(t, inTree(h, "files/chroma/small"))
			flip(t, inTree(h, "files/chroma/small"), true)
		}},
		{"other files in it", func(t *testing.T, _ *offsite.Repository, h *host) {
			base, deltas := parts(t, h, large)
			h.Must(os.WriteFile(inTree(h, "other"), nil, 0o600), os.Symlink("/etc/passwd", inTree(h, "files/link")),
				os.Mkdir(inTree(h, "files/chroma/x"), 0o700), os.WriteFile(inTree(h, "files/chroma/x/y"), nil, 0o600),
				os.WriteFile(base+"x", nil, 0o600), os.WriteFile(deltas[0]+"x", nil, 0o600),
				os.Rename(deltas[len(deltas)-1], filepath.Join(filepath.Dir(base), "0007-"+filepath.Base(deltas[0])[5:])))
		}},
		{"a link for a directory", func(t *testing.T, _ *offsite.Repository, h *host) {
			h.Must(os.Rename(inTree(h, "files/chroma"), inTree(h, "files/moved")), os.Symlink("moved", inTree(h, "files/chroma")))
		}},
		{"the base's snapshot is pruned", func(t *testing.T, _ *offsite.Repository, h *host) {
			stamps := h.Stamps()
			for _, stamp := range stamps[:len(stamps)-1] {
				h.RemoveAll(h.SnapshotPath(stamp))
			}
		}},
		{"the backup directory is moved", func(t *testing.T, _ *offsite.Repository, h *host) {
			moved := h.BackupDir + "-moved"
			h.Must(os.Rename(h.BackupDir, moved))
			h.BackupDir = moved
		}},
		{"it is a copy", func(t *testing.T, _ *offsite.Repository, h *host) {
			out, err := exec.Command("cp", "-a", h.offsiteDir(), h.offsiteDir()+"-copy").CombinedOutput()
			require.NoError(t, err, string(out))
			h.RemoveAll(h.offsiteDir())
			h.Must(os.Rename(h.offsiteDir()+"-copy", h.offsiteDir()))
		}},
		{"all is forgotten by hand", func(t *testing.T, r *offsite.Repository, h *host) {
			for _, s := range snapshotsIn(t, r) {
				runRestic(t, r, "forget", s.ID)
			}
			runRestic(t, r, "prune")
			base, deltas := parts(t, h, large)
			unlink(t, base)
			flip(t, deltas[len(deltas)-1], true)
		}},
		{"another repository is at the location", func(t *testing.T, r *offsite.Repository, h *host) {
			h.RemoveAll(r.Location)
			runRestic(t, r, "init")
		}},
	}
	const hosts = 4 // each goes through a part of the cases
	for first := range hosts {
		t.Run(fmt.Sprint(first), func(t *testing.T) {
			t.Parallel()
			r, h := newRepository(t), newHost(t)
			h.writeFile(large, mib)
			h.writeFile("small", 1000)
			h.push(r, h.Create().Stamp)
			for i := first; i < len(cases); i += hosts {
				t.Run(cases[i].name, func(t *testing.T) {
					if _, deltas := parts(t, h, large); len(deltas) == 0 {
						h.change(large, 0, 1000)
						h.push(r, h.Create().Stamp)
					}
					same := h.Create().Stamp // with the end of the row of deltas
					cases[i].damage(t, r, h)
					h.push(r, same)
					h.pull(r, same)
					h.change(large, 500_000, 1000)
					h.push(r, h.Create().Stamp)
				})
			}
		})
	}
}

// What is lost is stored again as deltas, if the names say what there is.
func TestStateSurvives(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, 4*mib)
	h.push(r, h.Create().Stamp)
	h.change(large, 0, 1000)
	h.push(r, h.Create().Stamp)
	for name, damage := range map[string]func(){
		"no index":         func() { h.RemoveAll(filepath.Join(h.stateDir(), "index.json")) },
		"no recipe":        func() { h.RemoveAll(filepath.Join(h.stateDir(), "tree", "recipe.json")) },
		"a snapshot less":  func() { h.RemoveAll(h.SnapshotPath(h.Stamps()[0])) },
		"copies forgotten": func() { runRestic(t, r, "forget", snapshotsIn(t, r)[0].ID) },
	} {
		damage()
		h.change(large, mib, 1000)
		pushed := h.push(r, h.Create().Stamp)
		require.Less(t, pushed.ChangedBytes, int64(mib), name)
		require.Less(t, pushed.UploadedBytes, int64(100_000), name)
		h.pull(r, pushed.Stamp)
	}
}

// Two stores that share a backup directory and a repository have a tree each.
func TestTwoStores(t *testing.T) {
	t.Parallel()
	r, h, other := newRepository(t), newHost(t), newHost(t)
	other.BackupDir, other.now = h.BackupDir, h.now.Add(time.Hour)
	var last *offsite.Pushed
	for i := range 3 {
		for _, s := range []*host{h, other} {
			if i == 0 {
				s.writeFile(large, 2*mib)
			}
			s.change(large, 0, 1000)
			last = s.push(r, s.Create().Stamp)
			if i > 0 {
				require.Less(t, last.ChangedBytes, int64(100_000))
			}
		}
	}
	for _, stamp := range h.Stamps() {
		h.pull(r, stamp)
	}
}

// One push at a time uses the state, and one that waits says so in the end.
func TestTwoPushers(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, 2*mib)
	h.push(r, h.Create().Stamp)
	first, second := h.Create().Stamp, h.Create().Stamp
	errs := make(chan error, 2)
	opts := h.Options
	opts.Clock = nil
	for _, stamp := range []string{first, second} {
		go func() {
			_, err := r.Push(context.Background(), opts, stamp)
			errs <- err
		}()
	}
	require.NoError(t, <-errs)
	require.NoError(t, <-errs)
	h.pull(r, first)
	h.pull(r, second)

	lock, err := os.OpenFile(filepath.Join(h.stateDir(), "lock"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX))
	hasty := *r
	hasty.Patience = 200 * time.Millisecond
	_, err = hasty.Push(context.Background(), opts, h.Create().Stamp)
	require.ErrorIs(t, err, offsite.ErrBusy)
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	_, err = r.Push(ctx, opts, first)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

// A link may be impossible, here because the state is on another file system.
func TestCopiesInsteadOfLinks(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/dev/shm", "offsite-test-")
	if err != nil {
		t.Skip("there is no /dev/shm: ", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, 2*mib)
	stamp := h.Create().Stamp
	h.Must(os.Symlink(dir, h.offsiteDir()))
	if err := os.Link(h.SnapshotPath(stamp, "SHA256SUMS"), filepath.Join(dir, "link")); err == nil {
		t.Skip("/dev/shm is the file system of the tests")
	}
	h.push(r, stamp)
	h.pull(r, stamp)
	h.change(large, 0, 10)
	pushed := h.push(r, h.Create().Stamp)
	require.Less(t, pushed.ChangedBytes, int64(100_000))
	h.pull(r, pushed.Stamp)
}

// wrapped makes Repository.Program a script that calls restic after some lines.
func wrapped(t *testing.T, r *offsite.Repository, lines string) *offsite.Repository {
	t.Helper()
	real, err := exec.LookPath("restic")
	require.NoError(t, err)
	w := *r
	w.Program = filepath.Join(t.TempDir(), "restic")
	// A child that is started meanwhile would hold the script open for writing, and it
	// could not be run (ETXTBSY, execve(2); go.dev/issue/22315).
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	require.NoError(t, os.WriteFile(w.Program, []byte("#!/bin/sh\nreal="+real+"\n"+lines+"\nexec $real \"$@\"\n"), 0o700))
	return &w
}

// What changes between being hashed and being read by restic is not left in the
// repository.
func TestChangedWhileStored(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"files/chroma/small", "large/chroma/" + large + "/base-*"} {
		r, h := newRepository(t), newHost(t)
		h.writeFile(large, 2*mib)
		h.writeFile("small", 1000)
		first := h.Create().Stamp
		h.push(r, first)
		w := wrapped(t, r, `case "$*" in *backup*) for f in `+name+`; do printf x | dd of="$f" bs=1 conv=notrunc status=none; done;; esac`)
		stamp := h.Create().Stamp
		_, err := w.Push(context.Background(), h.Options, stamp)
		require.ErrorContains(t, err, "changed while it was stored")
		require.Equal(t, []string{first}, stampsIn(t, r))
		h.push(r, stamp) // of its own files, which were not linked
		h.pull(r, stamp)
	}
}

// Exit code 3 of restic's means that it has stored what it could read.
func TestIncompleteIsForgotten(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	stamp := h.Create().Stamp
	w := wrapped(t, r, `case "$*" in *backup*) $real "$@"; exit 3;; esac`)
	_, err := w.Push(context.Background(), h.Options, stamp)
	require.ErrorContains(t, err, "could not read everything")
	require.Empty(t, stampsIn(t, r))
	h.push(r, stamp)
	h.pull(r, stamp)
}

// A push that was killed may have left a copy that lacks something. It counts only
// if it is whole.
func TestCopyOfAKilledPush(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile("small", 1000)
	stamp := h.Create().Stamp
	pushed := h.push(r, stamp)
	note, err := json.Marshal(map[string]string{"stamp": stamp, "manifest_sha256": pushed.ManifestSHA256})
	require.NoError(t, err)
	pending := filepath.Join(h.stateDir(), "pending.json")
	require.NoFileExists(t, pending)
	h.Must(os.WriteFile(pending, note, 0o600))
	require.Equal(t, pushed.ID, h.push(r, stamp).ID, "it is whole")

	list := snapshotsIn(t, r)
	require.Len(t, list, 1)
	runRestic(t, r, "forget", list[0].ID)
	h.Must(os.Remove(filepath.Join(h.stateDir(), "tree/files/chroma/small")))
	var tags []string
	for _, tag := range list[0].Tags {
		tags = append(tags, "--tag", tag)
	}
	cmd := exec.Command("restic", append([]string{"-r", r.Location, "--password-file", r.PasswordFile, "backup", "-q", "--host", list[0].Hostname, "."}, tags...)...)
	cmd.Dir = filepath.Join(h.stateDir(), "tree")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(bytes.TrimSpace(out)))
	h.Must(os.WriteFile(pending, note, 0o600))
	next := h.Create().Stamp
	h.push(r, next)
	require.Equal(t, []string{next}, stampsIn(t, r), "the incomplete one is forgotten, whatever is pushed")
	require.NoFileExists(t, pending)
	require.False(t, h.push(r, stamp).AlreadyThere)
	require.Equal(t, []string{stamp, next}, stampsIn(t, r))
	h.pull(r, stamp)
}

// A file that decays changes none of its times. What was stored before is right,
// and when restic has to read it again, it is hashed again, too.
func TestDecayIsNotStored(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, mib)
	h.writeFile("small", 1000)
	h.push(r, h.Create().Stamp)
	h.change(large, 0, 1000)
	h.push(r, h.Create().Stamp)
	base, deltas := parts(t, h, large)
	small := filepath.Join(h.stateDir(), "tree/files/chroma/small")
	for _, path := range []string{base, deltas[0], small} {
		unlink(t, path)
		flip(t, path, true)
	}
	name := filepath.Join(h.stateDir(), "index.json")
	data, err := os.ReadFile(name)
	require.NoError(t, err)
	var index map[string]map[string]any
	require.NoError(t, json.Unmarshal(data, &index))
	for _, path := range []string{base, deltas[0], small} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		st := info.Sys().(*syscall.Stat_t)
		rel, err := filepath.Rel(h.stateDir(), path)
		require.NoError(t, err)
		index[rel]["state"] = []any{st.Size, st.Mtim.Sec, st.Mtim.Nsec, st.Ctim.Sec, st.Ctim.Nsec, st.Ino}
	}
	data, err = json.Marshal(index)
	require.NoError(t, err)
	h.Must(os.WriteFile(name, data, 0o600))

	for _, s := range snapshotsIn(t, r) {
		runRestic(t, r, "forget", s.ID)
	}
	runRestic(t, r, "prune")
	stamp := h.Create().Stamp
	h.push(r, stamp)
	h.pull(r, stamp)
}

// What a pull that died has left is removed, and what a running one uses is not.
func TestScratchOfTheDead(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	stamp := h.Create().Stamp
	h.push(r, stamp)
	opts := h.pull(r, stamp)
	h.Must(os.RemoveAll(filepath.Join(opts.BackupDir, "snapshots")))
	ids, err := filepath.Glob(filepath.Join(opts.BackupDir, ".atocore-offsite", "*"))
	require.NoError(t, err)
	require.Len(t, ids, 1)
	dead, used := filepath.Join(ids[0], "pull-0123456789abcdef"), filepath.Join(ids[0], "pull-fedcba9876543210")
	h.Must(os.MkdirAll(filepath.Join(dead, "tree", "files"), 0o700), os.WriteFile(filepath.Join(dead, "tree", "files", "x"), nil, 0o400),
		os.Chmod(filepath.Join(dead, "tree", "files"), 0o500), os.Mkdir(used, 0o700))
	lock, err := os.Create(filepath.Join(used, "lock"))
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, syscall.Flock(int(lock.Fd()), syscall.LOCK_EX))
	_, err = r.Pull(context.Background(), opts, stamp)
	require.NoError(t, err)
	require.NoDirExists(t, dead)
	require.DirExists(t, used)
}
