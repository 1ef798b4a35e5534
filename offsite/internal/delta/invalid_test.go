package delta_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math"
	"slices"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/offsite/internal/delta"
)

// The parts of a delta, as librsync's doc/format.md has them.

func made(parts ...[]byte) []byte {
	return slices.Concat(append([][]byte{{0x72, 0x73, 0x02, 0x36}}, parts...)...)
}

func number(width int, x uint64) []byte {
	return binary.BigEndian.AppendUint64(nil, x)[8-width:]
}

// literal is a LITERAL command whose length is width bytes wide, or that of a
// length in the command if width is 0.
func literal(width int, data string) []byte {
	return literalOf(width, uint64(len(data)), data)
}

func literalOf(width int, length uint64, data string) []byte {
	if width == 0 {
		return append([]byte{byte(length)}, data...)
	}
	op := map[int]byte{1: 0x41, 2: 0x42, 4: 0x43, 8: 0x44}[width]
	return slices.Concat([]byte{op}, number(width, length), []byte(data))
}

// copyOf is a COPY command whose parameters have these widths.
func copyOf(offsetWidth, lengthWidth int, offset, length uint64) []byte {
	index := map[int]byte{1: 0, 2: 1, 4: 2, 8: 3}
	op := 0x45 + 4*index[offsetWidth] + index[lengthWidth]
	return slices.Concat([]byte{op}, number(offsetWidth, offset), number(lengthWidth, length))
}

var end = []byte{0}

// TestEveryCommand: each form of each command is read.
func TestEveryCommand(t *testing.T) {
	old := random(1, 70_000)
	var parts [][]byte
	var want []byte
	add := func(part, content []byte) {
		parts, want = append(parts, part), append(want, content...)
	}
	for n := 1; n <= 64; n++ {
		data := random(uint64(n), n)
		add(literal(0, string(data)), data)
	}
	texts := map[int]int{1: 255, 2: 65_535, 4: 300_000, 8: 5 << 20} // more than a buffer
	offsets := map[int]int{1: 255, 2: 65_535, 4: 69_000, 8: 68_000}
	lengths := map[int]int{1: 255, 2: 1000, 4: 999, 8: 998}
	for a := range texts {
		data := random(uint64(a), texts[a])
		add(literal(a, string(data)), data)
		for b := range texts {
			from, n := offsets[a], lengths[b]
			add(copyOf(a, b, uint64(from), uint64(n)), old[from:from+n])
		}
	}
	add(copyOf(4, 4, 0, 70_000), old)
	v := apply(t, base(old), made(append(parts, end)...), len(want))
	requireContent(t, want, v)

	var merged bytes.Buffer
	_, err := v.WriteDelta(&merged)
	require.NoError(t, err)
	requireContent(t, want, apply(t, base(old), merged.Bytes(), len(want)))
}

