package offsite_test

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRoundTrip(t *testing.T) {
	r, h := newRepository(t), newHost(t)
	h.writeFile("segment/data_level0.bin", 3<<20)
	h.writeFile("segment/header.bin", 100)
	h.Must(os.MkdirAll(h.InChroma("empty/below"), 0o755))
	first := h.Create().Stamp
	pushed := h.push(r, first)
	require.False(t, pushed.AlreadyThere)
	require.Greater(t, pushed.UploadedBytes, int64(3<<20))
	h.pull(r, first)

	h.change("segment/data_level0.bin", 1<<20, 1000)
	second := h.Create().Stamp
	pushed = h.push(r, second)
	require.Less(t, pushed.UploadedBytes, int64(100<<10))
	h.pull(r, second)
	h.pull(r, first)

	again := h.push(r, second)
	require.True(t, again.AlreadyThere)
	require.Equal(t, pushed.Copy, again.Copy)
}
