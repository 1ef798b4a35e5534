package main

import (
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

type completionCommand struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"The shell: bash, zsh or fish."`
}

// Help returns the details for the help of this command.
func (c *completionCommand) Help() string {
	return `The script completes commands, flags, files and stamps; for stamps it looks into the backup directory that the command line or ATOCORE_BACKUP_DIR names.

For bash: eval "$(` + commandName + ` completion bash)" in ~/.bashrc.

For zsh: eval "$(` + commandName + ` completion zsh)" in ~/.zshrc, after compinit.

For fish: ` + commandName + ` completion fish > ~/.config/fish/completions/` + commandName + `.fish`
}

func (c *completionCommand) Run(s *session) error {
	return s.writeOutput(func(w io.Writer) error {
		_, err := io.WriteString(w, completionScripts[c.Shell])
		return err
	})
}

// completeVerb is what the scripts call, with the words of the command line up
// to the one to complete. The answer has a candidate in each line, with a
// description after a tab, or a line that asks the shell for files or directories.
const (
	completeVerb = "__complete"
	wantFiles    = ":files"
	wantDirs     = ":dirs"
)

var completionScripts = map[string]string{
	"bash": `# bash completion for atocore-backup
_atocore_backup() {
	local line word=${COMP_WORDS[COMP_CWORD]}
	[ "$word" = = ] && word=
	COMPREPLY=()
	while IFS= read -r line; do
		case $line in
		:files) compopt -o filenames 2>/dev/null; while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -f -- "$word") ;;
		:dirs) compopt -o filenames 2>/dev/null; while IFS= read -r line; do COMPREPLY+=("$line"); done < <(compgen -d -- "$word") ;;
		*) COMPREPLY+=("$(printf %q "${line%%$'\t'*}")") ;;
		esac
	done < <("$1" __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
}
complete -F _atocore_backup atocore-backup
`,
	"zsh": `#compdef atocore-backup