// TestInvalid: a delta that is damaged, or belongs to another version, is
// refused before any of its data are used.
func TestInvalid(t *testing.T) {
	good := made(literal(1, "abc"), copyOf(1, 1, 10, 20), literal(0, "z"), copyOf(1, 1, 0, 8), end)
	for name, test := range map[string]struct {
		delta []byte
		size  int64 // of the result; 0 means 32
		says  string
	}{
		"empty":                       {nil, 0, "does not begin"},
		"short magic number":          {good[:3], 0, "does not begin"},
		"a signature":                 {append([]byte{0x72, 0x73, 0x01, 0x36}, good[4:]...), 0, "does not begin"},
		"nothing but a magic number":  {made(), 0, "without an end"},
		"no end":                      {good[:len(good)-1], 0, "without an end"},
		"two ends":                    {slices.Concat(good, end), 0, "goes on for 1 bytes"},
		"data after the end":          {slices.Concat(good, good), 0, "goes on for 18 bytes"},
		"unknown command":             {made([]byte{0x55}, end), 0, "unknown command 0x55"},
		"last unknown command":        {made([]byte{0xff}, end), 0, "unknown command 0xff"},
		"cut in a width":              {made(copyOf(8, 8, 0, 1)[:12]), 0, "within the command at byte 4"},
		"cut in the width of a text":  {made(literalOf(4, 100, "")[:3]), 0, "within the command at byte 4"},
		"cut in a text":               {made(literalOf(1, 32, "abc")), 0, "within the 32 bytes"},
		"short text in the command":   {made(literalOf(0, 32, "abc")), 0, "within the 32 bytes"},
		"end within a text":           {made(literalOf(1, 33, "abcdefghijklmnopqrstuvwxyz012345"), end), 33, "without an end"},
		"no text":                     {made(literalOf(1, 0, ""), end), 0, "length 0"},
		"empty copy":                  {made(copyOf(1, 1, 0, 0), end), 0, "length 0"},
		"text of 2^64-1":              {made(literalOf(8, math.MaxUint64, "x"), end), 0, "length 18446744073709551615"},
		"text of 2^63":                {made(literalOf(8, 1<<63, "x"), end), 0, "length 9223372036854775808"},
		"text of 2^48":                {made(literalOf(8, 1<<48, "x"), end), 0, "within the 281474976710656 bytes"},
		"copy of 2^64-1":              {made(copyOf(1, 8, 0, math.MaxUint64), end), 0, "length 18446744073709551615"},
		"copy that wraps around":      {made(copyOf(8, 1, math.MaxUint64-15, 32), end), 0, "offset 18446744073709551600"},
		"copy at 2^63":                {made(copyOf(8, 1, 1<<63, 32), end), 0, "offset 9223372036854775808"},
		"copy behind the end":         {made(copyOf(2, 1, 5001, 32), end), 0, "copies 32 bytes at 5001 of a version that has 5000"},
		"copy at the end":             {made(copyOf(2, 1, 5000, 32), end), 0, "copies 32 bytes at 5000"},
		"copy over the end":           {made(copyOf(2, 1, 4969, 32), end), 0, "copies 32 bytes at 4969"},
		"copy of more than there is":  {made(copyOf(1, 2, 0, 5001), end), 5001, "copies 5001 bytes at 0"},
		"result too short":            {made(copyOf(1, 1, 0, 31), end), 0, "31 bytes instead of 32"},
		"result too long":             {made(copyOf(1, 1, 0, 33), end), 0, "more than 32 bytes"},
		"result too long by a text":   {made(copyOf(1, 1, 0, 30), literal(0, "abc"), end), 0, "more than 32 bytes"},
		"the same copied many times":  {made(bytes.Repeat(copyOf(1, 2, 0, 5000), 1000), end), 100_000, "more than 100000 bytes"},
		"nothing instead of 32 bytes": {made(end), 0, "0 bytes instead of 32"},
		"a negative size":             {good, -1, "out of bounds"},
		"an impossible size":          {good, math.MaxInt64, "out of bounds"},
	} {
		t.Run(name, func(t *testing.T) {
			old := base(random(1, 5000))
			if test.size == 0 {
				test.size = 32
			}
			_, err := old.Apply(bytes.NewReader(test.delta), int64(len(test.delta)), test.size)
			require.ErrorIs(t, err, delta.ErrInvalid)
			require.ErrorContains(t, err, test.says)
			apply(t, old, good, 32) // as it was
		})
	}
}

