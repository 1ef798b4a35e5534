package backuptest

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// CreatePhases are the phases of creating a snapshot, in their documented
// order. PhaseGuard is reported only if there is a Locker.
var CreatePhases = []backup.Phase{
	backup.PhaseInit, backup.PhaseGuard, backup.PhaseDatabase, backup.PhaseRegistry, backup.PhaseChroma,
	backup.PhaseSeal, backup.PhaseHash, backup.PhaseSync, backup.PhasePublish,
}

// A Clock is a backup.Clock that stands still.
type Clock struct{ Time time.Time }

// Now returns the clock's time.
func (c Clock) Now() time.Time { return c.Time }

// Noon stands at some microseconds past noon of a Tuesday.
var Noon = Clock{time.Date(2026, 11, 24, 12, 0, 0, 123456000, time.UTC)}

// A ClockFunc is a function as a backup.Clock.
type ClockFunc func() time.Time

// Now returns f().
func (f ClockFunc) Now() time.Time { return f() }

// A Guard is a backup.Locker that counts its use. It does not exclude anyone.
type Guard struct {
	Taken, Released int
	Held            bool
	// Events, if not nil, gets "lock" and "unlock" appended.
	Events *[]string
}

// Lock takes the guard.
func (g *Guard) Lock(context.Context) (unlock func(), err error) {
	g.Taken++
	g.Held = true
	g.note("lock")
	return func() {
		g.Released++
		g.Held = false
		g.note("unlock")
	}, nil
}

func (g *Guard) note(event string) {
	if g.Events != nil {
		*g.Events = append(*g.Events, event)
	}
}

// RequireReleased checks that the guard is not held, and that it was released
// once for each time it was taken.
func (g *Guard) RequireReleased(t *testing.T) {
	t.Helper()
	require.False(t, g.Held, "the guard is still held")
	require.Equal(t, g.Taken, g.Released)
}

// A Log holds what was logged.
type Log struct {
	mu   sync.Mutex
	text strings.Builder
}

// Record makes the store log into the Log that it returns.
func (s *Store) Record() *Log {
	log := new(Log)
	s.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{
		Level: slog.LevelDebug,
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey || a.Key == slog.LevelKey && a.Value.Any() == slog.LevelInfo {
				return slog.Attr{}
			}
			return a
		},
	}))
	return log
}

// Write appends text to the log.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

// Clear empties the log.
func (l *Log) Clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Reset()
}

// Lines returns the messages with their fields, one a line. A message whose
// level is not INFO has that before it.
func (l *Log) Lines() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text.Len() == 0 {
		return nil
	}
	lines := strings.Split(strings.TrimSuffix(l.text.String(), "\n"), "\n")
	for i := range lines {
		lines[i] = strings.Replace(lines[i], "msg=", "", 1)
	}
	return lines
}
