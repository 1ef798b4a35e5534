package restore

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A power cut in the midst of a restore, and after the boot one of the store's
// volumes is not mounted. That the staging directory is missing then must not be
// taken for a step that was done: everything stays as it is until the volume is
// there.
func TestRecoveryWhileAVolumeIsMissing(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	template, stamp := newStore(t)
	type volume struct {
		name  string
		mount func(s *backuptest.Store) string
	}
	volumes := []volume{
		{"Chroma's", func(s *backuptest.Store) string { return s.ChromaPath }},
		{"the registry's", func(s *backuptest.Store) string { return filepath.Dir(s.RegistryPath) }},
		{"the database's", func(s *backuptest.Store) string { return filepath.Dir(s.DatabasePath) }},
	}
	for _, volume := range volumes {
		for _, tt := range []struct{ line, want string }{
			{"out config", "old"}, {"out db", "old"}, {"end db", "new"}, {"done", "new"},
		} {
			t.Run(volume.name+" after "+tt.line, func(t *testing.T) {
				volumeOf := func(s *backuptest.Store) string { return s.Dir + ".volume" }
				s := tracer.cutAfter(t, "pwrite64", tt.line, stamp, func(t *testing.T) *backuptest.Store {
					s := copyStore(t, template.Dir)
					at := volume.mount(s)
					require.NoError(t, os.Rename(at, volumeOf(s)))
					require.NoError(t, os.Mkdir(at, 0o755))
					backuptest.MountBind(t, volumeOf(s), at)
					return s
				})
				at := volume.mount(s)
				backuptest.Unmount(t, at)
				before := backuptest.ReadTree(t, s.Dir)
				onVolume := backuptest.ReadTree(t, volumeOf(s))
				r, err := recovery(s)
				require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
				require.ErrorContains(t, err, "mounted?")
				require.Nil(t, r)
				for _, call := range []string{"list", "validate", "create", "prune"} {
					require.ErrorIs(t, callByName(s.Options, call, stamp), backup.ErrRestoreUnfinished, call)
				}
				after := backuptest.ReadTree(t, s.Dir)
				// A line of the journal announces the attempt, and SQLite leaves an
				// empty WAL; nothing else may change but times.
				for name, file := range before {
					if strings.HasSuffix(name, journalName) && !strings.HasPrefix(name, "backups") {
						require.Contains(t, after, name)
						continue
					}
					require.Equal(t, file.Sum, after[name].Sum, name)
					require.Equal(t, file.Size, after[name].Size, name)
				}
				require.Equal(t, onVolume, backuptest.ReadTree(t, volumeOf(s)))

				backuptest.MountBind(t, volumeOf(s), at)
				require.Equal(t, tt.want, recovered(s))
			})
		}
	}
}

// partFiles are the two parts of a store that are files.
var partFiles = map[string]func(s *backuptest.Store) string{
	"the database": func(s *backuptest.Store) string { return s.DatabasePath },
	"the registry": func(s *backuptest.Store) string { return s.RegistryPath },
}

// mountFile makes a file a mount point, as container runtimes do, and returns the
// file that is mounted there.
func mountFile(t *testing.T, path string) (source string) {
	t.Helper()
	source = path + ".source"
	require.NoError(t, os.Rename(path, source))
	backuptest.Write(t, path, "what the mount hides")
	backuptest.MountBind(t, source, path)
	return source
}

