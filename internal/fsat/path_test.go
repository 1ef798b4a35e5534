package fsat_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/fsat"
)

// RealPath returns where a file would be created, also through a link whose
// target is missing.
func TestRealPath(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	at := func(name string) string { return filepath.Join(top, filepath.FromSlash(name)) }
	for _, dir := range []string{"live", "disk/store", "other"} {
		require.NoError(t, os.MkdirAll(at(dir), 0o755))
	}
	write(t, "x", at("disk/store/a.db"))
	for name, target := range map[string]string{
		"live/there":         at("disk/store/a.db"),
		"live/absolute":      at("disk/store/lost.db"),
		"live/relative":      "../disk/store/lost.db",
		"live/here":          "lost.db",
		"live/dot":           "./lost.db",
		"live/chain":         "relative",
		"live/longer":        at("live/chain"),
		"live/lost-volume":   at("lost"),
		"live/deep":          "lost-volume/store/lost.db",
		"live/self":          "self",
		"live/circle1":       "circle2",
		"live/circle2":       "circle1",
		"live/linked":        "../disk/store",
		"live/slash":         "../disk/store/lost/",
		"disk/store/up":      "../up.db", // seen through live/linked, too
		"live/through":       "linked/../beside.db",
		"other/into-missing": "none/../x",
	} {
		if err := os.Symlink(filepath.FromSlash(target), at(name)); err != nil {
			t.Skip(err)
		}
	}
	for path, want := range map[string]string{
		"live":                 "live",
		"live/none":            "live/none",
		"live/none/deeper":     "live/none/deeper",
		"live/there":           "disk/store/a.db",
		"live/absolute":        "disk/store/lost.db",
		"live/relative":        "disk/store/lost.db",
		"live/here":            "live/lost.db",
		"live/dot":             "live/lost.db",
		"live/chain":           "disk/store/lost.db",
		"live/longer":          "disk/store/lost.db",
		"live/lost-volume":     "lost",
		"live/lost-volume/a/b": "lost/a/b",
		"live/deep":            "lost/store/lost.db",
		"live/self":            "live/self",
		"live/self/below":      "live/self/below",
		"live/circle1":         "live/circle1",
		"live/circle2/below":   "live/circle2/below",
		"live/linked/up":       "disk/up.db",
		"live/linked/none":     "disk/store/none",
		"live/slash":           "disk/store/lost",
		"live/slash/below":     "disk/store/lost/below",
		"live/through":         "disk/beside.db",
		"other/into-missing":   "other/x",
		"live/there/below":     "disk/store/a.db/below",
	} {
		require.Equal(t, at(want), fsat.RealPath(at(path)), path)
	}
	require.Equal(t, string(filepath.Separator), fsat.RealPath(string(filepath.Separator)))

	t.Chdir(at("live"))
	require.Equal(t, filepath.FromSlash("../disk/store/lost.db"), fsat.RealPath("relative"))
	require.Equal(t, filepath.FromSlash("none/deeper"), fsat.RealPath("none/deeper"))
	require.Equal(t, at("disk/store/lost.db"), fsat.RealPath("absolute"))
}

// A chain that is too long for the system is left as it is.
func TestRealPathOfTooManyLinks(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	link := func(n int) string { return filepath.Join(top, fmt.Sprint("link", n)) }
	for n := range 300 {
		if err := os.Symlink(link(n+1), link(n)); err != nil {
			t.Skip(err)
		}
	}
	require.Equal(t, link(0), fsat.RealPath(link(0)))
	require.Equal(t, link(300), fsat.RealPath(link(290)))
}
