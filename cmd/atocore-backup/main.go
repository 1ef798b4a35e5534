// Command atocore-backup takes snapshots of an AtoCore machine store while the
// store is in use, and lists, validates, restores and removes them. It can also
// rehearse a restore.
//
// On a terminal the result is a table or sentences; otherwise, or with --json, it
// is a single JSON document on standard output. Messages go to standard error.
// exit.go has the exit statuses.
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
		"On a terminal, results are tables and sentences; otherwise, and with --json, they are JSON on standard output. Messages go to standard error."
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
	Remove    removeCommand    `cmd:"" help:"Remove one snapshot, unless it may be needed to bring the store back."`
	Export    exportCommand    `cmd:"" help:"Write a snapshot as a tar archive to standard output or a file."`
	Import    importCommand    `cmd:"" help:"Add the snapshot in an archive of export to the backup directory."`
	Offsite   offsiteCommand   `cmd:"" help:"Keep encrypted copies of the snapshots in another place, and get them back."`
	Run       runCommand       `cmd:"" help:"Take, check and prune snapshots on a timetable, and serve a page and an API, until it is stopped."`

	Help       helpCommand       `cmd:"" help:"Describe the commands, or one of them."`
	Version    versionCommand    `cmd:"" help:"Print the version."`
	Completion completionCommand `cmd:"" help:"Print a script that completes command lines in a shell."`
	Man        manCommand        `cmd:"" help:"Print the manual page."`

	JSON        bool             `name:"json" help:"Print the result as JSON on a terminal, too, as in a pipe."`
	Verbose     bool             `short:"v" help:"Write the library's log to standard error."`
	VersionFlag kong.VersionFlag `name:"version" help:"Print the version and exit."`
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
	if len(args) > 0 && args[0] == completeVerb {
		return s.complete(args[1:])
	}
	var parsed commandLine
	var answer bytes.Buffer
	answered := false
	// By default, kong exits the process after --help and --version.
	parser, err := newParser(&parsed, &answer, s.width(), func(int) { answered = true })
	if err != nil {
		return err
	}
	if group := onlyGroup(parser.Model.Node, args); group != nil {
		if err := printHelp(s.stderr, group, widthOf(s.stderr)); err != nil {
			return err
		}
		return errNoCommand
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

// errNoCommand is the error for a command line without a command. The help has
// been printed instead.
var errNoCommand = errors.New("no command")

// onlyGroup returns the group of commands, or the application, that args name
// without naming a command in it, or nil.
func onlyGroup(node *kong.Node, args []string) *kong.Node {
	for _, word := range args {
		if node = findCommand(node, word); node == nil {
			return nil
		}
	}
	if len(node.Children) == 0 {
		return nil
	}
	return node
}

// newParser returns a parser of command lines, which writes help and version to
// answer and then calls exit.
func newParser(parsed *commandLine, answer io.Writer, width int, exit func(int)) (*kong.Kong, error) {
	return kong.New(parsed,
		kong.Name(commandName),
		kong.Description(description),
		kong.Vars{"version": version()},
		kong.Writers(answer, io.Discard),
		kong.KindMapper(reflect.String, kong.MapperFunc(decodeString)),
		kong.Help(func(_ kong.HelpOptions, ctx *kong.Context) error {
			node := ctx.Selected()
			if node == nil {
				node = ctx.Model.Node
			}
			return printHelp(ctx.Stdout, node, width)
		}),
		kong.Exit(exit),
	)
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
