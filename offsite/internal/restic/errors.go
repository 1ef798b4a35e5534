package restic

import (
	"cmp"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
)

// An ExitError reports that restic failed.
type ExitError struct {
	Command string // such as "backup"
	Code    int    // restic's exit code; -1 if a signal ended it
	Message string // restic's own, redacted, shortened and escaped; may be empty
	kind    error  // one of the package's errors, or nil
}

func (e *ExitError) Error() string {
	var b strings.Builder
	if e.kind != nil {
		fmt.Fprintf(&b, "%s: ", e.kind)
	}
	fmt.Fprintf(&b, "restic %s", e.Command)
	switch {
	case e.Message != "":
		fmt.Fprintf(&b, ": %s", e.Message)
	case e.Code < 0:
		b.WriteString(" was killed")
	default:
		fmt.Fprintf(&b, " ended with exit code %d", e.Code)
	}
	return b.String()
}

func (e *ExitError) Unwrap() error { return e.kind }

// Exit codes of restic 0.17 and newer (restic.readthedocs.io, "Scripting", "Exit
// codes"). Older ones have 1 for all of them, but 3 for an incomplete backup.
const (
	exitIncomplete   = 3
	exitNoRepository = 10
	exitLocked       = 11
	exitPassword     = 12
)

// classify returns the package's error for an exit of restic, or nil. Older
// versions than 0.17 say only in words what is wrong.
func classify(v Version, command string, code int, text string) error {
	switch {
	case code == exitIncomplete && command == "backup":
		return ErrIncomplete
	case saysDamaged(command, text):
		return ErrDamaged
	case strings.Contains(text, "Resolving password failed"), strings.Contains(text, "an empty password is not"):
		return ErrPassword // exit code 1 in all versions
	case v.hasExitCodes() && code == exitNoRepository:
		return ErrNoRepository
	case v.hasExitCodes() && code == exitLocked:
		return ErrBusy
	case v.hasExitCodes() && code == exitPassword:
		return ErrPassword
	case v.hasExitCodes() && v.known():
		return nil
	}
	switch {
	case strings.Contains(text, "repository is already locked"):
		return ErrBusy
	case strings.Contains(text, "wrong password or no key found"):
		return ErrPassword
	case strings.Contains(text, "unable to open config file") && saysMissing(text):
		return ErrNoRepository
	}
	return nil
}

// saysMissing reports whether the message of a backend is about an object that
// is not there. Restic before 0.17 asks "Is there a repository at the following
// location?" after every failure, even of the network.
func saysMissing(text string) bool {
	for _, phrase := range []string{
		"no such file or directory",
		"cannot find the file", "cannot find the path", // Windows
		"file does not exist",            // sftp, and os.ErrNotExist
		"key does not exist",             // S3: NoSuchKey
		"bucket does not exist",          // S3: NoSuchBucket
		"<config/> does not exist",       // rest, rclone, swift
		"object doesn't exist",           // GCS
		"BlobNotFound",                   // Azure
		"The specified blob does not",    // Azure
		"Object Not Found",               // Swift
		"Container Not Found",            // Swift
		"unexpected HTTP response (404)", // rest
	} {
		if strings.Contains(text, phrase) {
			return true
		}
	}
	return false
}

// saysDamaged reports whether a command ended because of damage of the repository.
// No version has an exit code for that. These words are those of 0.14, 0.18 and
// 0.19.
func saysDamaged(command, text string) bool {
	switch command {
	case "check":
		return strings.Contains(text, "repository contains errors") || strings.Contains(text, "LoadIndex returned errors")
	case "dump", "ls", "restore":
		return strings.Contains(text, "ciphertext verification failed") || strings.Contains(text, "invalid data returned") ||
			strings.Contains(text, "not found in repository") || strings.Contains(text, "(<data/") && saysMissing(text)
	}
	return false
}

// Bounds of what is taken of restic's words into an error.
const (
	maxMessage  = 500 // bytes
	maxProblems = 100
)

// message returns what restic's standard error says best about what went wrong.
func message(lines []string) string {
	fatal, first, last := "", "", ""
	for i, line := range lines {
		// Some errors end with a stack: a function, and after a tab its place.
		if strings.HasPrefix(line, "\t") || i+1 < len(lines) && strings.HasPrefix(lines[i+1], "\t") {
			continue
		}
		text, isFatal := strings.CutPrefix(strings.TrimSpace(line), "Fatal: ")
		switch {
		case strings.HasPrefix(text, "panic: "):
			return text
		case text == "" || isFootnote(text):
		case isFatal:
			fatal = strings.ReplaceAll(text, "Fatal: ", "") // some have it twice
		default:
			first, last = cmp.Or(first, text), text
		}
	}
	switch {
	case fatal == "":
		return strings.ReplaceAll(last, "Fatal: ", "")
	case strings.HasPrefix(fatal, "There were ") && first != "": // errors; so restore ends
		return fatal + ", such as: " + first
	}
	return fatal
}

// isFootnote reports whether restic prints the line after the message proper.
func isFootnote(line string) bool {
	for _, prefix := range []string{
		"lock was created at", "storage ID", "the `unlock` command", "Is there a repository at",
		"Warning: at least one source file",
	} {
		if strings.HasPrefix(line, prefix) {
			return true
		}
	}
	return false
}

// plainLines returns the lines of restic's standard error as text. With --json
// some versions write some of them as JSON objects.
func plainLines(raw []string) []string {
	var lines []string
	for _, line := range raw {
		var object struct {
			Type    string `json:"message_type"`
			Message string `json:"message"`
			Item    string `json:"item"`
			Error   *struct {
				Message string `json:"message"`
			} `json:"error"`
		}
		if !strings.HasPrefix(line, "{") || json.Unmarshal([]byte(line), &object) != nil || object.Type == "" {
			lines = append(lines, line)
			continue
		}
		text := object.Message
		if object.Error != nil {
			// Restic 0.14 has no message here, but fields of Go's.
			text = object.Item + ": " + cmp.Or(object.Error.Message, "could not be read")
		}
		if object.Type == "exit_error" && !strings.HasPrefix(text, "Fatal: ") {
			text = "Fatal: " + text // its other lines may be a stack
		}
		lines = append(lines, strings.Split(strings.TrimSpace(text), "\n")...)
	}
	return lines
}

// shorten makes a line fit for an error: no control characters, which could
// change a terminal, and at most maxMessage bytes.
func shorten(line string) string {
	if len(line) > maxMessage {
		line = strings.ToValidUTF8(line[:maxMessage], "") + "…"
	}
	quoted := strconv.QuoteToGraphic(line)
	return strings.NewReplacer(`\"`, `"`, `\\`, `\`).Replace(quoted[1 : len(quoted)-1])
}