// TestSizesThatAreNotTrue: files that are shorter than they are said to be end
// a call with an error that says so.
func TestSizesThatAreNotTrue(t *testing.T) {
	old := random(1, 5000)
	d := made(literal(2, string(random(2, 3000))), copyOf(1, 2, 0, 5000), end)
	long := delta.Base(bytes.NewReader(old), 6000)
	_, err := long.WriteTo(io.Discard)
	require.ErrorIs(t, err, delta.ErrInvalid)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	_, err = delta.Write(context.Background(), io.Discard, long, bytes.NewReader(make([]byte, 6000)), 6000)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)

	_, err = base(old).Apply(bytes.NewReader(d), int64(len(d)+1), 8000)
	require.ErrorIs(t, err, delta.ErrInvalid)
	_, err = base(old).Apply(bytes.NewReader(d), -1, 8000)
	require.ErrorIs(t, err, delta.ErrInvalid)
	_, err = base(old).Apply(bytes.NewReader(d[:2000]), int64(len(d)), 8000)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)

	negative := delta.Base(bytes.NewReader(old), -5)
	require.Zero(t, negative.Size())
	requireContent(t, nil, negative)

	atEnd := readerAt(func(p []byte, at int64) (int, error) { // as io.ReaderAt allows
		n, err := bytes.NewReader(old).ReadAt(p, at)
		if at+int64(n) == int64(len(old)) {
			err = io.EOF
		}
		return n, err
	})
	requireContent(t, old, delta.Base(atEnd, 5000))

	var shrinking bytes.Buffer
	shrinking.Write(d)
	v, err := base(old).Apply(readerAt(func(p []byte, at int64) (int, error) {
		return bytes.NewReader(shrinking.Bytes()).ReadAt(p, at)
	}), int64(len(d)), 8000)
	require.NoError(t, err)
	shrinking.Truncate(1000)
	_, err = v.WriteTo(io.Discard)
	require.ErrorIs(t, err, delta.ErrInvalid)
	_, err = v.WriteDelta(io.Discard)
	require.ErrorIs(t, err, delta.ErrInvalid)

	for name, size := range map[string]int64{"shorter": 4999, "longer": 5001} {
		t.Run("new file "+name, func(t *testing.T) {
			_, err := delta.Write(context.Background(), io.Discard, base(old), bytes.NewReader(old), size)
			require.Error(t, err)
		})
	}
}

type readerAt func(p []byte, at int64) (int, error)

func (r readerAt) ReadAt(p []byte, at int64) (int, error) { return r(p, at) }

// full is a writer that fails after n bytes.
type full struct{ n int }

var errFull = errors.New("no space left")

func (w *full) Write(p []byte) (int, error) {
	if len(p) > w.n {
		n := w.n
		w.n = 0
		return n, errFull
	}
	w.n -= len(p)
	return len(p), nil
}

// TestErrorsOfFiles: the errors of the files are passed on, and don't match
// ErrInvalid.
func TestErrorsOfFiles(t *testing.T) {
	errRead := errors.New("input/output error")
	broken := readerAt(func([]byte, int64) (int, error) { return 0, errRead })
	old := random(1, 1<<20)
	next := random(2, 1<<20)
	d, _ := write(t, base(old), next)
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	for name, test := range map[string]struct {
		want error
		call func() error
	}{
		"base": {errRead, func() error {
			_, err := delta.Base(broken, 10).WriteTo(io.Discard)
			return err
		}},
		"base while writing": {errRead, func() error {
			_, err := delta.Write(context.Background(), io.Discard, delta.Base(broken, 10), bytes.NewReader(next), 1<<20)
			return err
		}},
		"delta": {errRead, func() error {
			_, err := base(old).Apply(broken, 100, 100)
			return err
		}},
		"new file": {errRead, func() error {
			_, err := delta.Write(context.Background(), io.Discard, base(old), iotest.ErrReader(errRead), 1<<20)
			return err
		}},
		"new file at its end": {errRead, func() error {
			_, err := delta.Write(context.Background(), io.Discard, base(old), io.MultiReader(bytes.NewReader(next), iotest.ErrReader(errRead)), 1<<20)
			return err
		}},
		"full": {errFull, func() error {
			_, err := delta.Write(context.Background(), &full{len(d) / 2}, base(old), bytes.NewReader(next), 1<<20)
			return err
		}},
		"full at the end": {errFull, func() error {
			_, err := delta.Write(context.Background(), &full{len(d) - 1}, base(old), bytes.NewReader(next), 1<<20)
			return err
		}},
		"full with the content": {errFull, func() error {
			_, err := apply(t, base(old), d, 1<<20).WriteTo(&full{1 << 19})
			return err
		}},
		"full with the merged": {errFull, func() error {
			_, err := apply(t, base(old), d, 1<<20).WriteDelta(&full{1 << 19})
			return err
		}},
		"cancelled": {context.Canceled, func() error {
			_, err := delta.Write(cancelled, io.Discard, base(old), bytes.NewReader(next), 1<<20)
			return err
		}},
	} {
		t.Run(name, func(t *testing.T) {
			err := test.call()
			require.ErrorIs(t, err, test.want)
			require.NotErrorIs(t, err, delta.ErrInvalid)
		})
	}
}

