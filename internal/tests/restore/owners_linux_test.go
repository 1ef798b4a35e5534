package restore

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// To whom what was restored belongs, and what else it has of the files that it
// replaces.

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can change owners")
	}
}

func chown(t *testing.T, owner int, paths ...string) {
	t.Helper()
	for _, path := range paths {
		require.NoError(t, os.Lchown(path, owner, owner+1))
	}
}

// requireOwner checks to whom files belong: to the user owner and the group
// owner+1.
func requireOwner(t *testing.T, owner int, paths ...string) {
	t.Helper()
	for _, path := range paths {
		uid, gid := ownerOf(t, path)
		require.Equal(t, []int{owner, owner + 1}, []int{uid, gid}, path)
	}
}

// Each file that the superuser restores belongs to the owner of the one that it
// replaces, and a new one to the owner of the directory that it goes into. The
// result and the log say so, and an undo changes no owner.
func TestRestoreKeepsOwners(t *testing.T) {
	t.Parallel()
	needRoot(t)
	s, _ := newStore(t)
	in := func(name string) string { return filepath.Join(s.ChromaPath, filepath.FromSlash(name)) }
	for _, name := range []string{"segment-old/kept", "segment-old/lost", "shared", "gone/below/x"} {
		require.NoError(t, os.MkdirAll(filepath.Dir(in(name)), 0o755))
		backuptest.Write(t, in(name), "a")
	}
	stamp := s.Create().Stamp
	s.RemoveAll(in("segment-old/lost"))
	s.RemoveAll(in("gone"))
	for _, name := range []string{"segment-old/kept", "shared"} {
		backuptest.Write(t, in(name), "b")
	}
	backuptest.Write(t, s.RegistryPath, `{"gen":"else"}`)
	db := backuptest.OpenDB(t, s.DatabasePath)
	_, err := db.Exec("CREATE TABLE more (x)")
	require.NoError(t, err)
	require.NoError(t, db.Close())
	// As a service has it whose directory root has made: the directory is root's.
	chown(t, 1000, s.DatabasePath)
	chown(t, 2000, s.RegistryPath)
	chown(t, 3000, in("segment-old"), in("same"))
	chown(t, 4000, in("segment-old/kept"))
	chown(t, 5000, in("shared"))
	check := func() {
		t.Helper()
		requireOwner(t, 1000, s.DatabasePath)
		requireOwner(t, 2000, s.RegistryPath)
		requireOwner(t, 3000, in("segment-old"), in("same"))
		requireOwner(t, 4000, in("segment-old/kept"))
		requireOwner(t, 5000, in("shared"))
		for _, path := range []string{s.ChromaPath, in("only-old")} {
			uid, gid := ownerOf(t, path)
			require.Equal(t, []int{0, 0}, []int{uid, gid}, path)
		}
	}
	opts := s.Options
	opts.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseVerify {
			panic("undo it")
		}
	}
	_, err = backup.RestoreRuntimeBackup(t.Context(), opts, stamp)
	require.ErrorIs(t, err, backup.ErrPanic)
	check()

	log := s.Record()
	r := s.Restore(stamp)
	check()
	requireOwner(t, 3000, in("segment-old/lost"))
	uid, _ := ownerOf(t, in("gone/below/x"))
	require.Zero(t, uid, "what is new is the directory's owner's")
	require.Equal(t, [][]string{{"1000:1001"}, {"2000:2001"}, {"0:0", "3000:3001", "4000:4001", "5000:5001"}},
		[][]string{r.Parts[0].Owners, r.Parts[1].Owners, r.Parts[2].Owners})
	require.Contains(t, strings.Join(log.Lines(), "\n"), "database=replace (1000:1001)")
}

