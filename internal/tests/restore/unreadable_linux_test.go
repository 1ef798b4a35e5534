package restore

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// A database that the disk cannot read is replaced, as a broken one is: it is
// set aside as a whole. One that cannot be written to is not, because the disk
// may only be full. The WAL is what cannot be read here: the faults of strace are
// those of a path, and the new database will have the path of the old one.
func TestRestoreOverAnUnreadableDatabase(t *testing.T) {
	tracer := needStrace(t)
	for _, tt := range []struct {
		call, file, inject string
		want               string
	}{
		{"pread64", "-wal", "error=EIO", "new"},
		{"pwrite64", "", "error=ENOSPC", "old"},
		{"pwrite64", "", "error=EDQUOT", "old"},
	} {
		t.Run(tt.call+" "+tt.inject, func(t *testing.T) {
			s, stamp := newStore(t)
			tracer := tracer
			tracer.path = s.DatabasePath + tt.file
			text, hit, err := tracer.run(t, tt.call, tt.inject, s.Dir, stamp)
			require.True(t, hit)
			require.Equal(t, tt.want, generationOf(t, s.Options), text)
			aside, globErr := filepath.Glob(filepath.Join(s.DatabasePath + ".set-aside-*"))
			require.NoError(t, globErr)
			if tt.want == "old" {
				require.Error(t, err)
				require.Empty(t, aside)
				return
			}
			require.NoError(t, err, text)
			require.Len(t, aside, 1)
			info, err := os.Stat(filepath.Join(aside[0], filepath.Base(s.DatabasePath)))
			require.NoError(t, err)
			require.Positive(t, info.Size())
		})
	}
}
