package main

import (
	"fmt"
	"math"
	"strings"
)

// table prints rows as a Markdown table. The first row is the header. The first
// columns, as many as words says, are aligned left and the others right.
func (b *bench) table(words int, rows ...[]string) {
	widths := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			widths[i] = max(widths[i], len([]rune(cell)))
		}
	}
	line := func(cells []string) {
		var s strings.Builder
		for i, cell := range cells {
			pad := strings.Repeat(" ", widths[i]-len([]rune(cell)))
			if i < words {
				s.WriteString("| " + cell + pad + " ")
			} else {
				s.WriteString("| " + pad + cell + " ")
			}
		}
		fmt.Fprintln(b.out, s.String()+"|")
	}
	line(rows[0])
	rule := make([]string, len(widths))
	for i, width := range widths {
		rule[i] = strings.Repeat("-", width)
		if i >= words {
			rule[i] = strings.Repeat("-", width-1) + ":"
		}
	}
	line(rule)
	for _, row := range rows[1:] {
		line(row)
	}
}

// times appends the results of a comparison to rows, with times relative to the
// candidate called reference. If rows is nil, it begins with the header.
func times(rows [][]string, subject, reference string, results []result) [][]string {
	if rows == nil {
		rows = [][]string{{"of", "method", "×", "median s", "least", "most", "peak MiB"}}
	}
	base := find(results, reference).median(seconds)
	for _, r := range results {
		least, most := r.extremes(seconds)
		rows = append(rows, []string{subject, r.name, ratio(r.median(seconds) / base), figure(r.median(seconds)),
			figure(least), figure(most), fmt.Sprintf("%.0f", r.median(peak)/float64(mib))})
	}
	return rows
}

// find returns the result of the candidate called name, or one without samples if
// it was left out.
func find(results []result, name string) result {
	for _, r := range results {
		if r.name == name {
			return r
		}
	}
	return result{name: name}
}

// figure formats x with three significant digits.
func figure(x float64) string {
	if x <= 0 || math.IsInf(x, 0) || math.IsNaN(x) {
		return "–"
	}
	return fmt.Sprintf("%.*f", max(0, 2-int(math.Floor(math.Log10(x)))), x)
}

func ratio(x float64) string {
	if x <= 0 || math.IsInf(x, 0) || math.IsNaN(x) {
		return "–"
	}
	if x < 0.1 {
		return fmt.Sprintf("%.3f", x)
	}
	return fmt.Sprintf("%.2f", x)
}

// A goal is an upper limit for a figure.
type goal struct {
	what  string
	of    string // what the figure is relative to, or its unit
	got   float64
	limit float64
}

// aim records a goal. A figure that lacks the candidate it is relative to is left
// out.
func (b *bench) aim(what, of string, got, limit float64) {
	if got > 0 && !math.IsInf(got, 0) && !math.IsNaN(got) {
		b.goals = append(b.goals, goal{what, of, got, limit})
	}
}

func (b *bench) printGoals() {
	if len(b.goals) == 0 {
		return
	}
	fmt.Fprint(b.out, "\n## Goals\n\n")
	if b.scale != 1 {
		fmt.Fprintf(b.out, "With 1/%d of the data, these figures mean little.\n\n", b.scale)
	}
	rows := [][]string{{"figure", "in", "goal", "measured", ""}}
	for _, g := range b.goals {
		verdict := "reached"
		if g.got > g.limit {
			verdict = "missed"
		}
		rows = append(rows, []string{g.what, g.of, "≤ " + ratio(g.limit), ratio(g.got), verdict})
	}
	b.table(2, rows...)
}
