package restorer

import (
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/format"
)

const fuzzHeader = `{"version":2,"id":"0123456789abcdef","started_at":"2026-11-24T12:00:00+00:00","stamp":"s","backup_dir":"/b",` +
	`"db_path":"/l/db","registry_path":"","chroma_path":"/l/chroma","had_db":true,"had_registry":false,"had_chroma":true,` +
	`"db_in_place":false,"registry_in_place":false}`

// Whatever a journal holds, nothing is read from it but lines that a restore can
// have written, in the order in which it writes them.
func FuzzJournal(f *testing.F) {
	for name, lines := range map[string][]string{
		"begun":             {},
		"with a snapshot":   {"safety 20261124T115419Z", "swapping"},
		"swapped":           {"keep-old", "swapping", "begin chroma", "out chroma", "end chroma", "begin db", "end db"},
		"done":              {"swapping", "begin chroma", "out chroma", "end chroma", "begin db", "out db", "end db", "done", "cleaned db"},
		"undone":            {"swapping", "begin chroma", "undo", "cleared chroma", "undone chroma", "cleaned chroma", "cleaned db"},
		"set aside":         {"swapping", "begin chroma", "out chroma", "undo", "aside chroma", "cleared chroma"},
		"out of place":      {"done"},
		"a part too many":   {"swapping", "begin config"},
		"a hostile stamp":   {"safety ../x"},
		"of version 1":      {"swapping", "done", "undo"},
		"an empty line":     {""},
		"a carriage return": {"swapping\r"},
	} {
		text := strings.Join(append([]string{fuzzHeader}, lines...), "\n") + "\n"
		f.Add([]byte(text), true)
		f.Add([]byte(sealed(append([]string{fuzzHeader}, lines...)...)), false)
		f.Add([]byte(name), true)
	}
	for _, change := range [][2]string{
		{"/l/db", "l/db"}, {"/l/db", "/l/../db"}, {"/l/db", ""}, {`"s"`, `"\udcff"`}, {"0123456789abcdef", "../../../../../x"}, {`"version":2`, `"version":1`}, {"true", "null"},
	} {
		f.Add([]byte(strings.Replace(fuzzHeader, change[0], change[1], 1)+"\n"), true)
	}
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		text := string(data)
		if seal { // no input would ever have the right checksums by chance
			lines := strings.Split(text, "\n")
			text = sealed(lines[:len(lines)-1]...) + lines[len(lines)-1]
		}
		j := new(Journal)
		if err := j.parse([]byte(text)); err != nil {
			require.ErrorIs(t, err, ErrNotJournal)
			require.NotContains(t, err.Error(), "\n")
			return
		}
		if j.State() == StateEmpty {
			require.NotContains(t, text, "\n")
			return
		}
		// The lines that count are those that were read, in whole, and are
		// followed by a part of a line only.
		require.LessOrEqual(t, j.size, int64(len(text)))
		require.NotContains(t, text[j.size:], "\n")
		for _, path := range []string{j.Live.Database, j.Live.Registry, j.Live.Chroma} {
			require.True(t, path == "" || filepath.IsAbs(path) && path == filepath.Clean(path))
		}
		require.True(t, filepath.IsAbs(j.Live.Database) || runtime.GOOS == "windows")
		for _, part := range j.partNames() {
			require.True(t, filepath.IsLocal(j.stagingName(part)))
			for line, after := range map[string]string{"out": "begin", "end": "begin", "undone": "begin", "aside": "begin", "cleared": "begin"} {
				require.True(t, !j.reached(line, part) || j.reached(after, part), "%s without %s", line, after)
			}
			if j.reached("begin", part) {
				require.True(t, j.swapping)
			}
			if j.State() == StateDone || j.State() == StateSwapped {
				require.True(t, j.reached("end", part))
			}
			if j.reached("cleaned", part) {
				require.True(t, j.done || j.undo)
			}
		}
		require.False(t, j.done && j.undo)
		require.False(t, j.Safety() != "" && j.KeepsOld())
		require.True(t, j.Safety() == "" || format.IsStamp(j.Safety()))

		// It can be gone on with.
		again := new(Journal)
		require.NoError(t, again.parse([]byte(text[:j.size])))
		require.Equal(t, j.progress, again.progress)
		require.Equal(t, j.sum, again.sum)
	})
}

// A pointer leads to a file called like a journal, by a clean absolute path.
func FuzzPointer(f *testing.F) {
	good := `{"version":2,"journal":"/l/.atocore-restore.journal","db_path":"/l/db"}`
	for name, seed := range map[string]string{
		"whole":          good,
		"no fields":      "{}",
		"relative":       strings.Replace(good, "/l/", "l/", 1),
		"unclean":        strings.Replace(good, "/l/", "/l/../", 1),
		"another file":   strings.Replace(good, ".atocore-restore.journal", "passwd", 1),
		"version 1":      strings.Replace(good, "2", "1", 1),
		"a NUL":          strings.Replace(good, "/l/", `/l\u0000/`, 1),
		"any bytes":      strings.Replace(good, "/l/", `/\udcff\udc80/`, 1),
		"a field twice":  strings.Replace(good, `"db_path"`, `"journal":"","db_path"`, 1),
		"an unknown one": strings.Replace(good, `"db_path"`, `"x":[1],"db_path"`, 1),
	} {
		f.Add(seed, true)
		f.Add(sealed(seed), false)
		f.Add(name, true)
	}
	f.Fuzz(func(t *testing.T, text string, seal bool) {
		if seal {
			text = sealed(strings.Split(text, "\n")...)
		}
		var p pointer
		if err := p.parse(text); err != nil {
			require.ErrorIs(t, err, ErrNotJournal)
			require.NotContains(t, err.Error(), "\n")
			return
		}
		require.True(t, filepath.IsAbs(p.journal))
		require.Equal(t, filepath.Clean(p.journal), p.journal)
		require.Equal(t, JournalName, filepath.Base(p.journal))
	})
}
