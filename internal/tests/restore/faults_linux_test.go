package restore

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A system call fails, once or from then on. A restore that succeeds has put the
// new store in place. One that fails has left the old one in place, or reports
// that it is unfinished; then the next call undoes or finishes it.
func TestRestoreWithFailingCalls(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := newTemplate(t)
	faults, unfinished := 0, 0
	calls := []string{"renameat2", "linkat", "fsync", "pwrite64"}
	if *killStride == 1 {
		calls = append(calls, "renameat", "unlinkat", "mkdirat", "fchmod", "utimensat", "openat")
	}
	for _, call := range calls {
		stride := *killStride
		if call == "renameat2" || call == "linkat" || call == "unlinkat" {
			stride = (stride + 3) / 4
		}
		for i := 0; ; i++ {
			n := 1 + i*stride
			how := []string{"error=EIO:when=%d", "error=ENOSPC:when=%d+", "error=EACCES:when=%d"}[i%3]
			name := fmt.Sprintf("%s "+how, call, n)
			s := fresh(t)
			text, hit, err := tracer.run(t, call, fmt.Sprintf(how, n), s.Dir, stamp)
			if !hit {
				require.NoError(t, err, "%s: %s", name, text)
				break
			}
			faults++
			require.NotContains(t, text, "panic", name)
			_, listErr := backup.ListRuntimeBackups(context.Background(), s.Options)
			if strings.Contains(text, backup.ErrRestoreUnfinished.Error()) {
				unfinished++
			} else {
				require.NoError(t, listErr, "%s: %s", name, text)
				want := "old"
				if err == nil {
					want = "new"
				}
				require.Equal(t, want, generationOf(t, s.Options), "%s: %s", name, text)
				s.RequireNoRemains()
			}
			recovered(s)
			s.Restore(stamp)
			require.Equal(t, "new", generationOf(t, s.Options), name)
			s.RequireNoRemains()
			require.NoError(t, os.RemoveAll(s.Dir))
		}
	}
	t.Logf("%d faults, %d of them left the restore unfinished", faults, unfinished)
}

// If the old store cannot be set aside after the swap, the new one is in place and
// the error says that the restore is unfinished. The next restore finishes it.
func TestRestoreThatCannotSetAside(t *testing.T) {
	s := backuptest.NewStore(t)
	m := s.Create()
	s.Disturb()
	require.NoError(t, os.WriteFile(s.DatabasePath, []byte(strings.Repeat("rubbish ", 1000)), 0o600))
	var inTheWay, id string
	opts := s.Options
	opts.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseVerify && inTheWay == "" {
			id = strings.TrimSuffix(strings.TrimPrefix(filepath.Base(stagingOf(t, s, "db")), ".atocore-restore-"), "-db")
			inTheWay = s.DatabasePath + ".set-aside-" + id
			require.NoError(t, os.WriteFile(inTheWay, nil, 0o600))
		}
	}
	_, err := backup.RestoreRuntimeBackup(context.Background(), opts, m.Stamp)
	require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
	backuptest.RequireSound(t, s.DatabasePath)
	require.NoError(t, os.Remove(inTheWay))
	r := s.Restore(m.Stamp)
	require.Equal(t, "finished", r.Recovered)
	require.Len(t, r.SetAside, 3, "what the first call and the second one set aside")
	require.FileExists(t, filepath.Join(s.DatabasePath+".set-aside-"+id, filepath.Base(s.DatabasePath)))
}
