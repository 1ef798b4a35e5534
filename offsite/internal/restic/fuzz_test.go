package restic

import (
	"encoding/json"
	"strings"
	"testing"
	"unicode"

	"github.com/stretchr/testify/require"
)

// Whatever restic prints, what gets into an error is short and printable, and no
// secret is in it.
func FuzzMessages(f *testing.F) {
	for _, seed := range []string{
		`{"message_type":"exit_error","code":10,"message":"Fatal: x\nIs there a repository at the following location?\n/a"}`,
		`{"message_type":"error","error":{"Op":"open","Path":"b","Err":13},"during":"scan","item":"/t/b"}`,
		"Fatal: There were 2 errors\nignoring error for /a: b", "panic: x\n\ngoroutine", "\x1b[2J\xff\u202e", `{"message_type":1}`,
	} {
		f.Add([]byte(seed), "geheim")
	}
	f.Fuzz(func(t *testing.T, text []byte, secret string) {
		in := &tail{}
		half := len(text) / 2
		for _, part := range [][]byte{text[:half], text[half:]} {
			n, err := in.Write(part)
			require.NoError(t, err)
			require.Equal(t, len(part), n)
		}
		lines := plainLines(in.lines())
		_ = classify(Version{}, "check", 1, strings.Join(lines, "\n"))
		r := newRedactor([]string{"RESTIC_PASSWORD=" + secret}, nil, "")
		for i := range lines {
			lines[i] = r.clean(lines[i])
			if len(secret) >= 4 && !strings.Contains("***", secret) && strings.Trim(secret, "*") == secret {
				require.NotContains(t, lines[i], secret)
			}
		}
		for _, shown := range append(problemsIn(lines), shorten(message(lines))) {
			require.LessOrEqual(t, len(shown), 10*(maxMessage+4))
			for _, c := range shown {
				require.True(t, unicode.IsGraphic(c), "%q", c)
			}
		}
	})
}

func FuzzOutput(f *testing.F) {
	f.Add([]byte(`{"message_type":"status","total_files":3}` + "\n" + `{"message_type":"summary","snapshot_id":"ab"}` + "\n"))
	f.Add([]byte(`[{"keep":[{"id":"a"}],"remove":null,"reasons":[{"snapshot":{"id":"a"},"matches":["x"]}]}]`))
	f.Add([]byte("[0:05] 1 / 2\n[0:06] 1 / 2\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		whole, r := text, newReporter(nil)
		for len(text) > 0 && r.failed() == nil {
			n := min(len(text), 7)
			_, _ = r.Write(text[:n])
			text = text[n:]
		}
		if plan, err := parsePlan(whole); err == nil {
			for _, s := range plan.Remove {
				require.Regexp(t, fullID, s.ID)
			}
		}
	})
}

func TestVersions(t *testing.T) {
	for line, want := range map[string]Version{
		"restic 0.14.0 compiled with go1.19.8 on linux/amd64":                         {Major: 0, Minor: 14},
		"restic 0.19.1 compiled with go1.26.4 on linux/amd64":                         {Major: 0, Minor: 19, Patch: 1},
		"restic 0.18.1-dev (compiled manually) compiled with go1.24 on linux/amd64":   {Major: 0, Minor: 18, Patch: 1},
		"restic v0.17.3-12-gabcdef compiled with go1.23":                              {Major: 0, Minor: 17, Patch: 3},
		"restic 1.0 compiled with go1.30 on windows/amd64":                            {Major: 1},
		"restic (compiled manually, version unknown) compiled with go1.24 on x/amd64": {},
	} {
		t.Run(line, func(t *testing.T) {
			got, err := parseVersion(line)
			require.NoError(t, err)
			want.Text = line
			require.Equal(t, want, got)
			require.Equal(t, want.Minor >= 17 || want.Major > 0 || want.Minor == 0, got.hasExitCodes())
		})
	}
	for _, line := range []string{"", "rustic 0.9.0", "restic", "resticprofile 0.29"} {
		_, err := parseVersion(line)
		require.ErrorIs(t, err, ErrNoProgram, line)
	}
	_, err := parseVersion("restic 0.9.6 compiled with go1.13")
	require.ErrorIs(t, err, ErrTooOld)
}

// The lines in which elapsed time alone changes are no progress.
func TestTextProgress(t *testing.T) {
	lines := &textLines{}
	write := func(text string) int64 {
		_, err := lines.Write([]byte(text))
		require.NoError(t, err)
		return lines.progress()
	}
	require.EqualValues(t, 1, write("[0:05] 1 / 2 packs\n"))
	require.EqualValues(t, 1, write("[0:06] 1 / 2 packs\n[1:00:07] 1 / 2"))
	require.EqualValues(t, 2, write(" snapshots\n"))
}

// A status that says again what is known is no progress, whatever the time is.
func TestStatusProgress(t *testing.T) {
	r := newReporter(nil)
	for i, want := range []int64{1, 1, 2} {
		line, err := json.Marshal(map[string]any{"message_type": "status", "seconds_elapsed": i, "bytes_done": 10 + i/2})
		require.NoError(t, err)
		_, err = r.Write(append(line, '\n'))
		require.NoError(t, err)
		require.Equal(t, want, r.progress())
	}
}
