package main

import (
	"bytes"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/rivo/uniseg"
)

// A table is printed with one line for each row, none of which is wider than the
// terminal. Texts that are too wide are cut, and columns for which there is no
// room are left out.
type table struct {
	columns []column
	rows    [][]cell
}

// A column describes a column of a table.
type column struct {
	head  string
	short string // the head if the table is too wide with the other; by default head
	right bool   // aligned to the right
	// least is the number of columns of the terminal to which texts may be cut; 0
	// means that they are not.
	least int
	// rank decides which column is left out first: the one with the highest. 0
	// means never.
	rank int
}

// A cell is a text of a table. It may come from a disk, so it is made harmless.
type cell struct {
	text  string
	alarm bool // in red
}

const gap = "  " // between columns

// print prints the table and returns the heads of the columns that it left out.
func (t *table) print(w *bytes.Buffer, width int, coloured bool) (leftOut []string) {
	heads := make([]cell, len(t.columns))
	for i, c := range t.columns {
		heads[i].text = c.head
	}
	for _, row := range t.rows {
		for i := range row {
			row[i].text = harmless(row[i].text)
		}
	}
	natural := t.naturalWidths(heads)
	if sum(natural) > width {
		for i, c := range t.columns {
			if c.short != "" {
				heads[i].text = c.short
			}
		}
		natural = t.naturalWidths(heads)
	}
	widths, leftOut := t.fit(natural, width)
	printRow(w, t.columns, heads, widths, false)
	for _, row := range t.rows {
		printRow(w, t.columns, row, widths, coloured)
	}
	return leftOut
}

// naturalWidths returns the width of the widest text of each column.
func (t *table) naturalWidths(heads []cell) []int {
	widths := make([]int, len(t.columns))
	for i := range t.columns {
		widths[i] = textWidth(heads[i].text)
		for _, row := range t.rows {
			widths[i] = max(widths[i], textWidth(row[i].text))
		}
	}
	return widths
}

// sum returns the width of a table. Columns of width 0 are left out of it.
func sum(widths []int) (total int) {
	for _, n := range widths {
		if n > 0 {
			total += n + len(gap)
		}
	}
	return total - len(gap)
}

// fit returns the widths of the columns in a terminal, 0 for those that are left
// out, and the heads of these.
func (t *table) fit(natural []int, width int) (widths []int, leftOut []string) {
	widths = slices.Clone(natural)
	for i, c := range t.columns {
		if c.least > 0 {
			widths[i] = min(natural[i], c.least)
		}
	}
	for sum(widths) > width {
		drop := 0
		for i, c := range t.columns {
			if widths[i] > 0 && c.rank > t.columns[drop].rank {
				drop = i
			}
		}
		if widths[drop] == 0 || t.columns[drop].rank == 0 { // nothing is left to leave out
			break
		}
		widths[drop] = 0
	}
	for i, c := range t.columns {
		switch {
		case widths[i] == 0:
			leftOut = append(leftOut, c.head)
		case c.least > 0: // what room there is goes to the columns that were cut
			widths[i] = max(1, min(natural[i], widths[i]+width-sum(widths)))
		}
	}
	return widths, leftOut
}

func printRow(w *bytes.Buffer, columns []column, row []cell, widths []int, coloured bool) {
	pending := 0 // spaces that are not written at the end of a line
	first := true
	for i, c := range row {
		if widths[i] == 0 {
			continue
		}
		if !first {
			pending += len(gap)
		}
		first = false
		text, used := cut(c.text, widths[i])
		if used == 0 {
			pending += widths[i]
			continue
		}
		if columns[i].right {
			pending += widths[i] - used
		}
		for range pending {
			w.WriteByte(' ')
		}
		if c.alarm && coloured {
			text = "\x1b[31m" + text + "\x1b[0m"
		}
		w.WriteString(text)
		pending = 0
		if !columns[i].right {
			pending = widths[i] - used
		}
	}
	w.WriteByte('\n')
}

// harmless returns a text as a single line without control characters. It leaves
// out the characters that join others, because terminals disagree on the width of
// what is joined.
func harmless(s string) string {
	if isPlain(s) {
		return s
	}
	return oneLine(strings.NewReplacer("\u200d", "", "\u200c", "", "\u2060", "", "\ufe0f", "").Replace(s))
}

// isPlain reports whether s is printable ASCII.
func isPlain(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

// textWidth returns the number of columns that s takes on a terminal.
func textWidth(s string) int {
	if isPlain(s) {
		return len(s)
	}
	return uniseg.StringWidth(s)
}

// cut returns as much of s as fits into width columns, with an ellipsis if that
// is not all of it, and the number of columns that it takes.
func cut(s string, width int) (_ string, used int) {
	if n := textWidth(s); n <= width {
		return s, n
	}
	var b strings.Builder
	state := -1
	for s != "" {
		cluster, rest, n, next := uniseg.FirstGraphemeClusterInString(s, state)
		if used+n > width-1 {
			break
		}
		// A letter may bear any number of accents, which would cover other lines.
		const most = 8
		if utf8.RuneCountInString(cluster) > most {
			cluster = string([]rune(cluster)[:most])
		}
		b.WriteString(cluster)
		used += n
		s, state = rest, next
	}
	return b.String() + "…", used + 1
}
