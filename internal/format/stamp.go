package backup

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const stampLayout = "20060102T150405Z"

// newStamp names the n-th snapshot (from 1) made in the second of now.
func newStamp(now time.Time, n int) string {
	stamp := now.UTC().Format(stampLayout)
	if n > 1 {
		stamp += fmt.Sprintf("-%03d", n)
	}
	return stamp
}

// checkTime refuses instants that a stamp's four-digit year cannot name.
func checkTime(now time.Time) error {
	if year := now.UTC().Year(); year < 1 || year > 9999 {
		return fmt.Errorf("the clock tells the year %d, and a stamp can name only the years 1 to 9999", year)
	}
	return nil
}

// compareStamps orders snapshots oldest first: by name, except that a second's
// suffixes count as numbers (-1000 comes after -999).
func compareStamps(a, b string) int {
	aBase, aSeq := splitStamp(a)
	bBase, bSeq := splitStamp(b)
	if c := strings.Compare(aBase, bBase); c != 0 {
		return c
	}
	return aSeq - bSeq
}

// splitStamp takes a stamp apart. A name that is not of a stamp's form is
// returned whole, with sequence 0, so that comparing stays a total order.
func splitStamp(name string) (base string, seq int) {
	base, suffix, found := strings.Cut(name, "-")
	if _, err := time.Parse(stampLayout, base); err != nil {
		return name, 0
	}
	if !found {
		return base, 1
	}
	n, err := strconv.Atoi(suffix)
	if err != nil || n < 2 || n > 1<<30 || fmt.Sprintf("%03d", n) != suffix {
		return name, 0
	}
	return base, n
}

// isStamp tells whether name is one path element that can name a snapshot.
func isStamp(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 &&
		!strings.ContainsAny(name, "/\x00") &&
		// Windows gives a meaning to separators, drives and streams in a name.
		(filepath.Separator == '/' || !strings.ContainsAny(name, `\:`))
}
