// Command atocore-backup takes snapshots of an AtoCore machine store while the
// store is in use, and lists, validates, restores and removes them. It can also
// rehearse a restore.
//
// The result is a single JSON document on standard output; messages go to
// standard error. The exit status is 0 on success, 1 if the snapshot is not
// valid, and 2 on any other failure.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"

	"github.com/alecthomas/kong"
)

const (
	commandName = "atocore-backup"
	description = "Take snapshots of an AtoCore machine store while it is in use, and list, validate, restore and remove them.\n\n" +
		"Results are JSON on standard output; messages go to standard error. Exit status: " +
		"0 success; 1 the snapshot is not valid; 2 any other failure."
)

func main() {
	ctx, endWork := untilSignal()
	os.Exit(run(ctx, endWork, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// commandLine defines the subcommands and the flags that they share. A
// subcommand is a field with a Run method, which kong calls with the session.
type commandLine struct {
	Create    createCommand    `cmd:"" help:"Take a snapshot and print its metadata."`
	List      listCommand      `cmd:"" help:"List the snapshots, oldest first."`
	Status    statusCommand    `cmd:"" help:"Report on the snapshots, and fail if they are too old or not known to be valid."`
	Validate  validateCommand  `cmd:"" help:"Check a snapshot, or all, and print the report."`
	Restore   restoreCommand   `cmd:"" help:"Replace the store with a snapshot. No process may have the store open."`
	Drill     drillCommand     `cmd:"" help:"Restore a snapshot into a scratch directory, check the result, and delete it."`
	Protect   protectCommand   `cmd:"" help:"Protect a snapshot: no prune removes it."`
	Unprotect unprotectCommand `cmd:"" help:"End the protection of a snapshot."`
	Prune     pruneCommand     `cmd:"" help:"Remove the snapshots that no rule keeps."`

	JSON    bool             `name:"json" help:"Print the result as JSON on a terminal, too, as in a pipe."`
	Verbose bool             `short:"v" help:"Write the library's log to standard error."`
	Version kong.VersionFlag `help:"Print the version and exit."`
}

// run executes the command line args and returns the exit status. It calls
// endWork when ctx is no longer needed.
func run(ctx context.Context, endWork func(), args []string, stdin, stdout, stderr *os.File) int {
	s := newSession(ctx, endWork, stdin, stdout, stderr)
	err := s.dispatch(args)
	if err != nil && !isReported(err) {
		s.say("%s: %s", commandName, explain(ctx, err))
	}
	return exitStatus(ctx, err)
}

// dispatch parses args and runs the subcommand that they name.
func (s *session) dispatch(args []string) error {
	var parsed commandLine
	var answer bytes.Buffer
	answered := false
	parser, err := kong.New(&parsed,
		kong.Name(commandName),
		kong.Description(description),
		kong.Vars{"version": version()},
		kong.Writers(&answer, io.Discard),
		kong.KindMapper(reflect.String, kong.MapperFunc(decodeString)),
		// By default, kong exits the process after --help and --version.
		kong.Exit(func(int) { answered = true }),
	)
	if err != nil {
		return err
	}
	chosen, err := parser.Parse(args)
	if answered {
		return s.writeOutput(func(w io.Writer) error {
			_, err := answer.WriteTo(w)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("%w (see %s --help)", err, commandName)
	}
	s.verbose, s.json = parsed.Verbose, parsed.JSON
	err = chosen.Run(s)
	if err == nil && s.unsaid != nil {
		err = fmt.Errorf("print the result: %w", s.unsaid)
	}
	return err
}

// decodeString stores a value unchanged. Kong's own decoder passes it through
// JSON, which changes the bytes of a path that is not UTF-8.
func decodeString(ctx *kong.DecodeContext, target reflect.Value) error {
	if ctx.Scan.Peek().IsEOL() {
		return errors.New("a value is missing")
	}
	token, err := ctx.Scan.PopValue("string")
	if err != nil {
		return err
	}
	target.SetString(token.String())
	return nil
}

// explain returns the message for err. If a signal caused it, the message names
// the signal before err, which says what was going on: "context canceled" alone
// would not help a user.
func explain(ctx context.Context, err error) string {
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return fmt.Sprintf("cancelled: %v: %v", context.Cause(ctx), err)
	}
	return err.Error()
}
