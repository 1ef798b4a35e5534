package main

import (
	"bytes"
	"io"
	"runtime/debug"
	"strings"

	"github.com/alecthomas/kong"
)

type manCommand struct{}

// Help returns the details for the help of this command.
func (c *manCommand) Help() string {
	return "Example: " + commandName + " man > /usr/local/share/man/man1/" + commandName + ".1"
}

func (c *manCommand) Run(s *session) error {
	parser, err := newParser(new(commandLine), io.Discard, 0, nil)
	if err != nil {
		return err
	}
	return s.writeOutput(func(w io.Writer) error { return printMan(w, parser.Model.Node) })
}

// printMan prints the manual page, in the macros of man(7).
func printMan(out io.Writer, app *kong.Node) error {
	w := new(manWriter)
	w.line(`.TH ` + strings.ToUpper(roff(commandName)) + ` 1 "` + buildDate() + `" "` + commandName + `" "User Commands"`)
	w.line(".SH NAME")
	w.line(roff(commandName + " - snapshots of an AtoCore machine store"))
	w.line(".SH SYNOPSIS")
	w.line(".B " + roff(commandName))
	w.line(`.I COMMAND`)
	w.line(`[\fIARGUMENTS\fR] [\fIFLAGS\fR]`)
	w.line(".SH DESCRIPTION")
	w.text(app.Help)
	w.line(".SH COMMANDS")
	for _, c := range leavesOf(app) {
		w.line(".SS " + roff(strings.TrimPrefix(strings.TrimSuffix(usage(c), " [FLAGS]"), commandName+" ")))
		w.text(c.Help)
		if c.Detail != "" {
			w.line(".PP")
			w.text(c.Detail)
		}
		for _, arg := range c.Positional {
			w.item(argument(arg), kong.DefaultHelpValueFormatter(arg))
		}
		for _, f := range c.Flags {
			if !f.Hidden && len(f.Envs) == 0 {
				w.item(flagForm(f), kong.DefaultHelpValueFormatter(f.Value))
			}
		}
	}
	w.line(".SH FLAGS OF ALL COMMANDS")
	for _, f := range flagsOf(app) {
		w.item(flagForm(f), kong.DefaultHelpValueFormatter(f.Value))
	}
	w.line(".SH THE STORE")
	w.text("Commands that need the store or its snapshots take these flags, all of them.")
	for _, f := range storeFlagsOf(app) {
		w.item(flagForm(f), kong.DefaultHelpValueFormatter(f.Value))
	}
	w.line(".SH THE REPOSITORY")
	w.text("The commands of offsite take these flags, and so do create and run for their --push.")
	for _, f := range repositoryFlagsOf(app) {
		w.item(flagForm(f), kong.DefaultHelpValueFormatter(f.Value))
	}
	w.line(".SH EXIT STATUS")
	for _, s := range exitStatuses {
		w.item(s.status, s.meaning)
	}
	w.line(".SH ENVIRONMENT")
	for _, f := range append(storeFlagsOf(app), repositoryFlagsOf(app)...) {
		w.item(f.Envs[0], "The value of --"+f.Name+" if that is not given.")
	}
	w.item("NO_COLOR", "If it is not empty, tables have no colours.")
	w.line(".SH SEE ALSO")
	w.text("The guides in docs/ of github.com/atocore/backup: command.md, deploy.md, offsite.md, restore.md.")
	_, err := w.WriteTo(out)
	return err
}

// storeFlagsOf returns the flags that locate the store.
func storeFlagsOf(app *kong.Node) []*kong.Flag {
	return flagsFromEnv(findCommand(app, "list"))
}

// repositoryFlagsOf returns the flags that locate the repository of the copies.
func repositoryFlagsOf(app *kong.Node) []*kong.Flag {
	return flagsFromEnv(findCommand(findCommand(app, "offsite"), "list"))
}

// flagsFromEnv returns the flags of a command that have a variable.
func flagsFromEnv(command *kong.Node) (flags []*kong.Flag) {
	for _, f := range command.Flags {
		if len(f.Envs) > 0 {
			flags = append(flags, f)
		}
	}
	return flags
}

// buildDate returns the day of the commit that the program was built from, or an
// empty text if it is not known.
func buildDate() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.time" && len(s.Value) >= len("2006-01-02") {
				return s.Value[:len("2006-01-02")]
			}
		}
	}
	return ""
}

// A manWriter prints lines of a manual page.
type manWriter struct{ bytes.Buffer }

func (w *manWriter) line(s string) { w.WriteString(s + "\n") }

func (w *manWriter) text(s string) {
	for i, paragraph := range paragraphs(s) {
		if i > 0 {
			w.line(".PP")
		}
		w.wrapped(paragraph)
	}
}

// wrapped prints a paragraph in short lines, as roff sources have them.
func (w *manWriter) wrapped(s string) {
	var b bytes.Buffer
	wrap(&b, s, "", 70)
	for line := range strings.Lines(b.String()) {
		w.line(roff(strings.TrimSuffix(line, "\n")))
	}
}

func (w *manWriter) item(tag, text string) {
	w.line(".TP")
	w.line(`.B ` + strings.ReplaceAll(roff(tag), " ", `\ `))
	w.wrapped(text)
}

// roff escapes a text of a single line.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`).Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}