// A file that is a mount point, as in containers, cannot be replaced by a rename:
// its content is.
func TestRestoreOverAFileThatIsAMountPoint(t *testing.T) {
	t.Parallel()
	for name, file := range partFiles {
		t.Run(name, func(t *testing.T) {
			s, stamp := newStore(t)
			source := mountFile(t, file(s))
			before, err := os.Stat(source)
			require.NoError(t, err)
			r := s.Restore(stamp)
			require.Equal(t, "new", generationOf(t, s.Options))
			require.Empty(t, r.SetAside)
			s.RequireNoRemains()
			after, err := os.Stat(source)
			require.NoError(t, err)
			require.True(t, os.SameFile(before, after))
			require.NotEqual(t, before.ModTime(), after.ModTime())
			mounted, err := os.Stat(file(s))
			require.NoError(t, err)
			require.True(t, os.SameFile(mounted, after))
			requireGeneration(t, s, r.SafetyStamp, "old")

			s.Restore(r.SafetyStamp)
			require.Equal(t, "old", generationOf(t, s.Options))
		})
		t.Run(name+", undone in the same call", func(t *testing.T) {
			s, stamp := newStore(t)
			mountFile(t, file(s))
			ctx, cancel := context.WithCancel(t.Context())
			s.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseVerify {
					cancel()
				}
			}
			_, err := backup.RestoreRuntimeBackup(ctx, s.Options, stamp)
			require.ErrorIs(t, err, context.Canceled)
			require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
			require.Equal(t, "old", generationOf(t, s.Options))
			s.RequireNoRemains()
			s.OnProgress = nil
		})
		t.Run(name+", set aside", func(t *testing.T) {
			s, stamp := newStore(t)
			mountFile(t, file(s))
			rubbish := strings.Repeat("rubbish ", 1000)
			require.NoError(t, os.RemoveAll(s.DatabasePath+"-wal"))
			backuptest.Write(t, s.DatabasePath, rubbish)
			r := s.Restore(stamp)
			require.Len(t, r.SetAside, 3)
			require.Equal(t, "new", generationOf(t, s.Options))
			for i, want := range map[int]string{1: `{"gen":"old"}`, 2: rubbish} {
				data, err := os.ReadFile(filepath.Join(r.SetAside[i], filepath.Base([]string{1: s.RegistryPath, 2: s.DatabasePath}[i])))
				require.NoError(t, err)
				require.Equal(t, want, string(data))
			}
		})
	}
	// The entries of the Chroma directory are renamed.
	t.Run("a file in the Chroma directory", func(t *testing.T) {
		s, stamp := newStore(t)
		path := filepath.Join(s.ChromaPath, "same")
		backuptest.MountBind(t, path, path)
		_, err := backup.RestoreRuntimeBackup(context.Background(), s.Options, stamp)
		require.ErrorIs(t, err, syscall.EBUSY)
		require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
		s.RequireNoRemains()
		require.Equal(t, "old", generationOf(t, s.Options))
	})
}

// The same, cut off: between any two lines of the journal, and while the content
// is being written.
func TestRestoreOverAMountPointIsCutOff(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	template, stamp := newStore(t)
	for name, file := range partFiles {
		part := map[string]string{"the database": "db", "the registry": "config"}[name]
		fresh := func(t *testing.T) *backuptest.Store {
			s := copyStore(t, template.Dir)
			mountFile(t, file(s))
			return s
		}
		for _, tt := range []struct{ line, want string }{
			{"begin " + part, "old"}, {"out " + part, "old"}, {"end " + part, map[string]string{"db": "new", "config": "old"}[part]},
		} {
			t.Run(name+", after "+tt.line, func(t *testing.T) {
				s := tracer.cutAfter(t, "pwrite64", tt.line, stamp, fresh)
				log := s.Record()
				r, err := recovery(s)
				requireTold(t, r, err, log, map[string]string{"old": "undone", "new": "finished"}[tt.want], stamp)
				require.Empty(t, r.SetAside)
				require.Equal(t, tt.want, generationOf(t, s.Options))
			})
		}
		t.Run(name+", before it is written", func(t *testing.T) {
			var s *backuptest.Store
			for n, last := 1, ""; last != "out "+part; n++ { // SQLite truncates the database, too
				s = fresh(t)
				cut := tracer
				cut.path = file(s)
				_, hit, _ := cut.run(t, "ftruncate", "signal=SIGKILL:when="+strconv.Itoa(n), s.Dir, stamp)
				require.True(t, hit)
				if _, err := os.Stat(journalOf(s)); err == nil {
					lines := linesOf(t, s)
					last = lines[len(lines)-1]
				}
			}
			r, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Equal(t, "undone", r.Recovered)
			require.Equal(t, "old", generationOf(t, s.Options))
			require.Empty(t, r.SetAside, "it is the old content")
		})
		t.Run(name+", half written", func(t *testing.T) {
			s := tracer.cutAfter(t, "pwrite64", "out "+part, stamp, fresh)
			for _, content := range []string{"", "half"} {
				backuptest.Write(t, file(s), content)
			}
			r, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Equal(t, "undone", r.Recovered)
			require.Equal(t, "old", generationOf(t, s.Options))
			require.Len(t, r.SetAside, 1, "it is not what was staged")
			data, err := os.ReadFile(filepath.Join(r.SetAside[0], filepath.Base(file(s))))
			require.NoError(t, err)
			require.Equal(t, "half", string(data))
		})
		t.Run(name+", written to since", func(t *testing.T) {
			s := tracer.cutAfter(t, "pwrite64", "end db", stamp, fresh)
			useStore(t, s)
			r, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Equal(t, "finished", r.Recovered)
			requireUsed(t, s.DatabasePath, s.RegistryPath, s.ChromaPath)
		})
	}
}

