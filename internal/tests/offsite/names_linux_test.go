package offsite

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/offsite"
)

// TestAwkwardNames: names that are hard to write down, in small and in large files
// and in directories, and awkward modes and times, come back as they were.
func TestAwkwardNames(t *testing.T) {
	t.Parallel()
	p := newDirectory(t)
	s := newStore(t, 1)
	for i, name := range backuptest.AwkwardNames(t) {
		s.Must(os.Mkdir(s.InChroma(name), 0o700), os.WriteFile(filepath.Join(s.InChroma(name), name), s.bytes(i), 0o600))
		if i%3 == 0 {
			s.Must(os.WriteFile(filepath.Join(s.InChroma(name), "L"+name[:min(len(name), 250)]), s.bytes(1<<20+i), 0o600))
		}
	}
	s.Must(os.Mkdir(s.InChroma("empty"), 0o777), os.Chmod(s.InChroma("empty"), 0o1777), os.WriteFile(s.InChroma("nothing"), nil, 0o400))
	stamps := []string{s.Create().Stamp, s.next()}
	for _, stamp := range stamps {
		p.push(s, stamp)
	}
	for _, stamp := range stamps {
		p.requirePulled(s, stamp)
		report, err := p.Verify(p.context(), offsite.VerifyOptions{Stamp: stamp, Options: s.elsewhere().Options})
		require.NoError(t, err)
		require.True(t, report.OK)
	}
	report, err := p.Verify(p.context(), offsite.VerifyOptions{ReadData: "100%"})
	require.NoError(t, err)
	require.Empty(t, report.Problems)
	require.Equal(t, 2, report.Copies)
}
