package offsite

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/offsite"
)

// isData reports whether a request is about a file with data of restic's, a pack.
func isData(r *http.Request) bool { return strings.Contains(r.URL.Path, "/data/") }

// largestPack returns the file in which the largest pack is stored.
func (p *place) largestPack() (largest string) {
	p.t.Helper()
	packs, err := filepath.Glob(filepath.Join(p.dir, "data", "*", "*"))
	require.NoError(p.t, err)
	if p.server != nil {
		packs = nil
		objects, err := p.server.Objects(p.bucket)
		require.NoError(p.t, err)
		for key, path := range objects {
			if strings.HasPrefix(key, "data/") {
				packs = append(packs, path)
			}
		}
	}
	size := int64(0)
	for _, pack := range packs {
		if n := backuptest.FileSize(p.t, pack); n > size {
			largest, size = pack, n
		}
	}
	require.NotEmpty(p.t, largest)
	return largest
}

// TestDamagedStore flips a bit of an object, or loses one, in the directory of the
// daemons and in a directory repository. Verify finds it, and a pull fails and
// leaves nothing.
func TestDamagedStore(t *testing.T) {
	t.Parallel()
	flip := func(t *testing.T, pack string) {
		info, err := os.Stat(pack)
		require.NoError(t, err)
		require.NoError(t, os.Chmod(pack, 0o600)) // restic's files are read-only
		f, err := os.OpenFile(pack, os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		var b [1]byte
		_, err = f.ReadAt(b[:], info.Size()/2)
		require.NoError(t, err)
		b[0] ^= 0x10
		_, err = f.WriteAt(b[:], info.Size()/2)
		require.NoError(t, err)
	}
	lose := func(t *testing.T, pack string) { require.NoError(t, os.Remove(pack)) }
	for _, c := range []struct {
		name   string
		make   func(t *testing.T) *place
		damage func(t *testing.T, pack string)
		// What has to be read to find it.
		readData string
	}{
		{"flipped bit in Swift", newBucket, flip, "100%"},
		{"lost object in Swift", newBucket, lose, "0"},
		{"flipped bit in a directory", newDirectory, flip, "100%"},
		{"lost file in a directory", newDirectory, lose, "0"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := c.make(t)
			s := newStore(t, 4)
			stamp := s.Create().Stamp
			p.push(s, stamp)
			report, err := p.Verify(p.context(), offsite.VerifyOptions{ReadData: "100%"})
			require.NoError(t, err)
			require.True(t, report.OK)
			require.Empty(t, report.Problems)
			require.Equal(t, 1, report.Copies)
			drill := offsite.VerifyOptions{Stamp: stamp, Options: s.elsewhere().Options}
			report, err = p.Verify(p.context(), drill)
			require.NoError(t, err)
			require.True(t, report.OK)
			require.True(t, report.Validation.Valid)

			c.damage(t, p.largestPack())
			report, err = p.Verify(p.context(), offsite.VerifyOptions{ReadData: c.readData})
			require.ErrorIs(t, err, offsite.ErrDamaged)
			require.False(t, report.OK)
			require.NotEmpty(t, report.Problems)

			// restic asks again and again for what is not there.
			p.Patience = 5 * time.Second
			require.NotErrorIs(t, p.pullFails(p.context(), s, stamp), offsite.ErrNoCopy)
			_, err = p.Verify(p.context(), drill)
			require.Error(t, err)
		})
	}
}
