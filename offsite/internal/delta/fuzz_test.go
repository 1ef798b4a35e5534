package delta_test

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/offsite/internal/delta"
)

// patch is a second implementation of the format, without anything that makes it
// fast: it returns what d makes of old, or false if d is invalid or the result
// is not of that size.
func patch(old, d []byte, size int) (result []byte, ok bool) {
	if len(d) < 5 || binary.BigEndian.Uint32(d) != 0x72730236 {
		return nil, false
	}
	d = d[4:]
	number := func(width int) (x uint64) {
		if len(d) < width {
			ok = false
			return 0
		}
		for _, b := range d[:width] {
			x = x<<8 | uint64(b)
		}
		d = d[width:]
		return x
	}
	for len(d) > 0 {
		op := int(d[0])
		d, ok = d[1:], true
		literal, offset := true, uint64(0)
		var length uint64
		switch {
		case op == 0:
			return result, len(d) == 0 && len(result) == size
		case op <= 64:
			length = uint64(op)
		case op <= 0x44:
			length = number(1 << (op - 0x41))
		case op <= 0x54:
			literal = false
			offset = number(1 << ((op - 0x45) / 4))
			length = number(1 << ((op - 0x45) % 4))
		default:
			return nil, false
		}
		data := old
		if literal {
			data = d
		}
		if !ok || length == 0 || offset > uint64(len(data)) || length > uint64(len(data))-offset || length > uint64(size-len(result)) {
			return nil, false
		}
		result = append(result, data[offset:offset+length]...)
		if literal {
			d = d[length:]
		}
	}
	return nil, false
}

// FuzzApply: two deltas in a row make what a plain implementation makes of them,
// or are refused; nothing else happens, whatever they are.
func FuzzApply(f *testing.F) {
	old := random(1, 5000)
	good := made(literal(1, "abc"), copyOf(1, 2, 10, 4000), literal(0, "z"), copyOf(1, 1, 0, 8), end)
	f.Add(good, good, uint16(4012), uint16(4012))
	f.Add(made(copyOf(2, 1, 4000, 200), copyOf(1, 1, 1, 1), literal(2, "text"), copyOf(4, 8, 3, 9), literal(8, "more"), end),
		made(copyOf(1, 1, 199, 15), copyOf(1, 1, 0, 200), literal(4, "x"), end), uint16(218), uint16(216))
	f.Add(made(end), made(literal(0, "x"), end), uint16(0), uint16(1))
	f.Fuzz(func(t *testing.T, first, second []byte, firstSize, secondSize uint16) {
		v, content := base(old), old
		for i, d := range [][]byte{first, second} {
			size := int([]uint16{firstSize, secondSize}[i])
			next, err := v.Apply(bytes.NewReader(d), int64(len(d)), int64(size))
			want, ok := patch(content, d, size)
			if !ok {
				require.ErrorIs(t, err, delta.ErrInvalid)
				return
			}
			require.NoError(t, err)
			requireContent(t, want, next)
			v, content = next, want
		}
		var merged bytes.Buffer
		_, err := v.WriteDelta(&merged)
		require.NoError(t, err)
		result, ok := patch(old, merged.Bytes(), len(content))
		require.True(t, ok)
		require.True(t, bytes.Equal(content, result))
	})
}

// FuzzWrite: the deltas between any three contents make the last of the first,
// one by one and merged.
func FuzzWrite(f *testing.F) {
	// Each byte of the input stands for a piece, so that short inputs make
	// contents of many blocks.
	grow := func(in []byte) (content []byte) {
		for _, b := range in[:min(len(in), 200)] {
			content = append(content, bytes.Repeat([]byte{b}, 1+int(b)*11)...)
		}
		return content
	}
	f.Add([]byte{}, []byte{1}, []byte{255, 255})
	f.Add(random(1, 50), random(1, 49), random(1, 60))
	f.Add([]byte("abcdefghijkl"), []byte("abcdeXghijkl"), []byte("abcdeXghijkY"))
	f.Fuzz(func(t *testing.T, a, b, c []byte) {
		first, second, third := grow(a), grow(b), grow(c)
		d, _ := write(t, base(first), second)
		result, ok := patch(first, d, len(second))
		require.True(t, ok)
		require.True(t, bytes.Equal(second, result))
		v := apply(t, base(first), d, len(second))
		d, _ = write(t, v, third)
		v = apply(t, v, d, len(third))
		requireContent(t, third, v)
		var merged bytes.Buffer
		_, err := v.WriteDelta(&merged)
		require.NoError(t, err)
		result, ok = patch(first, merged.Bytes(), len(third))
		require.True(t, ok)
		require.True(t, bytes.Equal(third, result))
	})
}
