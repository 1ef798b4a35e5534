package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
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
	meter   meter
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
	case term.IsTerminal(int(s.stderr.Fd())) && os.Getenv("TERM") != "dumb":
		opts.OnProgress = s.meter.show
	}
}

// announceWait makes a call say, once, that it waits for the database, if it has
// done so for a second. It must come after watch.
func (s *session) announceWait(opts *backup.Options) {
	const patience = time.Second
	show := opts.OnProgress
	var second *time.Timer // nil until the call waits
	opts.OnProgress = func(p backup.Progress) {
		if show != nil {
			show(p)
		}
		if p.Phase != backup.PhaseWait {
			return
		}
		if second == nil {
			second = time.NewTimer(patience)
		}
		select {
		case <-second.C:
			s.say("Waiting for the database %s, which somebody keeps from being read.", p.Path)
		default:
		}
	}
}

// say prints a message of one line to standard error.
func (s *session) say(format string, args ...any) {
	s.meter.clear()
	fmt.Fprintln(s.stderr, oneLine(fmt.Sprintf(format, args...)))
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

// writeResult writes the result to standard output. The work is finished by then
// and there is nothing left to clean up, so signals get their default effect
// back: otherwise, while a stalled reader blocks the write, a signal could not
// end the process.
func (s *session) writeResult(write func(io.Writer) error) error {
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
