//go:build linux || darwin

package backup_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/fsat"
)

// A path can be longer than a line of the manifest may be. Such a file is
// refused: a snapshot with it would never validate.
func TestManifestHasALineForEveryPath(t *testing.T) {
	const longest = 64<<10 - len("\n") - 64 - len("  ") // what a line has room for
	for name, size := range map[string]int{"just short enough": longest, "too long": longest + 1} {
		t.Run(name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			dir, err := fsat.OpenDir(s.ChromaPath)
			require.NoError(t, err)
			left := size - len("chroma/")
			for left > 255 {
				name := strings.Repeat("d", min(255, left-2))
				left -= len(name) + 1
				require.NoError(t, dir.Mkdir(name, 0o755))
				next, err := dir.OpenDir(name)
				require.NoError(t, err)
				require.NoError(t, dir.Close())
				dir = next
			}
			f, err := dir.Create(strings.Repeat("f", left), 0o644)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			require.NoError(t, dir.Close())

			_, err = backup.CreateRuntimeBackup(t.Context(), s.Options)
			if size > longest {
				require.ErrorIs(t, err, backup.ErrUnsupportedFile)
				require.Less(t, len(err.Error()), 1000)
				return
			}
			require.NoError(t, err) // and that it validates is checked at the end
		})
	}
}
