package restic_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/offsite/internal/restic"
)

// What restic runs, as ssh, has no terminal to read a password from, and an
// inherited descriptor stays open as long as it runs.
func TestChild(t *testing.T) {
	withEach(t, func(t *testing.T, p *restic.Program) {
		dir := t.TempDir()
		script, seen := filepath.Join(dir, "password"), filepath.Join(dir, "seen")
		require.NoError(t, os.WriteFile(script, []byte(`#!/bin/sh
cut -d' ' -f6 /proc/self/stat >`+seen+`
readlink /proc/self/fd/3 /proc/self/fd/0 >>`+seen+`
echo "$TZ" >>`+seen+`
echo secret
`), 0o755))
		lock, err := os.Create(filepath.Join(dir, "lock"))
		require.NoError(t, err)
		defer lock.Close()
		p.Env = []string{"RESTIC_PASSWORD=", "RESTIC_PASSWORD_FILE=", "RESTIC_PASSWORD_COMMAND=" + script}
		p.Inherit = []*os.File{lock}
		require.NoError(t, p.Init(t.Context()))

		text, err := os.ReadFile(seen)
		require.NoError(t, err)
		lines := strings.Split(string(text), "\n")
		stat, err := os.ReadFile("/proc/self/stat")
		require.NoError(t, err)
		ours := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))[3]
		require.NotEqual(t, ours, lines[0], "the session")
		_, err = strconv.Atoi(lines[0])
		require.NoError(t, err)
		require.Equal(t, lock.Name(), lines[1])
		require.Equal(t, "UTC", lines[3])
	})
}
