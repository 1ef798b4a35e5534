package restic

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
)

// A sink takes restic's standard output. Write is called by one goroutine and
// progress by another; the rest after restic has ended.
type sink interface {
	io.Writer
	progress() int64 // changes if the output shows that restic has got on
	failed() error   // why the output cannot be used
	reset()          // for another run
}

// counted counts what is written.
type counted struct {
	io.Writer
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return c.Writer.Write(p)
}

// A collector keeps the output, up to a limit.
type collector struct {
	bytes.Buffer
	limit int64
	n     atomic.Int64
	err   error
}

func (c *collector) Write(p []byte) (int, error) {
	if c.n.Add(int64(len(p))) > c.limit {
		c.err = fmt.Errorf("%w (over %d bytes)", ErrTooMuch, c.limit)
		return 0, c.err
	}
	return c.Buffer.Write(p)
}

func (c *collector) progress() int64 { return c.n.Load() }
func (c *collector) failed() error   { return c.err }
func (c *collector) reset() {
	c.Buffer.Reset()
	c.n.Store(0)
	c.err = nil
}

// maxLine bounds a line of the output.
const maxLine = 1 << 20

// textLines calls each for every line of the output. Lines that are the same as
// the one before, but for the time that restic prints in front, are no progress.
type textLines struct {
	each func(line []byte) error // may be nil
	rest []byte
	last []byte
	n    atomic.Int64
	err  error
}

// elapsed is "[0:05] " or "[1:00:05] " before a line about progress.
var elapsed = regexp.MustCompile(`^\[[0-9:]+\]`)

func (t *textLines) Write(p []byte) (int, error) {
	if t.err != nil {
		return 0, t.err
	}
	for part := range bytes.Lines(p) {
		t.rest = append(t.rest, part...)
		if len(t.rest) > maxLine {
			t.err = fmt.Errorf("%w (a line of over %d bytes)", ErrTooMuch, maxLine)
		} else if part[len(part)-1] == '\n' {
			t.line(bytes.TrimRight(t.rest, "\r\n"))
			t.rest = t.rest[:0]
		}
		if t.err != nil {
			return 0, t.err
		}
	}
	return len(p), nil
}

func (t *textLines) line(line []byte) {
	if news := elapsed.ReplaceAll(line, nil); t.each == nil && !bytes.Equal(news, t.last) {
		t.last = slices.Clone(news)
		t.n.Add(1)
	}
	if t.each != nil {
		t.err = t.each(line)
	}
}

func (t *textLines) progress() int64 { return t.n.Load() }
func (t *textLines) failed() error   { return t.err }
func (t *textLines) reset() {
	t.rest, t.last, t.err = nil, nil, nil
}

// A reporter reads the status lines of backup and restore, and the summary.
type reporter struct {
	textLines
	last    Status
	summary struct {
		ID     string `json:"snapshot_id"`
		Added  int64  `json:"data_added"`
		Packed *int64 `json:"data_added_packed"`
		Files  int64  `json:"total_files_processed"`
		Bytes  int64  `json:"total_bytes_processed"`
	}
}

func newReporter(report func(Status)) *reporter {
	r := &reporter{}
	r.each = func(line []byte) error {
		if !bytes.HasPrefix(line, []byte("{")) {
			return nil
		}
		var status struct {
			Type       string `json:"message_type"`
			TotalFiles int64  `json:"total_files"`
			TotalBytes int64  `json:"total_bytes"`
			FilesDone  int64  `json:"files_done"`
			BytesDone  int64  `json:"bytes_done"`
			Files      int64  `json:"files_restored"`
			Bytes      int64  `json:"bytes_restored"`
		}
		if err := json.Unmarshal(line, &status); err != nil {
			return fmt.Errorf("%w: %w", ErrOutput, err)
		}
		switch status.Type {
		case "status":
			now := Status{status.FilesDone + status.Files, status.TotalFiles, status.BytesDone + status.Bytes, status.TotalBytes}
			if now == r.last {
				return nil
			}
			r.last = now
			r.n.Add(1)
			if report != nil {
				report(now)
			}
		case "summary":
			r.n.Add(1)
			if err := json.Unmarshal(line, &r.summary); err != nil {
				return fmt.Errorf("%w: %w", ErrOutput, err)
			}
		}
		return nil
	}
	return r
}

func (r *reporter) reset() {
	r.textLines.reset()
	r.last = Status{}
	r.summary.ID = ""
}

// A tail keeps the first and the last lines that are written.
type tail struct {
	head, end []string
	rest      []byte
}

const (
	tailLines = 100 // each of the two
	tailLine  = 16 << 10
)

func (t *tail) Write(p []byte) (int, error) {
	for part := range bytes.Lines(p) {
		if room := tailLine - len(t.rest); room > 0 {
			t.rest = append(t.rest, part[:min(len(part), room)]...)
		}
		if part[len(part)-1] == '\n' {
			t.add()
		}
	}
	return len(p), nil
}

func (t *tail) add() {
	line := strings.ToValidUTF8(strings.TrimRight(string(t.rest), "\r\n"), "\uFFFD")
	t.rest = t.rest[:0]
	switch {
	case len(t.head) < tailLines:
		t.head = append(t.head, line)
	case len(t.end) < tailLines:
		t.end = append(t.end, line)
	default:
		t.end = append(t.end[1:], line)
	}
}

func (t *tail) lines() []string {
	if len(t.rest) > 0 {
		t.add()
	}
	return append(t.head, t.end...)
}
