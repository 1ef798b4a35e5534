package fsat

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAttributes(t *testing.T) {
	path := t.TempDir()
	d, err := OpenDir(path)
	require.NoError(t, err)
	defer d.Close()
	file := filepath.Join(path, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Symlink("file", filepath.Join(path, "link")))
	if err := d.SetAttribute("file", "user.a", "1"); err != nil {
		t.Skipf("no attributes here: %v", err)
	}
	long := strings.Repeat("x", 2000)
	require.NoError(t, d.SetAttribute("file", "user."+strings.Repeat("n", 240), long))
	attrs, err := d.Attributes("file")
	require.NoError(t, err)
	require.Equal(t, map[string]string{"user.a": "1", "user." + strings.Repeat("n", 240): long}, attrs)

	attrs, err = d.Attributes("link")
	require.NoError(t, err)
	require.Empty(t, attrs, "the link is not followed")
	require.Error(t, d.SetAttribute("link", "user.a", "1"))
	require.Error(t, d.ChmodEntry("link", 0o644))

	require.NoError(t, d.RemoveAttribute("file", "user.a"))
	require.NoError(t, d.RemoveAttribute("file", "user.a"), "it is gone already")
	attrs, err = d.Attributes("file")
	require.NoError(t, err)
	require.Len(t, attrs, 1)
	_, err = d.Attributes("missing")
	require.ErrorIs(t, err, fs.ErrNotExist)
	_, err = d.Attributes("../x")
	require.ErrorIs(t, err, syscall.EINVAL)
	_, err = d.Attributes(".")
	require.NoError(t, err)
}

func TestCheckWriteAndMove(t *testing.T) {
	path := t.TempDir()
	d, err := OpenDir(path)
	require.NoError(t, err)
	defer d.Close()
	file := filepath.Join(path, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, CheckWrite(path))
	require.NoError(t, CheckWrite(file))
	require.ErrorIs(t, CheckWrite(filepath.Join(path, "missing")), fs.ErrNotExist)
	require.NoError(t, d.CheckMove("file"))
	require.NoError(t, d.CheckMove("missing"))
	if out, err := exec.Command("chattr", "+i", file).CombinedOutput(); err != nil {
		t.Skipf("no immutable files here: %s", out)
	}
	defer func() { require.NoError(t, exec.Command("chattr", "-i", file).Run()) }()
	require.ErrorIs(t, d.CheckMove("file"), syscall.EPERM)
	require.ErrorIs(t, CheckWrite(file), syscall.EPERM)
}