_atocore_backup() {
	local line
	local -a lines described
	lines=("${(@f)$("$words[1]" __complete "${(@)words[2,CURRENT]}" 2>/dev/null)}")
	[[ $words[CURRENT] == -*=* ]] && compset -P '*='
	for line in $lines; do
		case $line in
		:files) _files ;;
		:dirs) _files -/ ;;
		?*) described+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}") ;;
		esac
	done
	(( $#described )) && _describe atocore-backup described
}
if [ "${funcstack[1]}" = _atocore_backup ]; then
	_atocore_backup "$@"
else
	compdef _atocore_backup atocore-backup
fi
`,
	"fish": `# fish completion for atocore-backup
function __atocore_backup_complete
	set -l words (commandline -opc) (commandline -ct)
	set -l flag (string match -r -- '^--?[^=]+=' $words[-1])
	set -l value (string replace -r -- '^--?[^=]+=' '' $words[-1])
	for line in ($words[1] __complete $words[2..-1] 2>/dev/null)
		switch $line
			case :files
				for path in (__fish_complete_path $value)
					echo "$flag$path"
				end
			case :dirs
				for path in (__fish_complete_directories $value)
					echo "$flag$path"
				end
			case '*'
				echo "$flag$line"
		end
	end
end
complete -c atocore-backup -f -a '(__atocore_backup_complete)'
`,
}

// complete prints the candidates for the last word.
func (s *session) complete(words []string) error {
	parser, err := newParser(new(commandLine), io.Discard, 0, nil)
	if err != nil {
		return err
	}
	return s.writeOutput(func(w io.Writer) error {
		for _, c := range candidates(parser.Model.Node, words, os.Getenv) {
			line := c.text
			if c.about != "" {
				line += "\t" + c.about
			}
			if _, err := io.WriteString(w, line+"\n"); err != nil {
				return err
			}
		}
		return nil
	})
}

// A candidate is a text that may take the place of the word to complete.
type candidate struct{ text, about string }

// candidates returns what the last word may become.
func candidates(app *kong.Node, words []string, getenv func(string) string) []candidate {
	words = joinAssignments(words)
	if len(words) == 0 {
		words = []string{""}
	}
	before, current := words[:len(words)-1], words[len(words)-1]
	node := app
	var given []string // the arguments of node
	flagsEnd := false
	var pending *kong.Flag // the next word is its value
	backupDir := getenv("ATOCORE_BACKUP_DIR")
	for _, word := range before {
		name, value, assigned := strings.Cut(word, "=")
		flag := findFlag(node, name)
		switch {
		case pending != nil:
			if pending.Name == "backup-dir" {
				backupDir = word
			}
			pending = nil
		case flagsEnd, !strings.HasPrefix(word, "-"):
			if child := findCommand(node, word); child != nil {
				node = child
			} else {
				given = append(given, word)
			}
		case word == "--":
			flagsEnd = true
		case flag != nil && assigned && flag.Name == "backup-dir":
			backupDir = value
		case flag != nil && !assigned && !flag.IsBool():
			pending = flag
		}
	}
	name, _, assigned := strings.Cut(current, "=")
	switch flag := findFlag(node, name); {
	case pending != nil:
		return valuesOf(pending.PlaceHolder)
	case flagsEnd, !strings.HasPrefix(current, "-"):
	case assigned && flag != nil:
		return valuesOf(flag.PlaceHolder)
	default:
		return matching(flagCandidates(node), current)
	}
	if len(node.Children) > 0 {
		return matching(commandCandidates(node), current)
	}
	return matching(argumentCandidates(app, node, given, backupDir), current)
}

// argumentCandidates returns what the argument of a command may be that follows the
// given ones.
func argumentCandidates(app, node *kong.Node, given []string, backupDir string) []candidate {
	position := min(len(given), len(node.Positional)-1)
	if position < 0 || position < len(given) && !node.Positional[position].IsCumulative() {
		return nil
	}
	switch node.Positional[position].Name {
	case "stamp":
		return stampCandidates(pathOf(node), backupDir)
	case "archive":
		return []candidate{{wantFiles, ""}}
	case "command":
		for _, word := range given {
			if app = findCommand(app, word); app == nil {
				return nil
			}
		}
		return commandCandidates(app)
	case "shell":
		return []candidate{{"bash", ""}, {"fish", ""}, {"zsh", ""}}
	}
	return nil
}

// joinAssignments joins --flag, = and value, into which bash splits a word.
func joinAssignments(words []string) (joined []string) {
	for i := 0; i < len(words); i++ {
		last := len(joined) - 1
		if words[i] != "=" || last < 0 || !strings.HasPrefix(joined[last], "--") {
			joined = append(joined, words[i])
			continue
		}
		joined[last] += "="
		if i++; i < len(words) {
			joined[last] += words[i]
		}
	}
	return joined
}

func findFlag(node *kong.Node, word string) *kong.Flag {
	for _, f := range flagsOf(node) {
		if word == "--"+f.Name || f.Short != 0 && word == "-"+string(f.Short) {
			return f
		}
	}
	return nil
}

func findCommand(node *kong.Node, word string) *kong.Node {
	for _, c := range node.Children {
		if c.Name == word {
			return c
		}
	}
	return nil
}

// valuesOf returns what the shell offers for the value of a flag.
func valuesOf(placeholder string) []candidate {
	switch placeholder {
	case "FILE", "PATH":
		return []candidate{{wantFiles, ""}}
	case "DIR", "LOCATION":
		return []candidate{{wantDirs, ""}}
	}
	return nil
}

func flagCandidates(node *kong.Node) (list []candidate) {
	for _, f := range flagsOf(node) {
		list = append(list, candidate{"--" + f.Name, firstSentence(f.Help)})
	}
	return list
}

func commandCandidates(app *kong.Node) (list []candidate) {
	for _, c := range shown(app.Children) {
		list = append(list, candidate{c.Name, firstSentence(c.Help)})
	}
	return list
}

func firstSentence(s string) string {
	first, _, _ := strings.Cut(s, ". ")
	return strings.TrimSuffix(first, ".")
}

// stampCandidates returns the names of the snapshots, newest first. Names that a
// shell could not take, or that a terminal should not see, are left out.
func stampCandidates(command []string, backupDir string) (list []candidate) {
	switch strings.Join(command, " ") {
	case "restore", "drill", "validate", "export", "offsite push":
		list = append(list, candidate{latest, "the newest snapshot that a restore should take"})
	case "offsite pull", "offsite verify": // a look into the repository takes seconds
		return []candidate{{latest, "the newest copy"}}
	}
	if backupDir == "" {
		return list
	}
	entries, err := os.ReadDir(filepath.Join(backupDir, "snapshots"))
	if err != nil {
		return list
	}
	for _, e := range slices.Backward(entries) {
		if e.IsDir() && e.Name() == oneLine(e.Name()) {
			list = append(list, candidate{e.Name(), ""})
		}
	}
	return list
}

func matching(list []candidate, prefix string) []candidate {
	return slices.DeleteFunc(list, func(c candidate) bool { return !strings.HasPrefix(c.text, prefix) })
}
