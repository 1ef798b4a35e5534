package main

import (
	"bytes"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

type helpCommand struct {
	Command string `arg:"" optional:"" help:"The command to describe; by default, all are listed."`
}

func (c *helpCommand) Run(s *session) error {
	args := []string{"--help"}
	if c.Command != "" {
		args = []string{c.Command, "--help"}
	}
	return s.dispatch(args)
}

type versionCommand struct{}

func (c *versionCommand) Run(s *session) error {
	return s.writeOutput(func(w io.Writer) error {
		_, err := io.WriteString(w, version()+"\n")
		return err
	})
}

// printHelp prints the help of a command, or that of all if node is the
// application, in lines of at most width columns.
func printHelp(out io.Writer, node *kong.Node, width int) error {
	w := new(bytes.Buffer)
	section := func(title string) { w.WriteString("\n" + title + ":\n") }
	if node.Type == kong.ApplicationNode {
		wrap(w, "Usage: "+commandName+" COMMAND [ARGUMENTS] [FLAGS]", "", width)
	} else {
		wrap(w, "Usage: "+usage(node), "", width)
	}
	for _, text := range []string{node.Help, node.Detail} {
		for _, paragraph := range paragraphs(text) {
			w.WriteString("\n")
			wrap(w, paragraph, "", width)
		}
	}
	if node.Type == kong.ApplicationNode {
		section("Commands")
		for _, c := range shown(node.Children) {
			w.WriteString("  " + c.Name + "\n")
			wrap(w, c.Help, "      ", width)
		}
	}
	if len(node.Positional) > 0 {
		section("Arguments")
		for _, arg := range node.Positional {
			w.WriteString("  " + argument(arg) + "\n")
			wrap(w, kong.DefaultHelpValueFormatter(arg), "      ", width)
		}
	}
	section("Flags")
	for _, f := range flagsOf(node) {
		w.WriteString("  " + flagForm(f) + "\n")
		wrap(w, kong.DefaultHelpValueFormatter(f.Value), "      ", width)
	}
	if node.Type == kong.ApplicationNode {
		section("Exit status")
		for _, s := range exitStatuses {
			w.WriteString("  " + s.status + "\n")
			wrap(w, s.meaning, "      ", width)
		}
		w.WriteString("\n")
		wrap(w, commandName+" help COMMAND describes a command with its flags.", "", width)
	}
	_, err := w.WriteTo(out)
	return err
}

// wrap prints text in lines of at most width columns.
func wrap(w *bytes.Buffer, text, indent string, width int) {
	used := 0
	for _, word := range strings.Fields(text) {
		n := textWidth(word)
		switch {
		case used == 0:
			w.WriteString(indent)
			used = len(indent)
		case used+1+n > width:
			w.WriteString("\n" + indent)
			used = len(indent)
		default:
			w.WriteByte(' ')
			used++
		}
		w.WriteString(word)
		used += n
	}
	w.WriteByte('\n')
}

func paragraphs(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n\n")
}

// shown returns the commands that are not hidden.
func shown(nodes []*kong.Node) (commands []*kong.Node) {
	for _, c := range nodes {
		if !c.Hidden {
			commands = append(commands, c)
		}
	}
	return commands
}

// flagsOf returns the flags that a command takes: its own, and then those of all
// commands.
func flagsOf(node *kong.Node) (flags []*kong.Flag) {
	for ; node != nil; node = node.Parent {
		for _, f := range node.Flags {
			if !f.Hidden {
				flags = append(flags, f)
			}
		}
	}
	return flags
}

// usage returns how a command is called.
func usage(node *kong.Node) string {
	words := []string{commandName, node.Name}
	for _, arg := range node.Positional {
		words = append(words, argument(arg))
	}
	return strings.Join(append(words, "[FLAGS]"), " ")
}

func argument(arg *kong.Positional) string {
	name := strings.ToUpper(arg.Name)
	if !arg.Required {
		return "[" + name + "]"
	}
	return name
}

// flagForm returns how a flag is written.
func flagForm(f *kong.Flag) string {
	form := "--" + f.Name
	if f.Short != 0 {
		form = "-" + string(f.Short) + ", " + form
	}
	if !f.IsBool() {
		form += "=" + f.PlaceHolder
	}
	return form
}