// What was lost is restored for the owner of the directory that it goes into.
func TestRestoreOfALostStoreHasOwners(t *testing.T) {
	t.Parallel()
	needRoot(t)
	s, stamp := newStore(t)
	data := filepath.Join(s.Dir, "data")
	require.NoError(t, os.Mkdir(data, 0o755))
	chown(t, 1234, data)
	s.DatabasePath, s.ChromaPath = filepath.Join(data, "new", "a.db"), filepath.Join(data, "new", "chroma")
	s.RegistryPath = filepath.Join(data, "registry.json")
	r := s.Restore(stamp)
	requireOwner(t, 1234, filepath.Join(data, "new"), s.DatabasePath, s.RegistryPath, s.ChromaPath,
		filepath.Join(s.ChromaPath, "same"), filepath.Join(s.ChromaPath, "segment-new"), filepath.Join(s.ChromaPath, "segment-new", "header"))
	for _, part := range r.Parts {
		require.Equal(t, backup.ActionCreate, part.Action)
		require.Equal(t, []string{"1234:1235"}, part.Owners)
	}
}

// A restore that was cut off is finished or undone with the same owners.
func TestRecoveryKeepsOwners(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, phase := range []string{"swap", "verify"} {
		s, stamp := newStore(t)
		same := filepath.Join(s.ChromaPath, "same")
		chown(t, 1000, s.DatabasePath)
		chown(t, 2000, s.RegistryPath)
		chown(t, 3000, same)
		cutOff(t, s, stamp, phase)
		recovered(s)
		requireOwner(t, 1000, s.DatabasePath)
		requireOwner(t, 2000, s.RegistryPath)
		requireOwner(t, 3000, same)
	}
}

// A file that is mounted alone stays what it is. If its old content is set aside,
// the copy belongs to whom the file belongs.
func TestOwnersOfAMountedFile(t *testing.T) {
	t.Parallel()
	needRoot(t)
	s, stamp := newStore(t)
	mountFile(t, s.RegistryPath)
	chown(t, 2000, s.RegistryPath)
	require.NoError(t, os.Chmod(s.RegistryPath, 0o640))
	require.NoError(t, os.Remove(s.DatabasePath)) // so that everything is set aside
	r := s.Restore(stamp)
	require.Equal(t, backup.ActionOverwrite, r.Parts[1].Action)
	require.Equal(t, []string{"2000:2001"}, r.Parts[1].Owners)
	requireOwner(t, 2000, s.RegistryPath)
	var aside string
	for _, dir := range r.SetAside {
		if strings.Contains(dir, "registry") {
			aside = filepath.Join(dir, filepath.Base(s.RegistryPath))
		}
	}
	requireOwner(t, 2000, aside)
	info, err := os.Stat(aside)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o640), info.Mode())
}

// run runs a tool and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Skipf("no %s", name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %q: %s", name, args, out)
	return string(out)
}

// attributesOf returns the extended attributes of a file and its ACL as tools
// print them, without the file's name.
func attributesOf(t *testing.T, path string) string {
	t.Helper()
	return run(t, "getfattr", "--absolute-names", "-h", "-d", "-m", "^(user|security|trusted)", path) + run(t, "getfacl", "-p", path)
}

// A file that takes the place of another one has that one's extended attributes
// and ACL. It does not have its capabilities, which were given to another program.
func TestRestoreKeepsAttributes(t *testing.T) {
	needRoot(t)
	s, stamp := newStore(t)
	in := func(name string) string { return filepath.Join(s.ChromaPath, filepath.FromSlash(name)) }
	require.NoError(t, os.Mkdir(in("segment-new"), 0o755)) // it comes back, with another file
	backuptest.Write(t, in("segment-new/header"), "older")
	backuptest.Write(t, in("only-new"), "older")
	replaced := []string{s.DatabasePath, s.RegistryPath, in("same"), in("segment-new"), in("segment-new/header")}
	for _, path := range replaced {
		run(t, "setfattr", "-n", "user.note", "-v", "of "+filepath.Base(path), path)
		run(t, "setfacl", "-m", "u:1234:r,g:4321:r", path)
	}
	require.NoError(t, os.Chmod(in("same"), 0o400)) // its owner may not write to it
	run(t, "setfacl", "-d", "-m", "u:77:rwx", in("segment-new"))
	run(t, "setcap", "cap_net_raw+ep", in("same"))
	run(t, "setfattr", "-n", "trusted.overlay.origin", "-v", "x", in("same"))
	before := make(map[string]string)
	for _, path := range append(replaced, in("only-new")) {
		before[path] = attributesOf(t, path)
	}
	capable := run(t, "getcap", in("same"))
	require.NotEmpty(t, capable)

	r := s.Restore(stamp)
	require.Equal(t, "new", generationOf(t, s.Options))
	for _, path := range replaced {
		now := attributesOf(t, path)
		require.Contains(t, now, `user.note="of `+filepath.Base(path)+`"`)
		require.NotContains(t, now, "security.capability")
		require.NotContains(t, now, "trusted.")
		for _, entry := range []string{"user:1234:r--", "group:4321:r--"} {
			require.Contains(t, now, entry, path)
		}
	}
	require.Contains(t, attributesOf(t, in("segment-new")), "default:user:77:rwx")
	require.Equal(t, before[s.DatabasePath], attributesOf(t, s.DatabasePath), "with the mode of the old database")
	require.Equal(t, before[in("only-new")], attributesOf(t, in("only-new")), "it had none")
	for _, part := range r.Parts {
		require.Empty(t, part.NotKept)
	}
	info, err := os.Stat(in("same"))
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), info.Mode(), "the snapshot's mode")
}

