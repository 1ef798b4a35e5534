package format_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/format"
)

func TestNewStamp(t *testing.T) {
	at := time.Date(2026, 11, 24, 11, 54, 19, 999_999_999, time.UTC)
	for want, got := range map[string]string{
		"20261124T115419Z":        format.NewStamp(at, 1),
		"20261124T115419Z-002":    format.NewStamp(at, 2),
		"20261124T115419Z-999":    format.NewStamp(at, 999),
		"20261124T115419Z-1000":   format.NewStamp(at, 1000),
		"20261124T115419Z-123456": format.NewStamp(at, 123456),
	} {
		require.Equal(t, want, got)
	}
	for _, zone := range []*time.Location{time.FixedZone("far east", 14*3600), time.FixedZone("odd", -(9*3600 + 30*60)), time.FixedZone("odder", 1)} {
		require.Equal(t, "20261124T115419Z", format.NewStamp(at.In(zone), 1), "a stamp is in UTC")
	}
	require.Equal(t, "00010101T000000Z", format.NewStamp(time.Time{}, 1))
}

// Snapshots are in the order in which they were created, and names chosen by
// people have their place among them.
func TestCompareStamps(t *testing.T) {
	sorted := []string{
		"", "#1", "-002", "19991231T235959Z", "19991231T235959Z-002", "20261124T115419Z",
		"20261124T115419Z-002", "20261124T115419Z-003", "20261124T115419Z-010", "20261124T115419Z-998", "20261124T115419Z-999",
		"20261124T115419Z-1000", "20261124T115419Z-1001", "20261124T115419Z-9999", "20261124T115419Z-10000",
		// None of these is a number in the form of a suffix.
		"20261124T115419Z-", "20261124T115419Z-+02", "20261124T115419Z-0002", "20261124T115419Z-001",
		"20261124T115419Z-02", "20261124T115419Z-99999999999999999999", "20261124T115419Z-x", "20261124T115419Zx",
		"20261124T115420Z", "20261124T115420Z-002", "before upgrade", "copy of 20261124T115419Z", "\xff",
	}
	for i, a := range sorted {
		for j, b := range sorted {
			require.Equal(t, sign(i-j), sign(format.CompareStamps(a, b)), "%q and %q", a, b)
		}
	}
	shuffled := slices.Clone(sorted)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	slices.SortFunc(shuffled, format.CompareStamps)
	require.Equal(t, sorted, shuffled)
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestStampsOfManyInOneSecondSort(t *testing.T) {
	at := time.Date(2026, 11, 24, 11, 54, 19, 0, time.UTC)
	last := format.NewStamp(at, 1)
	for n := 2; n < 20_000; n++ {
		stamp := format.NewStamp(at, n)
		require.Negative(t, format.CompareStamps(last, stamp))
		last = stamp
	}
	require.Negative(t, format.CompareStamps(last, format.NewStamp(at.Add(time.Second), 1)))
}

func TestIsStamp(t *testing.T) {
	for _, name := range []string{"20261124T115419Z", "a", "...", " ", "-", "\n", "\xff", "~", "$HOME", strings.Repeat("a", 255)} {
		require.True(t, format.IsStamp(name), fmt.Sprintf("%q", name))
	}
	for _, name := range []string{"", ".", "..", "/", "a/", "/a", "a/b", "../a", "a\x00", strings.Repeat("a", 256), strings.Repeat("é", 128)} {
		require.False(t, format.IsStamp(name), fmt.Sprintf("%q", name))
	}
}

func TestIsStampOf(t *testing.T) {
	at := time.Date(2026, 11, 24, 11, 54, 19, 973489000, time.UTC)
	for stamp, want := range map[string]bool{
		"20261124T115419Z": true, "20261124T115419Z-002": true, "20261124T115419Z-1000": true,
		"20261124T115420Z": false, "20261124T115419Z-001": false, "20261124T115419Z-2": false, "20261124T115419Z-": false,
		"20261124T115419Z-002-003": false, "": false, "x": false, "..": false, ".atocore-staging-0123456789abcdef": false,
	} {
		require.Equal(t, want, format.IsStampOf(stamp, at), stamp)
		require.Equal(t, want, format.IsStampOf(stamp, at.In(time.FixedZone("", 3600))), stamp)
	}
}
