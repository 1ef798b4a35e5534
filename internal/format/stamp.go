package format

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A stamp is the name of a snapshot: the second in which it was created, in
// UTC, and a suffix from the second snapshot of the same second on. People may
// rename a snapshot, so any single name is accepted as a stamp.

// StampLayout is the layout of a stamp without its suffix, for package time.
const StampLayout = "20060102T150405Z"

// NewStamp returns the stamp of the n-th snapshot, counted from 1, of the
// second of now. The year of now must be in the range 1 to 9999 in UTC.
func NewStamp(now time.Time, n int) string {
	stamp := now.UTC().Format(StampLayout)
	if n > 1 {
		stamp += fmt.Sprintf("-%03d", n)
	}
	return stamp
}

// CompareStamps returns a negative number if a comes before b, a positive one
// if it comes after b, and 0 if they are equal. The order is that of the
// names, which is oldest first, except that suffixes within one second count
// as numbers: -1000 comes after -999.
func CompareStamps(a, b string) int {
	aBase, aSeq := splitStamp(a)
	bBase, bSeq := splitStamp(b)
	if c := strings.Compare(aBase, bBase); c != 0 {
		return c
	}
	return aSeq - bSeq
}

// splitStamp splits a stamp into its second and its number in it. A name that
// does not have the form of a stamp is returned whole, with the number 0, so
// that comparing stays a total order.
func splitStamp(name string) (base string, seq int) {
	base, suffix, found := strings.Cut(name, "-")
	if _, err := time.Parse(StampLayout, base); err != nil {
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

// IsStampOf reports whether stamp is one that [NewStamp] returns for a snapshot
// that was created at the given time.
func IsStampOf(stamp string, created time.Time) bool {
	base, seq := splitStamp(stamp)
	return seq > 0 && base == NewStamp(created, 1)
}

// IsStamp reports whether name is a single path element that can be the name
// of a snapshot.
func IsStamp(name string) bool {
	return name != "" && name != "." && name != ".." && len(name) <= 255 &&
		!strings.ContainsAny(name, "/\x00") &&
		// On Windows, separators, drives and streams have a meaning in a name.
		(filepath.Separator == '/' || !strings.ContainsAny(name, `\:`))
}
