package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"go/parser"
	"go/token"
	"log/slog"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// All calls of the library are in one short file.
func TestBackupCodeIsShort(t *testing.T) {
	code, err := os.ReadFile("backup.go")
	require.NoError(t, err)
	require.LessOrEqual(t, bytes.Count(code, []byte("\n")), 25)
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		require.NoError(t, err)
		for _, spec := range parsed.Imports {
			if file != "backup.go" && !strings.HasSuffix(file, "_test.go") {
				require.NotContains(t, spec.Path.Value, "atocore/backup", file)
			}
		}
	}
}

// The schedule creates a snapshot each hour, and removes those that the retention
// does not keep. A step that fails is logged, and tried again.
func TestSchedule(t *testing.T) {
	var log bytes.Buffer
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h, err := newHost(t.Context(), dir, time.Hour, slog.New(slog.NewTextHandler(&log, nil)))
		require.NoError(t, err)
		blocked := filepath.Join(dir, "backups")
		require.NoError(t, os.WriteFile(blocked, nil, 0o600))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- h.schedule(ctx) }()
		time.Sleep(30 * time.Minute) // the clock of the bubble begins at midnight
		require.NoError(t, os.Remove(blocked))
		time.Sleep(72 * time.Hour)
		cancel()
		require.ErrorIs(t, <-ended, context.Canceled)
		require.NoError(t, h.store.close())
		require.True(t, strings.Contains(log.String(), "msg=observed_call_failed kind="), "the failure is not logged")

		list, err := backup.ListRuntimeBackups(t.Context(), optionsOf(h))
		require.NoError(t, err)
		var days []string
		for i, snapshot := range list {
			require.True(t, *snapshot.Verified)
			if len(list)-i > 24 {
				days = append(days, snapshot.Metadata.CreatedAt.Format(time.DateOnly))
			}
		}
		// The oldest, the last of each day, and the last 24.
		require.Equal(t, []string{"2000-01-01", "2000-01-01", "2000-01-02"}, days)
	})
}

// While the parts are swapped, requests wait, and ingestions do for the whole restore.
func TestRequestsWaitForTheSwap(t *testing.T) {
	h, s := newSite(t)
	require.NoError(t, h.store.putNote(t.Context(), "a", "old"))
	meta, err := backup.CreateRuntimeBackup(t.Context(), optionsOf(h))
	require.NoError(t, err)
	require.NoError(t, h.store.putNote(t.Context(), "a", "new"))

	answers := make(chan string)
	var phases []backup.Phase
	opts := optionsOf(h)
	opts.OnProgress = func(p backup.Progress) {
		if !slices.Contains(phases, p.Phase) {
			phases = append(phases, p.Phase)
		}
		switch p.Phase {
		case backup.PhaseStage:
			assert.False(t, h.store.ingestion.TryLock(), "an ingestion can begin")
			text, err := h.store.note(t.Context(), "a")
			assert.NoError(t, err)
			assert.Equal(t, "new", text, "the store is not served any more")
		case backup.PhaseSwap:
			assert.False(t, h.store.online.TryRLock(), "a request can begin")
			go func() {
				_, answer := s.send("GET", "/notes/a", "")
				answers <- answer
			}()
		}
	}
	_, err = backup.RestoreRuntimeBackup(t.Context(), opts, meta.Stamp)
	require.NoError(t, err)
	require.Equal(t, "old", <-answers)
	require.Subset(t, phases, []backup.Phase{backup.PhaseStage, backup.PhaseSwap})
}

// If the restored database can't be opened, the restore is done and the store stays
// offline, until another restore.
func TestStoreThatCannotBeOpened(t *testing.T) {
	h, s := newSite(t)
	require.NoError(t, h.store.putNote(t.Context(), "a", "right"))
	_, err := h.store.db.Exec("ALTER TABLE note RENAME TO other; CREATE INDEX note ON other (text)")
	require.NoError(t, err)
	bad := s.create()
	_, err = h.store.db.Exec("DROP INDEX note; ALTER TABLE other RENAME TO note")
	require.NoError(t, err)

	status, answer := s.send("POST", mount+bad+"/restore", "")
	require.Equal(t, 500, status, answer)
	var body struct{ Result backup.RestoreResult }
	require.NoError(t, json.Unmarshal([]byte(answer), &body))
	require.NotEmpty(t, body.Result.Parts, "it is done")
	s.must(503, "GET", "/notes/a", nil)
	s.must(503, "POST", "/projects/apollo/documents", nil)

	s.restore(body.Result.SafetyStamp)
	status, answer = s.send("GET", "/notes/a", "")
	require.Equal(t, 200, status)
	require.Equal(t, "right", answer)
}

// A store that a restore could not bring back is not touched: the context of resume
// has ended then.
func TestStoreThatMustNotBeOpened(t *testing.T) {
	h, s := newSite(t)
	resume, err := h.store.offline(t.Context())
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(filepath.Dir(h.store.database))) // as if the parts were on their way
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(backup.ErrRestoreUnfinished)
	require.ErrorIs(t, resume(ctx), backup.ErrRestoreUnfinished)
	require.NoDirExists(t, filepath.Dir(h.store.database))
	s.must(503, "GET", "/notes/a", nil)
}

// killedIn are the phases in which roleKilled ends; the second time that a restore
// verifies is after the swap.
var killedIn = map[string]struct {
	phase backup.Phase
	after backup.Phase
}{
	"before the swap": {phase: backup.PhaseSwap},
	"after the swap":  {phase: backup.PhaseVerify, after: backup.PhaseSwap},
}

// roleKilled creates a store with a snapshot in dir, and ends as if it were killed in
// the middle of restoring it.
func roleKilled(p *backuptest.Parent, args []string) error {
	ctx := context.Background()
	h, err := newHost(ctx, args[0], time.Hour, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	if err := h.store.putNote(ctx, "a", "right"); err != nil {
		return err
	}
	opts := optionsOf(h)
	meta, err := backup.CreateRuntimeBackup(ctx, opts)
	if err != nil {
		return err
	}
	p.Say(meta.Stamp)
	at := killedIn[args[1]]
	reached := at.after == ""
	opts.OnProgress = func(p backup.Progress) {
		reached = reached || p.Phase == at.after
		if reached && p.Phase == at.phase {
			os.Exit(7)
		}
	}
	_, err = backup.RestoreRuntimeBackup(ctx, opts, meta.Stamp)
	return fmt.Errorf("restored: %w", err)
}

// A service that was killed in the middle of a restore doesn't open its store when it
// starts again. It lists its snapshots, and restores.
func TestStartAfterAnInterruptedRestore(t *testing.T) {
	for name := range killedIn {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			killed := backuptest.Start(t, "killed", dir, name)
			stamp := killed.Hear()
			_ = killed.Cmd.Wait()
			require.Equal(t, 7, killed.Cmd.ProcessState.ExitCode(), killed.Stderr)

			server := httptest.NewServer(newTestHost(t, dir).handler())
			defer server.Close()
			s := &site{t, server.URL}
			s.must(503, "GET", "/notes/a", nil)
			s.must(503, "POST", mount, nil)
			var body struct{ Result []backup.Snapshot }
			s.must(503, "GET", mount, &body)
			require.NotEmpty(t, body.Result)
			require.Equal(t, stamp, body.Result[0].Stamp)

			require.NotEmpty(t, s.restore(stamp).Recovered)
			status, answer := s.send("GET", "/notes/a", "")
			require.Equal(t, 200, status, answer)
			require.Equal(t, "right", answer)
			s.create()
		})
	}
}
