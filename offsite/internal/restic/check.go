package restic

import (
	"context"
	"errors"
	"strings"
)

// Check checks the structure of the repository, and reads a share of its data:
// readData is such as "5%", of packs that restic chooses at random, "100%" for
// all or "" for none. A damaged repository is no error: problems then has at least
// one line. The repository is locked exclusively before restic 0.15 or so.
func (p *Program) Check(ctx context.Context, readData string) (problems []string, err error) {
	args := []string{"check"}
	switch readData {
	case "", "0", "0%":
	case "100%":
		args = append(args, "--read-data")
	default:
		args = append(args, "--read-data-subset", readData)
	}
	lines, err := p.do(ctx, run{args: args, out: &textLines{}})
	if errors.Is(err, ErrDamaged) {
		return problemsIn(lines), nil
	}
	return nil, err
}

// problemsIn returns the lines of restic check that name damage, without its
// advice.
func problemsIn(lines []string) []string {
	var problems []string
	for _, line := range lines {
		line = strings.TrimPrefix(strings.TrimSpace(line), "error: ")
		switch {
		case line == "", len(problems) == maxProblems, strings.HasPrefix(line, "Fatal: "), isAdvice(line):
		default:
			problems = append(problems, shorten(line))
		}
	}
	if len(problems) == 0 {
		return []string{"restic check: the repository contains errors"}
	}
	return problems
}

// isAdvice reports whether restic check says what to do rather than what is wrong.
func isAdvice(line string) bool {
	for _, prefix := range []string{
		"The repository ", "restic repair ", "Damaged pack files can be caused", "This is non-critical",
		"You can run", "Stat(", "Load(", "List(",
	} {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return false
}
