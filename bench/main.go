// Bench compares this library with other tools for the same purpose, on the
// machine it runs on:
//
//	go run ./bench
//
// It creates its data in a temporary directory, which takes about 20 GB while it
// runs and some minutes to fill (-quick: a twentieth of both), and prints
// Markdown tables of medians. Each candidate runs in a separate process, so that
// its memory can be measured. The candidates of one table run in turn, in
// alternating order, so that a disk that is slow for a minute is slow for all of
// them. The output of a candidate is removed, and the disks are synced, before
// the next one starts. The input is in the page cache.
//
// Candidates that are not installed are left out, with a message for each. If
// run as root with mkfs.xfs installed, it also measures a file system that
// shares blocks between copies, on a loop device.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp), errors.Is(err, errUsage): // already printed
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("wrong arguments")

// run runs the program, or one of its child processes if args begin with "child".
func run(ctx context.Context, args []string, out, log io.Writer) error {
	if len(args) > 0 && args[0] == "child" {
		return runChild(ctx, args[1:], out)
	}
	b := &bench{out: out, log: log, scale: 1}
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.SetOutput(log)
	dir := flags.String("dir", "", "create the data in `DIR`, on the disk to be measured, and keep it for the next run")
	only := flags.String("only", "", "run only these `PARTS`, separated by commas: "+strings.Join(partNames(), ", "))
	flags.IntVar(&b.rounds, "rounds", 5, "run each candidate `N` times")
	quick := flags.Bool("quick", false, "use a twentieth of the data, to try the benchmark, not to measure")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *quick {
		b.scale = 20
	}
	chosen, err := choose(*only)
	if err != nil || flags.NArg() > 0 || b.rounds < 1 {
		if err == nil {
			err = errors.New("see -help")
		}
		fmt.Fprintln(log, "bench:", err)
		return errUsage
	}
	return b.main(ctx, *dir, chosen)
}

// A bench is one run of the program.
type bench struct {
	out, log io.Writer
	rounds   int
	scale    int64 // divisor of all sizes and counts

	dir   string // contains all data, on the disk that is measured
	self  string // path of this program, which also runs as a child
	tools tools
	floor float64 // peak memory of a child process that does nothing, in bytes
	goals []goal
	// leftovers are directories to remove at the end.
	leftovers []string
}

// A part is one table, which -only selects by name.
type part struct {
	name  string
	title string
	run   func(*bench, context.Context) error
}

var parts = []part{
	{"guard", "How long ingestion is paused", (*bench).guard},
	{"create", "Creating a snapshot of a database", (*bench).createDatabase},
	{"tree", "Creating a snapshot of a tree", (*bench).createTree},
	{"validate", "Validating", (*bench).validate},
	{"list", "Listing", (*bench).list},
	{"stall", "How long a writer waits", (*bench).stall},
	{"scale", "How the cost grows", (*bench).growth},
	{"offsite", "Copies on another machine", (*bench).offsite},
}

func partNames() []string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return names
}

func choose(only string) ([]part, error) {
	if only == "" {
		return parts, nil
	}
	var chosen []part
	for _, name := range strings.Split(only, ",") {
		i := slices.IndexFunc(parts, func(p part) bool { return p.name == strings.TrimSpace(name) })
		if i < 0 {
			return nil, fmt.Errorf("no part %q, only %s", name, strings.Join(partNames(), ", "))
		}
		chosen = append(chosen, parts[i])
	}
	return chosen, nil
}

// main measures the chosen parts. It removes its data at the end, unless keep
// names the directory to keep it in.
func (b *bench) main(ctx context.Context, keep string, chosen []part) (err error) {
	if b.self, err = os.Executable(); err != nil {
		return err
	}
	if keep == "" {
		b.dir, err = os.MkdirTemp("", "atocore-bench-")
	} else if b.dir, err = filepath.Abs(keep); err == nil {
		err = os.MkdirAll(b.dir, 0o755)
	}
	if err != nil {
		return err
	}
	defer func() {
		if keep == "" {
			b.leftovers = []string{b.dir}
		}
		for _, dir := range b.leftovers {
			err = errors.Join(err, removeAll(dir))
		}
	}()
	b.say("looking for peers")
	if b.tools, err = b.findTools(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.tools.remove()) }()
	nothing, err := b.compare(ctx, comparison{what: "a process that does nothing", candidates: []candidate{
		b.tool(b.self, "nothing", func(string) []string { return []string{"child", "nothing"} }),
	}})
	if err != nil {
		return err
	}
	b.floor = nothing[0].median(peak)
	b.describeMachine()
	for _, p := range chosen {
		fmt.Fprintf(b.out, "\n## %s\n\n", p.title)
		if err := p.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	b.printGoals()
	return nil
}

// say logs progress, since the benchmark takes a while.
func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(b.log, "bench: "+format+"\n", args...)
}