// Undoing is cut off as well, at each of its steps.
func TestUndoOverAMountPointIsCutOff(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	template, stamp := newStore(t)
	for name, file := range partFiles {
		t.Run(name, func(t *testing.T) {
			s := tracer.cutAfter(t, "pwrite64", "out db", stamp, func(t *testing.T) *backuptest.Store {
				s := copyStore(t, template.Dir)
				mountFile(t, file(s))
				return s
			})
			half := s.Dir + ".half"
			require.NoError(t, exec.Command("cp", "-a", s.Dir, half).Run())
			kills := 0
			for _, call := range []string{"ftruncate", "pwrite64", "fsync", "renameat2"} {
				for n := 1; ; n += (*killStride + 7) / 8 {
					_, hit, _ := tracer.run(t, call, "signal=SIGKILL:when="+strconv.Itoa(n), s.Dir, "none")
					if hit {
						kills++
						// In another process, because recovery keeps a descriptor of the
						// database, and what is open can't be unmounted.
						out, err := backuptest.Command(t, "restore", s.Dir, "none").CombinedOutput()
						require.Error(t, err)
						require.NotContains(t, string(out), backup.ErrRestoreUnfinished.Error())
						require.Equal(t, "old", generationOf(t, s.Options), "killed at %s %d", call, n)
						s.RequireNoRemains()
					}
					backuptest.Unmount(t, file(s))
					require.NoError(t, os.RemoveAll(s.Dir))
					require.NoError(t, exec.Command("cp", "-a", half, s.Dir).Run())
					backuptest.MountBind(t, file(s)+".source", file(s))
					if !hit {
						break
					}
				}
			}
			t.Logf("%d kills", kills)
			require.NoError(t, os.RemoveAll(half))
		})
	}
}

// Undoing is killed when the old content is back and its line in the journal is
// not, and somebody writes to the file before the next attempt, twice. Nothing of
// that is lost.
func TestOverwrittenFileThatIsWrittenToWhileItIsUndone(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	template, stamp := newStore(t)
	for name, file := range partFiles {
		t.Run(name, func(t *testing.T) {
			part := map[string]string{"the database": "db", "the registry": "config"}[name]
			s := tracer.cutAfter(t, "pwrite64", "out "+part, stamp, func(t *testing.T) *backuptest.Store {
				s := copyStore(t, template.Dir)
				mountFile(t, file(s))
				return s
			})
			tracer := tracer
			tracer.path = journalOf(s)
			for n, content := range []string{"first", "second"} {
				backuptest.Write(t, file(s), content)
				before := len(linesOf(t, s))
				for i := 1; ; i++ { // until the line "undone" would follow
					_, hit, _ := tracer.run(t, "pwrite64", fmt.Sprintf("signal=SIGKILL:when=%d", i), s.Dir, "none")
					require.True(t, hit)
					now, err := os.ReadFile(file(s))
					require.NoError(t, err)
					if string(now) != content {
						break
					}
					require.Less(t, i, 10)
				}
				lines := linesOf(t, s)
				require.NotContains(t, lines, "undone "+part)
				require.Equal(t, n == 0, len(lines) > before)
			}
			backuptest.Write(t, file(s), "third")
			r, err := recovery(s)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			require.Equal(t, "undone", r.Recovered)
			require.Equal(t, "old", generationOf(t, s.Options))
			require.Len(t, r.SetAside, 1)
			for i, want := range []string{"first", "second", "third"} {
				path := filepath.Join(r.SetAside[0], filepath.Base(file(s)))
				if i > 0 {
					path += fmt.Sprintf(".%d", i)
				}
				data, err := os.ReadFile(path)
				require.NoError(t, err)
				require.Equal(t, want, string(data))
			}
		})
	}
}

// The file's mount is missing after a restore was cut off. What it hides is not
// the store, and must neither be taken for it nor be overwritten.
func TestRecoveryWhileAMountedFileIsMissing(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	template, stamp := newStore(t)
	for name, file := range partFiles {
		fresh := func(t *testing.T) *backuptest.Store {
			s := copyStore(t, template.Dir)
			mountFile(t, file(s))
			return s
		}
		for _, tt := range []struct{ line, want string }{{"out db", "old"}, {"end db", "new"}} {
			t.Run(name+" after "+tt.line, func(t *testing.T) {
				s := tracer.cutAfter(t, "pwrite64", tt.line, stamp, fresh)
				backuptest.Unmount(t, file(s))
				r, err := recovery(s)
				require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
				require.ErrorContains(t, err, "mounted?")
				require.Nil(t, r)
				data, err := os.ReadFile(file(s))
				require.NoError(t, err)
				require.Equal(t, "what the mount hides", string(data))
				require.FileExists(t, journalOf(s))

				backuptest.MountBind(t, file(s)+".source", file(s))
				require.Equal(t, tt.want, recovered(s))
				aside, err := filepath.Glob(filepath.Join(s.Dir, "*", "*.set-aside-*"))
				require.NoError(t, err)
				require.Empty(t, aside)
			})
		}
	}
}
