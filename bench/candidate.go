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

// A sample is the measurement of one run of a candidate. This program's children,
// and some of the peers, report it as JSON on standard output. For other programs
// it is the wall time of the process.
type sample struct {
	Seconds float64 `json:"seconds"`
	Guard   float64 `json:"guard,omitempty"` // how long the ingestion guard was held

	// For a writer that runs during a capture, in seconds.
	StallIdle    float64 `json:"stall_idle,omitempty"`    // its longest commit before the capture
	StallCapture float64 `json:"stall_capture,omitempty"` // during the capture
	StallWhole   float64 `json:"stall_whole,omitempty"`   // during the whole call
	Capture      float64 `json:"capture,omitempty"`       // how long the capture took

	// Peak is the peak resident memory of the largest process, in bytes.
	Peak int64 `json:"peak,omitempty"`

	// CPU is the processor time of the process and of those that it ran and waited
	// for, in seconds.
	CPU float64 `json:"-"`
	// Uploaded is the number of bytes that a push added to a repository.
	Uploaded int64 `json:"-"`
}

// A candidate is one of the programs or calls that are compared. run may create
// any files in dst, an empty directory.
type candidate struct {
	name string
	run  func(ctx context.Context, dst string) (sample, error)
}

// commands is a candidate that runs one or more processes, one after the other.
func (b *bench) commands(name string, argvs func(dst string) [][]string) candidate {
	return candidate{name: name, run: func(ctx context.Context, dst string) (total sample, err error) {
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

// runProcess runs a process and waits for it.
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
	if reported := bytes.TrimSpace(stdout.Bytes()); bytes.HasPrefix(reported, []byte(`{"seconds":`)) {
		if err := json.Unmarshal(reported, &s); err != nil {
			return s, fmt.Errorf("%s: %w", argv[0], err)
		}
	}
	s.CPU = (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	if s.Peak == 0 {
		s.Peak = peakMemory(cmd.ProcessState)
	}
	return s, nil
}

// A result holds the samples of all runs of one candidate.
type result struct {
	name    string
	samples []sample
}

// median returns the median of one measure.
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
func cpu(s sample) float64     { return s.CPU }

func uploaded(s sample) float64 { return float64(s.Uploaded) }

func median(values []float64) float64 {
	values = slices.Sorted(slices.Values(values))
	n := len(values)
	if n == 0 {
		return 0
	}
	return (values[(n-1)/2] + values[n/2]) / 2
}

// A comparison is the input of compare.
type comparison struct {
	what       string // for progress messages
	candidates []candidate
	// dir is the directory they copy to. If empty, it is the bench's own.
	dir string
	// manyFiles postpones the removal of the candidates' files to the very end.
	// On ext4 without a journal, creating files is up to 20 times slower for
	// minutes after many were removed, because it does not reuse their inodes
	// for that long, and the next candidate must not be charged for that.
	manyFiles bool
}

// compare runs the candidates in turn, in reverse order in every other round. Each
// gets a new directory, and the disks are synced before it starts.
func (b *bench) compare(ctx context.Context, c comparison) ([]result, error) {
	if c.dir == "" {
		c.dir = b.dir
	}
	results := make([]result, len(c.candidates))
	for i := range c.candidates {
		results[i].name = c.candidates[i].name
	}
	for round := range b.rounds {
		b.say("%s: round %d of %d", c.what, round+1, b.rounds)
		for i := range c.candidates {
			if round%2 == 1 {
				i = len(c.candidates) - 1 - i
			}
			s, err := b.runOnce(ctx, c, c.candidates[i])
			if err != nil {
				return nil, err
			}
			results[i].samples = append(results[i].samples, s)
		}
	}
	return results, nil
}

func (b *bench) runOnce(ctx context.Context, c comparison, chosen candidate) (s sample, err error) {
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
	return chosen.run(ctx, dst)
}

// removeAll removes a tree, even if directories in it are read-only.
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
