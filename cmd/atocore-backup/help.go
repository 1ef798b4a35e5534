package main

import (
	"bytes"
	"io"
	"strings"

	"github.com/alecthomas/kong"
)

type helpCommand struct {
	Command []string `arg:"" optional:"" sep:"none" help:"The command to describe; by default, all are listed."`
}

func (c *helpCommand) Run(s *session) error {
	return s.dispatch(append(c.Command, "--help"))
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
	wrap(w, "Usage: "+usage(node), "", width)
	for _, text := range []string{node.Help, node.Detail} {
		for _, paragraph := range paragraphs(text) {
			w.WriteString("\n")
			wrap(w, paragraph, "", width)
		}
	}
	if len(node.Children) > 0 {
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
	}
	if len(node.Children) > 0 {
		w.WriteString("\n")
		wrap(w, strings.Join(append([]string{commandName, "help"}, append(pathOf(node), "COMMAND")...), " ")+" describes a command with its flags.", "", width)
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
	words := append([]string{commandName}, pathOf(node)...)
	if len(node.Children) > 0 {
		words = append(words, "COMMAND", "[ARGUMENTS]")
	}
	for _, arg := range node.Positional {
		words = append(words, argument(arg))
	}
	return strings.Join(append(words, "[FLAGS]"), " ")
}

// pathOf returns the words that name a command: none for the application.
func pathOf(node *kong.Node) (words []string) {
	for ; node.Parent != nil; node = node.Parent {
		words = append([]string{node.Name}, words...)
	}
	return words
}

// leavesOf returns the commands that can be called, each after the group that it
// is in.
func leavesOf(node *kong.Node) (commands []*kong.Node) {
	for _, c := range shown(node.Children) {
		commands = append(commands, c)
		commands = append(commands, leavesOf(c)...)
	}
	return commands
}

func argument(arg *kong.Positional) string {
	name := strings.ToUpper(arg.Name)
	if arg.IsCumulative() {
		name += "..."
	}
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
	switch {
	case !f.IsBool():
		form += "=" + f.PlaceHolder
	case f.PlaceHolder != "":
		form += "[=" + f.PlaceHolder + "]"
	}
	return form
}