// What is new has the default ACL of the directory that it goes into, not of the
// one in which it was prepared.
func TestRestoreAndDefaultACLs(t *testing.T) {
	s, _ := newStore(t)
	in := func(name string) string { return filepath.Join(s.ChromaPath, filepath.FromSlash(name)) }
	for _, dir := range []string{"plain", "special", "new"} {
		require.NoError(t, os.Mkdir(in(dir), 0o755))
		backuptest.Write(t, in(dir+"/kept"), "a")
		backuptest.Write(t, in(dir+"/lost"), "a")
	}
	stamp := s.Create().Stamp
	s.RemoveAll(in("new"))
	for _, dir := range []string{"plain", "special"} {
		s.RemoveAll(in(dir + "/lost"))
	}
	run(t, "setfacl", "-d", "-m", "u:88:rwx", s.ChromaPath)
	run(t, "setfacl", "-d", "-m", "u:77:rwx", in("special"))
	s.Restore(stamp)
	for name, want := range map[string]string{
		"plain": "", "plain/kept": "", "plain/lost": "", "special/kept": "", "special/lost": "user:77:rwx",
		"new": "default:user:88:rwx", "new/lost": "user:88:rwx", "same": "",
	} {
		acl := run(t, "getfacl", "-p", in(name))
		if want == "" {
			require.NotRegexp(t, `(?m)^(default:)?user:\d`, acl, name)
		} else {
			require.Contains(t, acl, want, name)
		}
	}
}

// What the user may not keep is said once for each part, and is no failure.
func TestOwnersThatCannotBeKept(t *testing.T) {
	needRoot(t)
	s, stamp := newStore(t)
	openFor(t, s.Dir)
	require.NoError(t, exec.Command("chown", "-R", fmt.Sprintf("%d:%d", nobody, nobody), s.Dir).Run())
	chown(t, 4000, filepath.Join(s.ChromaPath, "same"))
	require.NoError(t, os.Chmod(filepath.Join(s.ChromaPath, "same"), 0o644))
	c := backuptest.Start(t, "restore-as", s.Dir, stamp, fmt.Sprint(nobody), "tell")
	require.Contains(t, c.Hear(), "the owner of "+filepath.Join(s.ChromaPath, "same")+": operation not permitted")
	c.Wait()
	require.Equal(t, "new", generationOf(t, s.Options))
}

// The same of attributes, of a file that its reader may not read.
func TestAttributesThatCannotBeKept(t *testing.T) {
	needRoot(t)
	s, stamp := newStore(t)
	openFor(t, s.Dir)
	require.NoError(t, exec.Command("chown", "-R", fmt.Sprintf("%d:%d", nobody, nobody), s.Dir).Run())
	run(t, "setfattr", "-n", "user.note", "-v", "x", s.RegistryPath)
	chown(t, 4000, s.RegistryPath)
	require.NoError(t, os.Chmod(s.RegistryPath, 0o600))
	c := backuptest.Start(t, "restore-as", s.Dir, stamp, fmt.Sprint(nobody), "tell")
	require.Contains(t, c.Hear(), "extended attributes of "+s.RegistryPath+": permission denied")
	require.Contains(t, c.Hear(), "the owner of ")
	c.Wait()
	require.Equal(t, "new", generationOf(t, s.Options))
}
