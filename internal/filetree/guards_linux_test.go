package filetree

import (
	"hash/maphash"
	"io/fs"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/errdefs"
	"github.com/atocore/backup/internal/fsat"
)

// A file that has fewer bytes than it had when it was looked at is a changed
// source, also if it looks as before at the second look: all of that can happen
// within one tick of the clock. The files of sysfs are always so: they claim to
// have a page.
func TestCopyOfAFileThatBecameShorter(t *testing.T) {
	const sysfs = "/sys/kernel/mm/ksm"
	if _, err := os.Stat(sysfs); err != nil {
		t.Skip(err)
	}
	dst := openDir(t, t.TempDir())
	_, err := Copy(t.Context(), openDir(t, sysfs), dst, CopyOptions{})
	require.ErrorIs(t, err, errdefs.ErrSourceChanged)
	require.ErrorContains(t, err, "became shorter")
}

// Two looks at a file differ if any of these does: another file may have taken its
// place that has the same size and times.
func TestFingerprint(t *testing.T) {
	c := &Copied{seed: maphash.MakeSeed()}
	was := fsat.Info{Mode: 0o644, Dev: 1, Ino: 2, Size: 3, Mtime: fsat.Time{Sec: 4}, Ctime: fsat.Time{Nsec: 5}}
	require.Equal(t, c.fingerprint("a", was), c.fingerprint("a", was))
	require.NotEqual(t, c.fingerprint("a", was), c.fingerprint("b", was))
	for name, change := range map[string]func(*fsat.Info){
		"mode":   func(i *fsat.Info) { i.Mode = 0o600 },
		"type":   func(i *fsat.Info) { i.Mode |= fs.ModeSymlink },
		"device": func(i *fsat.Info) { i.Dev++ },
		"inode":  func(i *fsat.Info) { i.Ino++ },
		"size":   func(i *fsat.Info) { i.Size++ },
		"mtime":  func(i *fsat.Info) { i.Mtime.Nsec++ },
		"ctime":  func(i *fsat.Info) { i.Ctime.Sec++ },
	} {
		is := was
		change(&is)
		require.NotEqual(t, c.fingerprint("a", was), c.fingerprint("a", is), name)
	}
}
