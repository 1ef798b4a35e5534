package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rivo/uniseg"
	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// lines prints a table and returns its lines.
func (t *table) lines(width int, coloured bool) (lines, leftOut []string) {
	var b bytes.Buffer
	leftOut = t.print(&b, width, coloured)
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n"), leftOut
}

// requireHarmless checks that lines fit a terminal and cannot change it.
func requireHarmless(t *testing.T, lines []string, width int) {
	t.Helper()
	for _, line := range lines {
		require.LessOrEqual(t, uniseg.StringWidth(line), width, "%q", line)
		require.Equal(t, oneLine(line), line)
		require.Equal(t, strings.TrimRight(line, " "), line)
	}
}

// Every row is one line that fits the terminal, whatever a snapshot is called and
// whatever its note says.
func TestTableFitsTheTerminal(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	valid, invalid := true, false
	made := func(age time.Duration, db, chroma int64) *backup.Metadata {
		m := &backup.Metadata{CreatedAt: now.Add(-age), DBSizeBytes: db, ChromaSnapshotBytes: chroma, SourceHost: "h", SourceDBPath: fmt.Sprint("/srv/", db)}
		if chroma > 0 {
			m.ChromaSnapshotPath = "chroma"
		}
		return m
	}
	const stamp = "20261124T115419Z"
	snapshots := []backup.Snapshot{
		{Stamp: stamp, HasMetadata: true, Metadata: made(3*time.Hour, 1e9, 1e6), Note: "plain"},
		{Stamp: stamp + "-1000", HasMetadata: true, Metadata: made(-time.Hour, 1<<62, 1<<62), Note: "日本語のメモ、とても長い、とても長い、とても長い"},
		{Stamp: "改名されたスナップショット改名されたスナップショット", HasMetadata: true, Metadata: made(900*24*time.Hour, 5, 0), Verified: &valid, VerifiedAt: now, Protected: true, Note: "👩‍👩‍👧‍👦🇩🇪👍🏽❤️"},
		{Stamp: "\x1b[2Jcleared", HasMetadata: true, Metadata: made(time.Minute, -1, -1), Verified: &invalid, VerifiedAt: now, Note: "\x1b]0;title\x07\x9b31m\r\n\ttwo"},
		{Stamp: "z", HasMetadata: true, MetadataError: "invalid_json", Note: "z" + strings.Repeat("\u0301\u0302", 2000)},
		{Stamp: strings.Repeat("long", 60), Note: "\u202egnirts\u200b\xff"},
		{Stamp: "e\u0301te\u0301", HasMetadata: true, Metadata: made(time.Second, 0, 0)},
	}
	for _, width := range []int{1, 2, 10, 20, 39, 40, 41, 60, 79, 80, 81, 100, 120, 200, 1000} {
		lines, _ := listTable(snapshots, now).lines(width, false)
		require.Len(t, lines, 1+len(snapshots), width)
		requireHarmless(t, lines, width)
	}

	lines, leftOut := listTable(snapshots[:1], now).lines(200, false)
	require.Empty(t, leftOut)
	require.Equal(t, []string{
		"STAMP             AGE    SIZE  DATABASE  CHROMA  VERIFIED  PROTECTED  NOTE",
		"20261124T115419Z   3h  1.0 GB    1.0 GB  1.0 MB  never                plain",
	}, lines)
	lines, leftOut = listTable(snapshots[:1], now).lines(40, false)
	require.Equal(t, []string{"SIZE", "DATABASE", "CHROMA", "NOTE"}, leftOut)
	require.Equal(t, []string{
		"STAMP             AGE  VERIFIED  PROT",
		"20261124T115419Z   3h  never",
	}, lines)
	lines, _ = listTable(snapshots, now).lines(400, false)
	require.Contains(t, lines[0], "  STORE ")
	require.Contains(t, lines[1], "  h:/srv/1000000000 ")
	require.Contains(t, lines[4], "\\x1b[2Jcleared")
	require.Contains(t, lines[4], "NOT VALID 0s")
	require.Contains(t, lines[5], "UNREADABLE")
	require.Contains(t, lines[5], "metadata: invalid_json; z")
	require.Contains(t, lines[6], "no metadata; \\u202egnirts")

	lines, _ = listTable(snapshots[3:4], now).lines(200, true)
	require.Contains(t, lines[1], "\x1b[31mNOT VALID 0s\x1b[0m")
}

// A long list is complete.
func TestTableOfTenThousandRows(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	snapshots := make([]backup.Snapshot, 10_000)
	for i := range snapshots {
		at := now.Add(-time.Duration(i) * time.Hour)
		snapshots[i] = backup.Snapshot{Stamp: at.Format("20060102T150405Z"), HasMetadata: true, Metadata: &backup.Metadata{CreatedAt: at}, Note: "日本語のメモ"}
	}
	lines, _ := listTable(snapshots, now).lines(80, true)
	require.Len(t, lines, 1+len(snapshots))
	requireHarmless(t, lines, 80)
}

func TestCut(t *testing.T) {
	for _, test := range []struct {
		in    string
		width int
		want  string
	}{
		{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"日本", 4, "日本"}, {"日本語", 4, "日…"}, {"日本語", 5, "日本…"},
		{"e\u0301e\u0301e\u0301", 2, "e\u0301…"}, {"", 1, ""}, {"ab", 1, "…"}, {"日", 1, "…"}, {"👍🏽👍🏽", 3, "👍🏽…"},
	} {
		got, used := cut(test.in, test.width)
		require.Equal(t, test.want, got)
		require.Equal(t, uniseg.StringWidth(got), used)
	}
}

func TestAge(t *testing.T) {
	const day = 24 * time.Hour
	for d, want := range map[time.Duration]string{
		-1: "future", 0: "0s", time.Minute - 1: "59s", time.Minute: "1min", time.Hour - 1: "59min", time.Hour: "1h",
		2*day - 1: "47h", 2 * day: "2d", 2*365*day - 1: "729d", 2 * 365 * day: "2y", 1<<63 - 1: "292y", -1 << 63: "future",
	} {
		require.Equal(t, want, age(d))
	}
}
