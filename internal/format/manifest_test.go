package format_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/format"
)

// eachEntry reads a manifest to its end or its first error.
func eachEntry(manifest []byte, each func(format.Entry)) error {
	r := format.NewReader(bytes.NewReader(manifest))
	for {
		switch entry, err := r.Next(); err {
		case nil:
			each(entry)
		case io.EOF:
			return nil
		default:
			return err
		}
	}
}

func TestLine(t *testing.T) {
	const empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
	for name, want := range map[string]string{
		"db/atocore.db": empty + "  db/atocore.db\n",
		" a  b ":        empty + "   a  b \n",
		"*a":            empty + "  *a\n",
		"\xff\x00":      empty + "  \xff\x00\n",
		"a\nb":          `\` + empty + `  a\nb` + "\n",
		"a\rb":          `\` + empty + `  a\rb` + "\n",
		`a\b`:           `\` + empty + `  a\\b` + "\n",
		`\n` + "\n\r\\": `\` + empty + `  \\n\n\r\\` + "\n",
	} {
		require.Equal(t, want, format.Line(sha256.Sum256(nil), name))
	}
}

// A line may have MaxLine bytes and not one more.
func TestReaderBoundsLines(t *testing.T) {
	longest := strings.Repeat("a", format.MaxLine-len(format.Line([sha256.Size]byte{}, "")))
	require.NoError(t, eachEntry([]byte(format.Line([sha256.Size]byte{}, longest)), func(e format.Entry) {
		require.Equal(t, longest, e.Path)
	}))
	require.ErrorIs(t, eachEntry([]byte(format.Line([sha256.Size]byte{}, longest+"a")), nil), format.ErrMalformed)
}

func TestReaderReturnsErrorOfItsReader(t *testing.T) {
	broken := errors.New("broken disk")
	_, err := format.NewReader(iotest.ErrReader(broken)).Next()
	require.ErrorIs(t, err, broken)
	require.NotErrorIs(t, err, format.ErrMalformed)
}

// A memoryFile is an io.WriterAt that fails after a number of bytes.
type memoryFile struct {
	data  []byte
	limit int
}

func (f *memoryFile) WriteAt(p []byte, off int64) (int, error) {
	if int(off) > len(f.data) {
		f.data = append(f.data, make([]byte, int(off)-len(f.data))...)
	}
	n := min(len(p), max(0, f.limit-int(off)))
	f.data = append(f.data[:off], p[:n]...)
	if n < len(p) {
		return n, io.ErrShortWrite
	}
	return n, nil
}

// What a Writer writes behind the room that was left, a Reader reads.
func TestWriter(t *testing.T) {
	first := format.Line([sha256.Size]byte{}, "a")
	file := &memoryFile{limit: 1 << 30}
	w := format.NewWriter(file, int64(len(first)))
	const lines = 5000 // several pieces
	for i := range lines {
		require.NoError(t, w.Add(format.Line(sha256.Sum256([]byte{byte(i)}), fmt.Sprintf("b/%08d", i))))
	}
	require.NoError(t, w.Flush())
	require.NoError(t, w.Flush(), "nothing is left to write")
	copy(file.data, first)
	n := 0
	require.NoError(t, eachEntry(file.data, func(e format.Entry) {
		if n > 0 {
			require.Equal(t, fmt.Sprintf("b/%08d", n-1), e.Path)
			require.Equal(t, sha256.Sum256([]byte{byte(n - 1)}), e.Sum)
		}
		n++
	}))
	require.Equal(t, lines+1, n)
}

func TestWriterReturnsErrors(t *testing.T) {
	line := format.Line([sha256.Size]byte{}, "a")
	w := format.NewWriter(&memoryFile{limit: len(line) - 1}, 0)
	require.NoError(t, w.Add(line), "it is written later")
	require.ErrorIs(t, w.Flush(), io.ErrShortWrite)
	w = format.NewWriter(&memoryFile{}, 0)
	var err error
	for i := 0; i < 5000 && err == nil; i++ {
		err = w.Add(line)
	}
	require.ErrorIs(t, err, io.ErrShortWrite)
}

// compareAll reports how the manifest and the files differ. Each file stands
// for its own content; a final slash makes it a directory, "!" before it an
// irregular file.
func compareAll(t *testing.T, manifest string, files ...string) (reports []string) {
	t.Helper()
	c := format.NewCursor(format.NewReader(strings.NewReader(manifest)), func(kind format.Mismatch, path, detail string) {
		reports = append(reports, fmt.Sprint(kind, " ", path, detail))
	})
	for _, file := range files {
		path, irregular := strings.CutPrefix(file, "!")
		require.NoError(t, c.Compare(t.Context(), path, strings.HasSuffix(path, "/"), irregular, sha256.Sum256([]byte(path))))
	}
	require.NoError(t, c.Drain(t.Context()))
	return reports
}

func TestCursor(t *testing.T) {
	line := func(path string) string { return format.Line(sha256.Sum256([]byte(path)), path) }
	other := func(path string) string { return format.Line(sha256.Sum256(nil), path) }
	at := func(kind format.Mismatch, rest string) string { return fmt.Sprint(kind, " ", rest) }
	tests := []struct {
		name     string
		manifest string
		files    []string
		want     []string
	}{
		{"equal", line("a") + line("b/c"), []string{"a", "b/c"}, nil},
		{"missing at the beginning, between and at the end", line("a") + line("b") + line("c") + line("d") + line("e"), []string{"b", "d"},
			[]string{at(format.Missing, "a"), at(format.Missing, "c"), at(format.Missing, "e")}},
		{"no files", line("a") + line("b"), nil, []string{at(format.Missing, "a"), at(format.Missing, "b")}},
		{"unknown at the beginning, between and at the end", line("b") + line("d"), []string{"a", "b", "c", "d", "e"},
			[]string{at(format.Unknown, "a"), at(format.Unknown, "c"), at(format.Unknown, "e")}},
		{"changed", other("a") + line("b"), []string{"a", "b"}, []string{at(format.Changed, "a")}},
		{"irregular files have no sum", other("a") + line("c"), []string{"!a", "!b", "c"}, []string{at(format.Unknown, "b")}},
		{"empty directories", line("d"), []string{"chroma/x/", "config/", "d", "db/", "x/"},
			[]string{at(format.Unknown, "db/"), at(format.Unknown, "x/")}},
		{"empty", "", []string{"a"}, []string{at(format.Malformed, "it is empty")}},
		{"malformed, after which nothing is compared", line("a") + line("b") + "x\n" + line("c"), []string{"a", "aa", "c", "d", "e/"},
			[]string{at(format.Unknown, "aa"), at(format.Missing, "b"),
				at(format.Malformed, "line 3: not a digest, two spaces and a name"), at(format.Unknown, "e/")}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, compareAll(t, tt.manifest, tt.files...))
		})
	}
}

// A Cursor reads nothing before its first use, and returns what reading
// returns.
func TestCursorReturnsReadErrors(t *testing.T) {
	broken := errors.New("broken disk")
	c := format.NewCursor(format.NewReader(iotest.ErrReader(broken)), nil)
	require.ErrorIs(t, c.Compare(t.Context(), "a", false, false, [sha256.Size]byte{}), broken)
	c = format.NewCursor(format.NewReader(iotest.ErrReader(broken)), nil)
	require.ErrorIs(t, c.Drain(t.Context()), broken)
}

// A manifest may name any number of files that do not exist; cancelling must
// not wait for its end.
func TestCursorHeedsItsContext(t *testing.T) {
	var manifest strings.Builder
	for i := range 1000 {
		manifest.WriteString(format.Line([sha256.Size]byte{}, fmt.Sprintf("missing/%08d", i)))
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	reports := 0
	cursor := func(cancelAt int) *format.Cursor {
		reports = 0
		return format.NewCursor(format.NewReader(strings.NewReader(manifest.String())), func(kind format.Mismatch, _, _ string) {
			require.Equal(t, format.Missing, kind)
			if reports++; reports == cancelAt {
				cancel()
			}
		})
	}
	require.NoError(t, cursor(0).Drain(ctx))
	require.Equal(t, 1000, reports)
	require.ErrorIs(t, cursor(10).Drain(ctx), context.Canceled)
	require.Equal(t, 10, reports)
	require.ErrorIs(t, cursor(0).Drain(ctx), context.Canceled)
	require.Zero(t, reports)
	require.ErrorIs(t, cursor(0).Compare(ctx, "z", false, false, [sha256.Size]byte{}), context.Canceled)
	require.Zero(t, reports)
}
