package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// A sample is what one run of one way took. A child of ours, and a peer that
// can, tells it as JSON on its standard output; of the others the wall time
// of the process is taken.
type sample struct {
	Seconds float64 `json:"seconds"`
	Guard   float64 `json:"guard,omitempty"` // the ingestion guard was held for so long

	// Of a writer beside a capture, in seconds.
	StallIdle    float64 `json:"stall_idle,omitempty"`    // its longest commit before
	StallCapture float64 `json:"stall_capture,omitempty"` // during the capture
	StallWhole   float64 `json:"stall_whole,omitempty"`   // during the whole call
	Capture      float64 `json:"capture,omitempty"`       // the capture took so long

	// Peak is the largest process's peak resident memory, in bytes.
	Peak int64 `json:"peak,omitempty"`
}

// A way is one means to an end. run may put what it likes into dst, an empty
// directory.
type way struct {
	name string
	run  func(ctx context.Context, dst string) (sample, error)
}

// commands is a way of one or more processes, one after the other.
func (b *bench) commands(name string, argvs func(dst string) [][]string) way {
	return way{name: name, run: func(ctx context.Context, dst string) (total sample, err error) {
		for _, argv := range argvs(dst) {
			s, err := runProcess(ctx, argv)
			if err != nil {
				return total, fmt.Errorf("%s: %w", name, err)
			}
			s.Seconds += total.Seconds
			s.Peak = max(s.Peak, total.Peak)
			total = s
		}
		return total, nil
	}}
}

// runProcess runs a process to its end.
func runProcess(ctx context.Context, argv []string) (s sample, err error) {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err = cmd.Run()
	s.Seconds = time.Since(start).Seconds()
	if err != nil {
		if ctx.Err() != nil {
			return s, ctx.Err()
		}
		return s, fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	if told := bytes.TrimSpace(stdout.Bytes()); bytes.HasPrefix(told, []byte(`{"seconds":`)) {
		if err := json.Unmarshal(told, &s); err != nil {
			return s, fmt.Errorf("%s: %w", argv[0], err)
		}
	}
	if s.Peak == 0 {
		s.Peak = peakMemory(cmd.ProcessState)
	}
	return s, nil
}

// A result is what all runs of one way took.
type result struct {
	name    string
	samples []sample
}

// median gives the middle value of one measure.
func (r result) median(of func(sample) float64) float64 {
	values := make([]float64, len(r.samples))
	for i, s := range r.samples {
		values[i] = of(s)
	}
	return median(values)
}

func (r result) extremes(of func(sample) float64) (least, most float64) {
	least, most = of(r.samples[0]), of(r.samples[0])
	for _, s := range r.samples {
		least, most = min(least, of(s)), max(most, of(s))
	}
	return least, most
}

func seconds(s sample) float64 { return s.Seconds }
func guard(s sample) float64   { return s.Guard }
func peak(s sample) float64    { return float64(s.Peak) }

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	n := len(values)
	if n == 0 {
		return 0
	}
	return (values[(n-1)/2] + values[n/2]) / 2
}

// A contest is what compare runs.
type contest struct {
	what string // for whoever waits
	ways []way
	// dir is where they copy to; empty for the bench's own directory.
	dir string
	// manyFiles says that what the ways make is to be removed at the very end
	// only: on an ext4 without a journal, making files is up to 20 times
	// slower for minutes after many were removed (it leaves their inodes alone
	// so long), and the next way must not be charged for that.
	manyFiles bool
}

// compare runs the ways in turn, every other round backwards. Each gets a new
// directory on a disk that has nothing else to do.
func (b *bench) compare(ctx context.Context, c contest) ([]result, error) {
	if c.dir == "" {
		c.dir = b.dir
	}
	results := make([]result, len(c.ways))
	for i, w := range c.ways {
		results[i].name = w.name
	}
	for round := range b.rounds {
		b.say("%s: round %d of %d", c.what, round+1, b.rounds)
		for i := range c.ways {
			if round%2 == 1 {
				i = len(c.ways) - 1 - i
			}
			s, err := b.runOnce(ctx, c, c.ways[i])
			if err != nil {
				return nil, err
			}
			results[i].samples = append(results[i].samples, s)
		}
	}
	return results, nil
}

func (b *bench) runOnce(ctx context.Context, c contest, w way) (s sample, err error) {
	dst, err := os.MkdirTemp(c.dir, "copy-")
	if err != nil {
		return s, err
	}
	if c.manyFiles {
		b.leftovers = append(b.leftovers, dst)
	} else {
		defer func() { err = errors.Join(err, removeAll(dst)) }()
	}
	syncDisks()
	return w.run(ctx, dst)
}

// removeAll removes a tree in which copied directories may be read-only.
func removeAll(dir string) error {
	err := os.RemoveAll(dir)
	if err == nil {
		return nil
	}
	_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			return os.Chmod(path, 0o755)
		}
		return nil
	})
	return os.RemoveAll(dir)
}