// TestBounds: there is an end to the pieces and to the deltas in a row.
func TestBounds(t *testing.T) {
	const n = delta.MaxRuns
	backwards := func(n int) []byte { // copies each byte, from the last to the first
		d := make([]byte, 0, 6*n+5)
		d = append(d, made()...)
		for i := n - 1; i >= 0; i-- {
			d = append(d, 0x4d)
			d = binary.BigEndian.AppendUint32(d, uint32(i))
			d = append(d, 1)
		}
		return append(d, 0)
	}
	content := random(1, n)
	d := backwards(n)
	v := apply(t, base(content), d, n)
	require.Equal(t, n, v.Runs())
	again := apply(t, v, d, n)
	require.Equal(t, 1, again.Runs(), "twice backwards is forwards")
	requireContent(t, content, again)

	d = made(copyOf(4, 4, 0, n), literal(0, "x"), end)
	_, err := v.Apply(bytes.NewReader(d), int64(len(d)), n+1)
	require.ErrorIs(t, err, delta.ErrTooManyRuns)
	require.ErrorIs(t, err, delta.ErrInvalid)

	forwards := made()
	for i := range n + 1 {
		forwards = append(forwards, copyOf(4, 1, uint64(i), 1)...)
	}
	forwards = append(forwards, 0)
	_, err = base(make([]byte, n+1)).Apply(bytes.NewReader(forwards), int64(len(forwards)), n+1)
	require.ErrorIs(t, err, delta.ErrTooManyRuns)

	v = base(content[:10])
	d = made(copyOf(1, 1, 0, 10), end)
	for range delta.MaxDeltas {
		v = apply(t, v, d, 10)
	}
	requireContent(t, content[:10], v)
	_, err = v.Apply(bytes.NewReader(d), int64(len(d)), 10)
	require.ErrorIs(t, err, delta.ErrInvalid)
}

// TestBeyondFourGiB: offsets and lengths that need 8 bytes are read and written.
func TestBeyondFourGiB(t *testing.T) {
	const size = 1 << 40
	sparse := readerAt(func(p []byte, at int64) (int, error) {
		for i := range p {
			p[i] = byte((at + int64(i)) >> 32)
		}
		return len(p), nil
	})
	d := made(copyOf(8, 1, 15<<32-1, 2), literal(0, "x"), copyOf(8, 8, 1<<32, 6<<32), end)
	const made = 3 + 6<<32
	v, err := delta.Base(sparse, size).Apply(bytes.NewReader(d), int64(len(d)), made)
	require.NoError(t, err)
	var merged bytes.Buffer
	w, err := v.WriteDelta(&merged)
	require.NoError(t, err)
	require.Equal(t, delta.Written{Literal: 1, Copied: made - 1, Size: int64(merged.Len()), Runs: 3}, w)
	again, err := delta.Base(sparse, size).Apply(bytes.NewReader(merged.Bytes()), int64(merged.Len()), made)
	require.NoError(t, err)
	var head full
	head.n = 1 << 20
	_, err = again.WriteTo(&head)
	require.ErrorIs(t, err, errFull)
	first := &bytes.Buffer{}
	_, err = again.WriteTo(&limited{first, 5})
	require.ErrorIs(t, err, errFull)
	require.Equal(t, []byte{14, 15, 'x', 1, 1}, first.Bytes())
}

// limited is a writer that keeps the first n bytes and then fails.
type limited struct {
	kept *bytes.Buffer
	n    int
}

func (w *limited) Write(p []byte) (int, error) {
	n, _ := w.kept.Write(p[:min(len(p), w.n)])
	return n, errFull
}
