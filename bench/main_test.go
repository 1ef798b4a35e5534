package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The test binary acts as the program when the benchmark runs itself as a child.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "child" {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestBench runs every part on tiny data, with the tools of this machine but
// without the Go peers, which need a compiler and the network.
func TestBench(t *testing.T) {
	t.Chdir(t.TempDir()) // no bench/peers here
	dir := t.TempDir()
	var out bytes.Buffer
	b := &bench{out: &out, log: io.Discard, rounds: 1, scale: 1000}
	require.NoError(t, b.main(context.Background(), dir, parts))
	for _, p := range parts {
		require.Contains(t, out.String(), "\n## "+p.title+"\n")
	}
	require.Contains(t, out.String(), "| "+ours)
	require.NotContains(t, out.String(), "NaN")
	require.NotContains(t, out.String(), "%!")
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	require.NoError(t, err)
	require.Equal(t, []string{filepath.Join(dir, "data")}, left, "only the data may remain")
}

func TestRunArguments(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		says string
	}{
		"unknown part":     {[]string{"-only", "guard,nonsense"}, `no part "nonsense"`},
		"no round":         {[]string{"-rounds", "0"}, "see -help"},
		"stray argument":   {[]string{"guard"}, "see -help"},
		"unknown flag":     {[]string{"-nonsense"}, "not defined"},
		"help":             {[]string{"-help"}, "-only PARTS"},
		"a child, no name": {[]string{"child"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			require.Error(t, run(context.Background(), test.args, io.Discard, &log))
			require.Contains(t, log.String(), test.says)
		})
	}
}

func TestCompareAlternates(t *testing.T) {
	var order strings.Builder
	named := func(name string) candidate {
		return candidate{name: name, run: func(_ context.Context, dst string) (sample, error) {
			entries, err := os.ReadDir(dst)
			require.NoError(t, err)
			require.Empty(t, entries)
			require.NoError(t, os.Mkdir(filepath.Join(dst, "read-only"), 0o500))
			order.WriteString(name)
			return sample{Seconds: float64(order.Len())}, nil
		}}
	}
	b := &bench{log: io.Discard, rounds: 3, dir: t.TempDir()}
	results, err := b.compare(context.Background(), comparison{candidates: []candidate{named("a"), named("b"), named("c")}})
	require.NoError(t, err)
	require.Equal(t, "abccbaabc", order.String())
	require.Equal(t, 6.0, results[0].median(seconds)) // 1, 6, 7
	left, err := os.ReadDir(b.dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

func TestMedian(t *testing.T) {
	for name, test := range map[string]struct {
		values []float64
		want   float64
	}{
		"none": {nil, 0},
		"odd":  {[]float64{9, 1, 5}, 5},
		"even": {[]float64{4, 1, 2, 9}, 3},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, test.want, median(test.values)) })
	}
}

func TestFigure(t *testing.T) {
	for want, x := range map[string]float64{"–": 0, "0.00123": 0.001234, "0.123": 0.12345, "1.23": 1.234, "12.3": 12.34, "1235": 1234.6} {
		require.Equal(t, want, figure(x))
	}
}
