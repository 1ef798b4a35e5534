package fsat_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/fsat"
)

// A program that the host starts inherits no descriptor: with it, it would keep
// files open, and could write to them.
func TestDescriptorsAreNotInherited(t *testing.T) {
	ls, err := exec.LookPath("ls")
	if err != nil {
		t.Skip("no ls")
	}
	dir, path := open(t)
	write(t, "x", path, "file")
	require.NoError(t, os.Mkdir(filepath.Join(path, "sub"), 0o755))
	for name, open := range map[string]func() (interface{ Close() error }, error){
		"OpenDir":     func() (interface{ Close() error }, error) { return fsat.OpenDir(path) },
		"Dir.OpenDir": func() (interface{ Close() error }, error) { return dir.OpenDir("sub") },
		"Reopen":      func() (interface{ Close() error }, error) { return dir.Reopen() },
		"Open":        func() (interface{ Close() error }, error) { return dir.Open("file") },
		"OpenRW":      func() (interface{ Close() error }, error) { return dir.OpenRW("file") },
		"Create":      func() (interface{ Close() error }, error) { return dir.Create("new", 0o600) },
		"OpenFile":    func() (interface{ Close() error }, error) { return fsat.OpenFile(filepath.Join(path, "file")) },
	} {
		opened, err := open()
		require.NoError(t, err, name)
		listed, err := exec.Command(ls, "-l", "/proc/self/fd").Output()
		require.NoError(t, err)
		require.Contains(t, string(listed), "/dev/null", "the list was not understood")
		require.NotContains(t, string(listed), path, name)
		require.NoError(t, opened.Close())
	}
}
