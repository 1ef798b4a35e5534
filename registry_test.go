package backup_test

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// The copy has the registry's bytes, mode and time.
func TestRegistryCopy(t *testing.T) {
	s := backuptest.NewStore(t)
	s.IncludeChroma = false
	mtime := time.Unix(1700000000, 987654321)
	for _, tt := range []struct{ name, content string }{
		{"CRLF", "{\r\n\t\"a\": 1\r\n}\r\n"},
		{"no newline at the end", "{}"},
		{"blanks around", " \n\t[1]\n\n\n"},
		{"duplicate names", `{"a": 1, "a": 2}`},
		{"a scalar", "null"},
		{"escapes", `{"\u00e9\ud83d\ude00": "\/"}`},
		{"raw UTF-8", `{"é😀": "\u2028"}`},
		{"numbers beyond float64", `[1e400, 123456789012345678901234567890]`},
		{"large", `["` + strings.Repeat("x", 3<<20) + `"]`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(s.RegistryPath, []byte(tt.content), 0o600))
			require.NoError(t, os.Chmod(s.RegistryPath, 0o604))
			require.NoError(t, os.Chtimes(s.RegistryPath, mtime, mtime))
			meta := s.Create()
			got, err := os.ReadFile(meta.RegistrySnapshotPath)
			require.NoError(t, err)
			require.True(t, string(got) == tt.content, "the bytes differ")
			info, err := os.Stat(meta.RegistrySnapshotPath)
			require.NoError(t, err)
			require.Equal(t, mtime.UnixNano(), info.ModTime().UnixNano())
			if runtime.GOOS != "windows" {
				require.Equal(t, "-rw----r--", info.Mode().String())
			}
		})
	}
}

// A registry that cannot be copied is refused.
func TestRegistryRefused(t *testing.T) {
	for _, tt := range []struct {
		name    string
		change  func(t *testing.T, path string)
		want    error
		mention string
	}{
		{"too large", func(t *testing.T, path string) { require.NoError(t, os.Truncate(path, 17<<20)) }, backup.ErrSourceInvalid, "too many"},
		{"a directory", func(t *testing.T, path string) {
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.Mkdir(path, 0o755))
		}, nil, "not a regular file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := backuptest.NewStore(t)
			tt.change(t, s.RegistryPath)
			err := s.CreateFails()
			if tt.want != nil {
				require.ErrorIs(t, err, tt.want)
			}
			require.ErrorContains(t, err, tt.mention)
			require.ErrorContains(t, err, s.RegistryPath)
		})
	}
}

// A registry that is not JSON is copied as it is: it must not cost the database
// its backup. The snapshot is intact and has a finding, and create logs it.
func TestRegistryNotJSON(t *testing.T) {
	for name, content := range map[string]string{
		"not JSON": "{not json", "empty": "", "two values": "{}{}", "byte order mark": "\ufeff{}",
		"invalid UTF-8": "\"\xff\"", "UTF-16": "\xff\xfe{\x00}\x00", "cut": `{"a": `,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits a while for the registry to become valid
			s := backuptest.NewBareStore(t)
			backuptest.Write(t, s.RegistryPath, content)
			log := s.Record()
			meta := s.Create()
			data, err := os.ReadFile(meta.RegistrySnapshotPath)
			require.NoError(t, err)
			require.Equal(t, content, string(data))
			require.Contains(t, strings.Join(log.Lines(), "\n"), "registry_is_not_json path="+s.RegistryPath)

			report := s.Snapshot(meta.Stamp).RequireProblems("registry_invalid_json: " + backuptest.RegistryFile)
			require.True(t, report.Intact)
			require.True(t, report.Problems[0].Finding)
			require.True(t, report.DBOK)
			require.False(t, *report.RegistryOK)
			require.True(t, *report.ChromaOK)
		})
	}
}

// A registry that is replaced or written to all the time is copied as one of its
// versions, or the backup fails.
func TestRegistryRewrittenWhileRead(t *testing.T) {
	for _, tt := range []struct {
		name  string
		write func(path string, data []byte) error
	}{
		{"replaced", func(path string, data []byte) error {
			if err := os.WriteFile(path+".new", data, 0o600); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		}},
		{"written into", func(path string, data []byte) error { return os.WriteFile(path, data, 0o600) }},
		{"written into in pieces", func(path string, data []byte) error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			for len(data) > 0 {
				n := min(len(data), 64)
				if _, err := f.Write(data[:n]); err != nil {
					return err
				}
				data = data[n:]
			}
			return nil
		}},
		{"removed and created again", func(path string, data []byte) error {
			if err := os.Remove(path); err != nil {
				return err
			}
			return os.WriteFile(path, data, 0o600)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := backuptest.NewStore(t)
			s.IncludeChroma = false
			version := func(n int) []byte {
				return fmt.Appendf(nil, `["%s"]`, strings.Repeat(string(rune('a'+n%26)), 100+n*37%2000))
			}
			require.NoError(t, os.WriteFile(s.RegistryPath, version(0), 0o600))
			stop, ended := make(chan struct{}), make(chan error, 1)
			go func() {
				ended <- rewriteUntil(stop, func(n int) error { return tt.write(s.RegistryPath, version(n)) })
			}()
			copied := 0
			for range 6 {
				meta, err := backup.CreateRuntimeBackup(t.Context(), s.Options)
				if err != nil {
					require.ErrorIs(t, err, backup.ErrSourceChanged)
					continue
				}
				if meta.RegistrySnapshotPath == "" {
					continue // it did not exist at that moment
				}
				copied++
				data, err := os.ReadFile(meta.RegistrySnapshotPath)
				require.NoError(t, err)
				// A writer that did not go on for a fifth of a second, as on a busy machine,
				// is taken for one that died: then the beginning of a version is what there is.
				require.Regexp(t, `^(\[("(a*|b*|c*|d*|e*|f*|g*|h*|i*|j*|k*|l*|m*|n*|o*|p*|q*|r*|s*|t*|u*|v*|w*|x*|y*|z*)("\]?)?)?)?$`, string(data), "two versions in one copy")
			}
			close(stop)
			require.NoError(t, <-ended)
			t.Logf("%d of 6 copied", copied)
		})
	}
}

// rewriteUntil calls write with 1, 2, … until stop is closed.
func rewriteUntil(stop chan struct{}, write func(n int) error) error {
	for n := 1; ; n++ {
		if err := write(n); err != nil {
			return err
		}
		pause := time.Duration(0)
		if n%300 == 299 { // so that some calls find the file unchanged
			pause = 70 * time.Millisecond
		}
		select {
		case <-stop:
			return nil
		case <-time.After(pause):
		}
	}
}

// A registry that is missing when the others are captured is looked for once more
// at the end.
func TestRegistryThatAppearsLate(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	aside := s.RegistryPath + ".old"
	require.NoError(t, os.Rename(s.RegistryPath, aside))
	s.OnProgress = func(p backup.Progress) {
		if p.Phase == backup.PhaseChroma {
			_ = os.Rename(aside, s.RegistryPath) // again at each report, of which only the first finds it
		}
	}
	m := s.Create()
	require.FileExists(t, m.RegistrySnapshotPath)
	s.OnProgress = nil
	s.RequireValid()
}
