package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/atocore/backup"
)

// A session is one run of the command. Subcommands do their input and output
// through it.
type session struct {
	ctx     context.Context
	endWork func()
	stdin   *os.File
	stdout  *os.File
	stderr  *os.File
	verbose bool
	json    bool // print JSON on a terminal, too
	meter   meter
	unsaid  error // the first error of tell
}

func newSession(ctx context.Context, endWork func(), stdin, stdout, stderr *os.File) *session {
	return &session{ctx: ctx, endWork: endWork, stdin: stdin, stdout: stdout, stderr: stderr, meter: meter{out: stderr}}
}

// watch makes the progress of a call visible: with --verbose it sets the logger
// in opts, otherwise, if standard error is a terminal, a progress bar.
func (s *session) watch(opts *backup.Options) {
	switch {
	case s.verbose:
		opts.Logger = slog.New(slog.NewTextHandler(s.stderr, nil))
	case term.IsTerminal(int(s.stderr.Fd())) && !isDumb():
		opts.OnProgress = s.meter.show
	}
}

// waitFor is Options.Wait for the value of --wait, of which 0 means for ever; in
// the library it means that a backup directory in use is not waited for.
func waitFor(wait time.Duration) time.Duration { return cmp.Or(wait, math.MaxInt64) }

// announceWait makes a call say, once for each, that it waits for the database or
// the backup directory, if it has done so for a second. It must come after watch.
func (s *session) announceWait(opts *backup.Options) {
	const patience = time.Second
	show := opts.OnProgress
	backupDir, _ := filepath.Abs(opts.BackupDir)
	began := make(map[string]*time.Timer) // by path
	opts.OnProgress = func(p backup.Progress) {
		if show != nil {
			show(p)
		}
		if p.Phase != backup.PhaseWait {
			return
		}
		if began[p.Path] == nil {
			began[p.Path] = time.NewTimer(patience)
		}
		select {
		case <-began[p.Path].C:
			if p.Path == backupDir {
				s.say("Waiting for the backup directory %s, which another call is using.", p.Path)
			} else {
				s.say("Waiting for the database %s, which somebody keeps from being read.", p.Path)
			}
		default:
		}
	}
}

// say prints a message of one line to standard error.
func (s *session) say(format string, args ...any) {
	s.meter.clear()
	fmt.Fprintln(s.stderr, oneLine(fmt.Sprintf(format, args...)))
}

// forPeople reports whether the result is printed as tables and sentences: if
// standard output is a terminal, and --json is not given.
func (s *session) forPeople() bool { return !s.json && term.IsTerminal(int(s.stdout.Fd())) }

// tell prints a line of the result: for people to standard output, as a part of
// it, and otherwise to standard error, beside the JSON.
func (s *session) tell(format string, args ...any) {
	if !s.forPeople() {
		s.say(format, args...)
		return
	}
	s.meter.clear()
	_, err := fmt.Fprintln(s.stdout, oneLine(fmt.Sprintf(format, args...)))
	s.unsaid = cmp.Or(s.unsaid, err)
}

// canAsk reports whether a user can see a question and answer it.
func (s *session) canAsk() bool {
	return term.IsTerminal(int(s.stdin.Fd())) && term.IsTerminal(int(s.stderr.Fd()))
}

// ask prints a question and waits for a line of input.
func (s *session) ask(question string) (answer string, err error) {
	fmt.Fprint(s.stderr, oneLine(question)+" ")
	answered := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(s.stdin).ReadString('\n') // on EOF or an error, the input so far is the answer
		answered <- strings.TrimSpace(line)
	}()
	select {
	case answer = <-answered:
		return answer, nil
	case <-s.ctx.Done():
		fmt.Fprintln(s.stderr)
		return "", s.ctx.Err()
	}
}

// writeResult prints the JSON of a result with write, unless the result is for
// people.
func (s *session) writeResult(write func(io.Writer) error) error {
	if s.forPeople() {
		s.meter.clear()
		s.endWork()
		return nil
	}
	return s.writeOutput(write)
}

// writeTable prints a table if the result is for people. It must come after
// writeResult.
func (s *session) writeTable(t *table) {
	if !s.forPeople() {
		return
	}
	var text bytes.Buffer
	leftOut := t.print(&text, s.width(), isColoured())
	_, err := text.WriteTo(s.stdout)
	s.unsaid = cmp.Or(s.unsaid, err)
	if len(leftOut) > 0 {
		s.tell("(Too narrow for: %s. --json has everything.)", strings.Join(leftOut, ", "))
	}
}

// width returns the number of columns of the terminal that standard output is.
func (s *session) width() int { return widthOf(s.stdout) }

// widthOf returns the number of columns of a terminal, or 80 if it does not know
// them.
func widthOf(f *os.File) int {
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		return width
	}
	return 80
}

// isColoured reports whether a terminal shows colours and the user wants them
// (no-color.org).
func isColoured() bool {
	return os.Getenv("NO_COLOR") == "" && !isDumb()
}

// isDumb reports whether a terminal cannot rewrite a line or show colours.
func isDumb() bool {
	name := os.Getenv("TERM")
	return name == "" || name == "dumb"
}

// writeOutput writes to standard output. The work is finished by then and there
// is nothing left to clean up, so signals get their default effect back:
// otherwise, while a stalled reader blocks the write, a signal could not end the
// process.
func (s *session) writeOutput(write func(io.Writer) error) error {
	s.meter.clear()
	s.endWork()
	w := bufio.NewWriterSize(s.stdout, 1<<16)
	err := write(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = s.stdout.Close() // a network file system may report a failed write only here
	}
	if err != nil {
		return fmt.Errorf("print the result: %w", err)
	}
	return nil
}

// oneLine returns s as a single line that is safe to print on a terminal, since
// messages quote file names. It replaces the line breaks between joined errors
// with semicolons and escapes everything that is not printable.
func oneLine(s string) string {
	var b strings.Builder
	for s = strings.TrimRight(s, "\n"); s != ""; {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == '\n':
			b.WriteString("; ")
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\t':
			b.WriteByte(' ')
		case strconv.IsPrint(r):
			b.WriteRune(r)
		default:
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
		s = s[size:]
	}
	return b.String()
}
