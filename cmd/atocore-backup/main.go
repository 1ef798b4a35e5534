// Command atocore-backup takes snapshots of an AtoCore machine store while the
// store is in use, lists them, says whether one can be trusted, puts one back,
// rehearses that, and removes old ones.
//
// Standard output carries one JSON document and nothing else; words for people
// go to standard error. The exit status is 0 when the work is done or the
// snapshot is valid, 1 when the snapshot is not valid, and 2 when the work
// could not be done.
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
	description = "Take snapshots of an AtoCore machine store while it is in use, list and check them, put one back, remove old ones.\n\n" +
		"JSON goes to standard output, words for people to standard error. Exit status: " +
		"0 done, or valid; 1 the snapshot is not valid; 2 it could not be done."
)

const (
	exitDone    = 0
	exitInvalid = 1
	exitFailed  = 2
)

func main() {
	ctx, endWork := untilSignal()
	os.Exit(run(ctx, endWork, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// commandLine is what a user can say. A subcommand is a field with a Run
// method, which kong calls with the session.
type commandLine struct {
	Create   createCommand   `cmd:"" help:"Take a snapshot and print its metadata."`
	List     listCommand     `cmd:"" help:"List the snapshots, oldest first."`
	Validate validateCommand `cmd:"" help:"Check a snapshot and print the report."`
	Restore  restoreCommand  `cmd:"" help:"Put a snapshot back in the place of the store, which nobody may have open."`
	Drill    drillCommand    `cmd:"" help:"Restore a snapshot into a scratch directory, check what came back, and throw it away."`
	Prune    pruneCommand    `cmd:"" help:"Remove the snapshots that no rule keeps. The rules are restic's and add up."`

	Verbose bool             `short:"v" help:"Write the library's log to standard error."`
	Version kong.VersionFlag `help:"Print the version and exit."`
}

// run does what args ask for and gives the exit status. endWork is called when
// ctx is no longer needed.
func run(ctx context.Context, endWork func(), args []string, stdin, stdout, stderr *os.File) int {
	s := newSession(ctx, endWork, stdin, stdout, stderr)
	err := s.obey(args)
	switch {
	case err == nil:
		return exitDone
	case isInvalid(err):
		return exitInvalid
	}
	s.say("%s: %s", commandName, explain(ctx, err))
	return exitFailed
}

// obey parses args and runs the subcommand that they name.
func (s *session) obey(args []string) error {
	var parsed commandLine
	var answer bytes.Buffer
	answered := false
	parser, err := kong.New(&parsed,
		kong.Name(commandName),
		kong.Description(description),
		kong.Vars{"version": version()},
		kong.Writers(&answer, io.Discard),
		kong.KindMapper(reflect.String, kong.MapperFunc(decodeString)),
		// After --help and --version kong would end the process here.
		kong.Exit(func(int) { answered = true }),
	)
	if err != nil {
		return err
	}
	chosen, err := parser.Parse(args)
	if answered {
		return s.deliver(func(w io.Writer) error {
			_, err := answer.WriteTo(w)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("%w (%s --help tells more)", err, commandName)
	}
	s.verbose = parsed.Verbose
	return chosen.Run(s)
}

// decodeString takes a value as it is. Kong's own decoder passes it through
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

// explain says why there is no result. A signal is named, because "context
// canceled" tells a person nothing; what was going on at the time follows.
func explain(ctx context.Context, err error) string {
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		return fmt.Sprintf("cancelled: %v: %v", context.Cause(ctx), err)
	}
	return err.Error()
}
