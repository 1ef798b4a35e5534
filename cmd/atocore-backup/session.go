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
	"unicode/utf8"

	"golang.org/x/term"

	"github.com/atocore/backup"
)

// A session is one run of the command: what a subcommand works with.
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

// watch adds to opts what lets a person follow the work: the log if it was
// asked for, or else a progress bar if somebody can see it.
func (s *session) watch(opts *backup.Options) {
	switch {
	case s.verbose:
		opts.Logger = slog.New(slog.NewTextHandler(s.stderr, nil))
	case term.IsTerminal(int(s.stderr.Fd())) && os.Getenv("TERM") != "dumb":
		opts.OnProgress = s.meter.show
	}
}

// say writes one line for people.
func (s *session) say(format string, args ...any) {
	s.meter.clear()
	fmt.Fprintln(s.stderr, oneLine(fmt.Sprintf(format, args...)))
}

// canAsk tells whether there is a person who sees a question and can answer it.
func (s *session) canAsk() bool {
	return term.IsTerminal(int(s.stdin.Fd())) && term.IsTerminal(int(s.stderr.Fd()))
}

// ask puts a question and waits for a line.
func (s *session) ask(question string) (answer string, err error) {
	fmt.Fprint(s.stderr, oneLine(question)+" ")
	answered := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(s.stdin).ReadString('\n') // what ends it is no answer
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

// deliver writes the result to standard output. The work is over by then and
// nothing is left to clean up, so a signal may end the process as it usually
// does: a reader that has stalled would otherwise hold it for ever.
func (s *session) deliver(write func(io.Writer) error) error {
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

// oneLine keeps a message in its line and a terminal safe from bytes that come
// from file names: errors that were joined by line breaks are joined by
// semicolons, and what cannot be printed is escaped.
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
