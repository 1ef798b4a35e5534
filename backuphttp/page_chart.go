package backuphttp

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// The coordinates of the chart. The browser stretches it to the page's width, and
// the labels are not in it, so that they keep their size.
const (
	chartWidth  = 1000
	chartHeight = 200
)

// chartPoints bounds the points of a line. chartDots is up to how many of them are
// marked.
const (
	chartPoints = 400
	chartDots   = 60
)

// A pageChart is how the snapshots grew.
type pageChart struct {
	Lines    []chartLine
	Ticks    []int64 // bytes, from the top to 0
	Rules    []int   // where the ticks are
	From, To time.Time
	Text     string // what the chart shows, in words
}

// A chartLine is one line of it. Path and Dots are data of SVG paths.
type chartLine struct {
	Class, Label string
	Path, Dots   string
}

type chartPoint struct {
	at    time.Time
	bytes int64
}

// newPageChart returns the chart of snapshots, which are newest first. It has a
// line for the databases, and one for the whole of those snapshots that have a
// Chroma directory, so that the ones without don't look like losses. It returns nil
// if there is no line.
func newPageChart(newestFirst []pageSnapshot) *pageChart {
	var databases, wholes []chartPoint
	for _, s := range slices.Backward(newestFirst) {
		databases = append(databases, chartPoint{s.CreatedAt, s.Parts[0].Bytes})
		if last := s.Parts[len(s.Parts)-1]; last.Name == "Chroma" {
			wholes = append(wholes, chartPoint{s.CreatedAt, s.Bytes})
		}
	}
	if len(databases) < 2 {
		return nil
	}
	c := &pageChart{From: databases[0].at, To: databases[len(databases)-1].at}
	if !c.From.Before(c.To) {
		return nil
	}
	top := int64(1)
	for _, p := range slices.Concat(databases, wholes) {
		top = max(top, p.bytes)
	}
	step := niceStep(top)
	for tick := (top + step - 1) / step * step; tick >= 0; tick -= step {
		c.Ticks = append(c.Ticks, tick)
	}
	for i := range c.Ticks {
		c.Rules = append(c.Rules, i*chartHeight/(len(c.Ticks)-1))
	}
	if len(wholes) > 1 {
		c.Lines = append(c.Lines, c.line("whole", "Database and Chroma", wholes))
	}
	c.Lines = append(c.Lines, c.line("database", "Database", databases))
	var texts []string
	for _, l := range []struct {
		name   string
		points []chartPoint
	}{{"The database", databases}, {"Database and Chroma together", wholes}} {
		if n := len(l.points); n > 1 {
			first, last := l.points[0], l.points[n-1]
			texts = append(texts, fmt.Sprintf("%s went from %s on %s to %s on %s, in %s.", l.name, size(first.bytes),
				first.at.Format(time.DateOnly), size(last.bytes), last.at.Format(time.DateOnly), count(n, "snapshot", "snapshots")))
		}
	}
	c.Text = strings.Join(texts, " ")
	return c
}

// line draws points, which are sorted by time.
func (c *pageChart) line(class, label string, points []chartPoint) chartLine {
	l := chartLine{Class: class, Label: label}
	span, top := float64(c.To.Sub(c.From)), float64(c.Ticks[0])
	var path, dots strings.Builder
	column := -1
	for i, p := range points {
		x := float64(p.at.Sub(c.From)) / span * chartWidth
		// Of the points of one column, only the first is drawn, but the last of all is.
		if at := int(x * chartPoints / chartWidth); len(points) > chartPoints && at == column && i < len(points)-1 {
			continue
		} else {
			column = at
		}
		y := chartHeight - float64(p.bytes)/top*chartHeight
		fmt.Fprintf(&path, "%c%.1f %.1f", "ML"[min(i, 1)], x, y)
		fmt.Fprintf(&dots, "M%.1f %.1fh0", x, y)
	}
	l.Path = path.String()
	if len(points) <= chartDots {
		l.Dots = dots.String()
	}
	return l
}

// niceStep returns the distance of one to four ticks up to top: a power of ten, its
// half, or two or five times it.
func niceStep(top int64) int64 {
	step := int64(1)
	for step <= top/10 {
		step *= 10
	}
	switch {
	case top <= 2*step:
		return max(step/2, 1)
	case top <= 4*step:
		return step
	case top <= 8*step:
		return 2 * step
	}
	return 5 * step
}
