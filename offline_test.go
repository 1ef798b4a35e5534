package backup_test

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A service serves a store over HTTP: it notes what it is sent, and says which
// generation its store is of. Each answer is right, or 503 while it has no store.
type service struct {
	*backuptest.Store
	t       *testing.T
	server  *httptest.Server
	refuses bool // while it is offline; otherwise requests wait

	mu   sync.RWMutex // held for writing while the store is offline
	pool atomic.Pointer[sql.DB]

	resumed  int
	resumeIn func(ctx context.Context) error // called by resume, if set
	went     time.Time
	away     time.Duration
}

// newService creates a store of generation "old" with a snapshot of generation
// "new", and a service that uses it.
func newService(t *testing.T, params ...string) (s *service, stamp string) {
	t.Helper()
	store := backuptest.NewSmallStore(t)
	setGeneration := func(generation string) {
		backuptest.InDatabase(t, store.DatabasePath, func(db *sql.DB) {
			_, err := db.Exec(`CREATE TABLE IF NOT EXISTS notes (text); DELETE FROM notes;
				CREATE TABLE IF NOT EXISTS generation (name); DELETE FROM generation; INSERT INTO generation VALUES (?)`, generation)
			require.NoError(t, err)
		})
		backuptest.Write(t, store.RegistryPath, `{"generation":"`+generation+`"}`)
		backuptest.Write(t, store.InChroma("generation"), generation)
	}
	setGeneration("new")
	stamp = store.Create().Stamp
	setGeneration("old")
	s = &service{Store: store, t: t}
	require.NoError(t, s.open(params...))
	t.Cleanup(func() { s.pool.Load().Close() })
	s.server = httptest.NewServer(http.HandlerFunc(s.serve))
	t.Cleanup(s.server.Close)
	return s, stamp
}

func (s *service) open(params ...string) error {
	if len(params) == 0 {
		params = []string{"_pragma=journal_mode(wal)", "_pragma=busy_timeout(10000)"}
	}
	db, err := backuptest.Open(s.DatabasePath, params...)
	if err == nil {
		err = db.Ping()
	}
	s.pool.Store(db)
	return err
}

func (s *service) serve(w http.ResponseWriter, r *http.Request) {
	if s.refuses {
		if !s.mu.TryRLock() {
			http.Error(w, "offline", http.StatusServiceUnavailable)
			return
		}
	} else {
		s.mu.RLock()
	}
	defer s.mu.RUnlock()
	var generation string
	err := s.pool.Load().QueryRowContext(r.Context(), "SELECT name FROM generation").Scan(&generation)
	if note := r.URL.Query().Get("note"); err == nil && note != "" {
		_, err = s.pool.Load().ExecContext(r.Context(), "INSERT INTO notes VALUES (?)", note)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = io.WriteString(w, generation) // a client that is gone does not want it
}

// offline is Options.Offline.
func (s *service) offline(context.Context) (func(context.Context) error, error) {
	s.mu.Lock()
	s.went = time.Now() //nolint:forbidigo // it is logged only
	if err := s.pool.Load().Close(); err != nil {
		s.mu.Unlock()
		return nil, err
	}
	return s.resume, nil
}

func (s *service) resume(ctx context.Context) error {
	defer s.mu.Unlock()
	s.away = time.Since(s.went) //nolint:forbidigo // it is logged only
	s.resumed++
	var err error
	if s.resumeIn != nil {
		err = s.resumeIn(ctx)
	}
	return errors.Join(err, s.open())
}

// ask sends a request and returns the answer, "" for 503.
func (s *service) ask(note string) string {
	answer, err := s.server.Client().Get(s.server.URL + "/?note=" + url.QueryEscape(note))
	if err != nil {
		return err.Error()
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	switch {
	case err != nil:
		return err.Error()
	case answer.StatusCode == http.StatusServiceUnavailable:
		return ""
	}
	return string(text)
}

// notesIn returns the notes in a database file.
func notesIn(t *testing.T, path string) (notes []string) {
	t.Helper()
	backuptest.InDatabase(t, backuptest.CopyWithWAL(t, path), func(db *sql.DB) {
		rows, err := db.Query("SELECT text FROM notes")
		require.NoError(t, err)
		defer rows.Close()
		for rows.Next() {
			var note string
			require.NoError(t, rows.Scan(&note))
			notes = append(notes, note)
		}
		require.NoError(t, rows.Err())
	})
	return notes
}

// asideOf returns the directory with what was set aside of the part at path, or "".
func asideOf(result *backup.RestoreResult, path string) string {
	for _, aside := range result.SetAside {
		if strings.HasPrefix(aside, path+".set-aside-") {
			return aside
		}
	}
	return ""
}

// The store of a service that never stops answering is restored. Each answer is
// right, and each note is in the live store, in the safety snapshot, or in what was
// set aside.
func TestRestoreInARunningService(t *testing.T) {
	for name, refuses := range map[string]bool{"requests wait": false, "requests are refused": true} {
		t.Run(name, func(t *testing.T) {
			s, stamp := newService(t)
			s.refuses = refuses
			s.Offline = s.offline
			var clients sync.WaitGroup
			stop := make(chan struct{})
			var answered [4][]string // the notes that were acknowledged
			var wrong [4]string
			var some sync.WaitGroup // until every client has had an answer
			for i := range answered {
				some.Add(1)
				clients.Go(func() {
					generation := "old"
					for n := 0; ; n++ {
						note := string(rune('a'+i)) + strings.Repeat("x", n)
						switch answer := s.ask(note); {
						case answer == "" && refuses:
						case answer == "old" && generation == "old", answer == "new":
							generation = answer
							answered[i] = append(answered[i], note)
						default:
							wrong[i] = generation + ", then: " + answer
						}
						if n == 0 {
							some.Done()
						}
						select {
						case <-stop:
							return
						default:
						}
					}
				})
			}
			some.Wait()
			result, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, stamp)
			require.NoError(t, err)
			require.Equal(t, "new", s.ask("last"))
			close(stop)
			clients.Wait()
			require.Equal(t, [4]string{}, wrong)
			require.Equal(t, 1, s.resumed)
			t.Logf("offline for %s", s.away)

			kept := map[string]bool{}
			places := []string{s.DatabasePath, s.Snapshot(result.SafetyStamp).Path("db/atocore.db")}
			if aside := asideOf(result, s.DatabasePath); aside != "" {
				places = append(places, filepath.Join(aside, "atocore.db"))
			}
			for _, place := range places {
				for _, note := range notesIn(t, place) {
					kept[note] = true
				}
			}
			for _, notes := range answered {
				for _, note := range notes {
					require.True(t, kept[note], "%s is in none of %s", note, places)
				}
			}
			s.RequireNoRemains()
			require.Equal(t, "new", readFile(t, s.InChroma("generation")))
			require.Equal(t, `{"generation":"new"}`, readFile(t, s.RegistryPath))
		})
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(data)
}

// An old part that has more than the safety snapshot is set aside; one that has
// not is removed.
func TestOldPartsOfARunningService(t *testing.T) {
	wal := []string{"_pragma=journal_mode(wal)", "_pragma=busy_timeout(10000)"}
	for _, tt := range []struct {
		name   string
		params []string
		set    func(s *service)
		late   func(s *service) // right before the store is offline
		aside  func(s *service) string
		file   string
		want   string
	}{
		{name: "unchanged"},
		{name: "unchanged, in rollback mode", params: []string{"_pragma=journal_mode(delete)"}},
		{name: "unchanged, by the online backup", set: func(s *service) { s.OnlineBackup = true }},
		{name: "unchanged, through the host's handle", set: func(s *service) { s.DB = s.pool.Load() }},
		{name: "unchanged, without a checkpoint", params: append(wal[:2:2], "_pragma=wal_autocheckpoint(0)")},
		{
			name: "a row was written", late: func(s *service) { require.Equal(s.t, "old", s.ask("late")) },
			aside: func(s *service) string { return s.DatabasePath }, file: "atocore.db",
		},
		{
			name:  "the schema was changed",
			late:  func(s *service) { _, err := s.pool.Load().Exec("CREATE TABLE late (x)"); require.NoError(s.t, err) },
			aside: func(s *service) string { return s.DatabasePath }, file: "atocore.db",
		},
		{
			name: "the registry was written", late: func(s *service) { backuptest.Write(s.t, s.RegistryPath, `{"late":1}`) },
			aside: func(s *service) string { return s.RegistryPath }, file: "project-registry.json", want: `{"late":1}`,
		},
		{
			name: "a file of Chroma was written", late: func(s *service) { backuptest.Write(s.t, s.InChroma("generation"), "late") },
			aside: func(s *service) string { return s.ChromaPath }, file: "generation", want: "late",
		},
		{
			name: "a file of Chroma was created", late: func(s *service) { backuptest.Write(s.t, s.InChroma("late"), "late") },
			aside: func(s *service) string { return s.ChromaPath }, file: "late", want: "late",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, stamp := newService(t, tt.params...)
			require.Equal(t, "old", s.ask("before"))
			if tt.set != nil {
				tt.set(s)
			}
			s.Offline = func(ctx context.Context) (func(context.Context) error, error) {
				if tt.late != nil {
					tt.late(s)
				}
				return s.offline(ctx)
			}
			result, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, stamp)
			require.NoError(t, err)
			require.Equal(t, "new", s.ask(""))
			require.Contains(t, notesIn(t, s.Snapshot(result.SafetyStamp).Path("db/atocore.db")), "before")
			s.RequireNoRemains()
			if tt.aside == nil {
				require.Empty(t, result.SetAside)
				return
			}
			require.Len(t, result.SetAside, 1)
			aside := asideOf(result, tt.aside(s))
			require.NotEmpty(t, aside, result.SetAside)
			if tt.want != "" {
				require.Equal(t, tt.want, readFile(t, filepath.Join(aside, tt.file)))
			} else {
				require.Contains(t, notesIn(t, filepath.Join(aside, tt.file)), "before")
			}
		})
	}
}

// However a restore ends after Offline, the store is whole, and resume was called
// once.
func TestOfflineThatFails(t *testing.T) {
	failed := errors.New("of the host")
	type host struct {
		*service
		cancel context.CancelFunc
	}
	for _, tt := range []struct {
		name    string
		do      func(h *host)
		want    error
		resumed int
		done    bool
	}{
		{name: "Offline returns an error", want: failed, do: func(h *host) {
			h.Offline = func(context.Context) (func(context.Context) error, error) { return h.resume, failed }
		}},
		{name: "Offline panics", want: backup.ErrPanic, do: func(h *host) {
			h.Offline = func(context.Context) (func(context.Context) error, error) { panic(failed) }
		}},
		{name: "cancelled before Offline", want: context.Canceled, do: func(h *host) {
			h.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseVerify {
					h.cancel()
				}
			}
		}},
		{name: "cancelled in Offline", want: context.Canceled, resumed: 1, do: func(h *host) {
			h.Offline = func(ctx context.Context) (func(context.Context) error, error) {
				h.cancel()
				return h.offline(ctx)
			}
		}},
		{name: "the database is still open", want: backup.ErrDatabaseInUse, resumed: 1, do: func(h *host) {
			h.Offline = func(ctx context.Context) (func(context.Context) error, error) {
				forgotten := backuptest.OpenDB(h.t, h.DatabasePath)
				require.NoError(h.t, forgotten.QueryRow("SELECT name FROM generation").Err())
				return h.offline(ctx)
			}
		}},
		{name: "the registry was removed meanwhile", want: backup.ErrSourceChanged, resumed: 1, do: func(h *host) {
			h.Offline = func(ctx context.Context) (func(context.Context) error, error) {
				require.NoError(h.t, os.Remove(h.RegistryPath))
				return h.offline(ctx)
			}
		}},
		{name: "OnProgress panics before the swap", want: backup.ErrPanic, resumed: 1, do: func(h *host) {
			h.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseSwap {
					panic(failed)
				}
			}
		}},
		{name: "OnProgress panics after the swap", want: backup.ErrPanic, resumed: 1, do: func(h *host) {
			swapped := false
			h.OnProgress = func(p backup.Progress) {
				swapped = swapped || p.Phase == backup.PhaseSwap
				if swapped && p.Phase == backup.PhaseVerify {
					panic(failed)
				}
			}
		}},
		{name: "resume fails after a failure", want: failed, resumed: 1, do: func(h *host) {
			h.resumeIn = func(context.Context) error { return failed }
			h.OnProgress = func(p backup.Progress) {
				if p.Phase == backup.PhaseSwap {
					h.cancel()
				}
			}
		}},
		{name: "resume fails", want: failed, resumed: 1, done: true, do: func(h *host) {
			h.resumeIn = func(context.Context) error { return failed }
		}},
		{name: "resume panics", want: backup.ErrPanic, resumed: 1, done: true, do: func(h *host) {
			h.resumeIn = func(context.Context) error { defer func() { require.NoError(h.t, h.open()) }(); panic(failed) }
		}},
		{name: "nothing to resume", done: true, do: func(h *host) {
			h.Offline = func(context.Context) (func(context.Context) error, error) {
				return nil, h.pool.Load().Close()
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, stamp := newService(t)
			s.Offline = s.offline
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			tt.do(&host{s, cancel})
			inner := s.resumeIn
			s.resumeIn = func(ctx context.Context) error {
				require.NoError(t, ctx.Err(), "the context of resume")
				if inner != nil {
					return inner(ctx)
				}
				return nil
			}
			before := s.Stamps()
			result, err := backup.RestoreRuntimeBackup(ctx, s.Options, stamp)
			if tt.want == nil {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, tt.want)
			}
			require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
			require.Equal(t, tt.resumed, s.resumed)
			s.RequireNoRemains()
			if tt.resumed == 0 && tt.done {
				require.NoError(t, s.open())
			}
			if !tt.done {
				require.Nil(t, result)
				require.Equal(t, "old", s.ask("after"))
				require.Equal(t, before, s.Stamps(), "the safety snapshot is removed")
				return
			}
			require.Equal(t, "new", s.ask("after"))
			require.Equal(t, stamp, result.Stamp)
			require.NotEmpty(t, result.SafetyStamp)
			require.Equal(t, s.DatabasePath, result.DatabasePath)
		})
	}
}

// The copies are compared before the store is offline, and after the swap it is
// made sure that they are the same files, or that they have the same content.
func TestCopiesOfARunningService(t *testing.T) {
	staged := func(s *service, part, name string) string {
		dir := map[string]string{"config": filepath.Dir(s.RegistryPath), "chroma": s.ChromaPath, "db": filepath.Dir(s.DatabasePath)}[part]
		found, err := filepath.Glob(filepath.Join(dir, ".atocore-restore-*-"+part, "new", name))
		require.NoError(s.t, err)
		require.Len(s.t, found, 1)
		return found[0]
	}
	flip := func(s *service, path string) {
		data := []byte(readFile(s.t, path))
		data[len(data)-1] ^= 1
		backuptest.Write(s.t, path, string(data))
	}
	const differs = "what was restored is not what the snapshot holds"
	for _, tt := range []struct {
		name    string
		before  func(s *service) // while the copies wait
		after   func(s *service) // after the swap
		want    string
		resumed int
	}{
		{name: "the staged database", before: func(s *service) { flip(s, staged(s, "db", "atocore.db")) }, want: differs},
		{name: "the staged registry", before: func(s *service) { flip(s, staged(s, "config", "project-registry.json")) }, want: differs},
		{name: "a staged file of Chroma", before: func(s *service) { flip(s, staged(s, "chroma", "generation")) }, want: differs},
		{
			name: "another registry in place", resumed: 1, want: differs,
			after: func(s *service) {
				backuptest.Write(s.t, s.RegistryPath+".new", `{"generation":"NEW"}`)
				require.NoError(s.t, os.Rename(s.RegistryPath+".new", s.RegistryPath))
			},
		},
		{name: "a file of Chroma in place", resumed: 1, want: differs, after: func(s *service) { backuptest.Write(s.t, s.InChroma("generation"), "NEW") }},
		{name: "one more file in Chroma", resumed: 1, want: differs, after: func(s *service) { backuptest.Write(s.t, s.InChroma("more"), "x") }},
		{name: "one file less in Chroma", resumed: 1, want: differs, after: func(s *service) { require.NoError(s.t, os.Remove(s.InChroma("generation"))) }},
		{
			name: "the same content in another file", resumed: 1,
			after: func(s *service) {
				for _, path := range []string{s.RegistryPath, s.InChroma("generation")} {
					require.NoError(s.t, os.Rename(backuptest.CopyOf(s.t, path), path))
				}
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, stamp := newService(t)
			s.Offline = s.offline
			swapped := false
			s.OnProgress = func(p backup.Progress) {
				swapped = swapped || p.Phase == backup.PhaseSwap
				if p.Phase != backup.PhaseVerify {
					return
				}
				if change := tt.before; !swapped && change != nil {
					tt.before = nil
					change(s)
				}
				if change := tt.after; swapped && change != nil {
					tt.after = nil
					change(s)
				}
			}
			_, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, stamp)
			require.Equal(t, tt.resumed, s.resumed)
			s.RequireNoRemains()
			if tt.want == "" {
				require.NoError(t, err)
				require.Equal(t, "new", s.ask(""))
				return
			}
			require.ErrorContains(t, err, tt.want)
			require.NotErrorIs(t, err, backup.ErrRestoreUnfinished)
			require.Equal(t, "old", s.ask(""))
			require.Equal(t, "old", readFile(t, s.InChroma("generation")))
			require.Equal(t, `{"generation":"old"}`, readFile(t, s.RegistryPath))
		})
	}
}

// If the old store can't be brought back, the host must not open it: the context
// of resume says so.
func TestOfflineStoreThatIsBroken(t *testing.T) {
	s, stamp := newService(t)
	var staging, away string
	s.Offline = s.offline
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	swapped := false
	s.OnProgress = func(p backup.Progress) {
		swapped = swapped || p.Phase == backup.PhaseSwap
		if swapped && p.Phase == backup.PhaseVerify && staging == "" {
			found, err := filepath.Glob(filepath.Join(filepath.Dir(s.RegistryPath), ".atocore-restore-*-config"))
			require.NoError(t, err)
			require.Len(t, found, 1)
			staging, away = found[0], filepath.Join(s.Dir, "away")
			require.NoError(t, os.Rename(staging, away))
			panic("of the host")
		}
	}
	var cause error
	s.resumeIn = func(ctx context.Context) error { cause = context.Cause(ctx); return ctx.Err() }
	_, err := backup.RestoreRuntimeBackup(ctx, s.Options, stamp)
	require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
	require.ErrorIs(t, err, backup.ErrPanic)
	require.ErrorIs(t, err, context.Canceled)
	require.ErrorIs(t, cause, backup.ErrRestoreUnfinished)
	require.Equal(t, 1, s.resumed)
	require.NoError(t, s.pool.Load().Close())
	require.NoError(t, os.Rename(away, staging))
	s.OnProgress, s.Offline = nil, nil
	result := s.Restore(stamp)
	require.Equal(t, "undone", result.Recovered)
}

// The guard is held while the store is offline, and no longer; the service writes
// to the new store before the old one is compared.
func TestGuardOfARunningService(t *testing.T) {
	s, stamp := newService(t)
	held, taken := false, 0
	s.Locker = backup.LockerFunc(func(context.Context) (func(), error) {
		held = true
		taken++
		return func() { held = false }, nil
	})
	s.Offline = func(ctx context.Context) (func(context.Context) error, error) {
		require.True(t, held)
		return s.offline(ctx)
	}
	s.resumeIn = func(context.Context) error {
		require.True(t, held)
		return nil
	}
	s.Restore(stamp)
	require.False(t, held)
	require.Equal(t, 1, taken)
	require.Equal(t, "new", s.ask("after"))
}

// If the comparison with the safety snapshot is cancelled, or that cannot be read,
// the old parts are set aside, and the restore is done all the same.
func TestOldPartsThatAreNotCompared(t *testing.T) {
	for name, resume := range map[string]func(s *service, cancel context.CancelFunc){
		"cancelled":       func(_ *service, cancel context.CancelFunc) { cancel() },
		"safety is gone":  func(s *service, _ context.CancelFunc) { s.removeSafety("") },
		"its database is": func(s *service, _ context.CancelFunc) { s.removeSafety("db/atocore.db") },
	} {
		t.Run(name, func(t *testing.T) {
			s, stamp := newService(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			s.Offline = s.offline
			s.resumeIn = func(context.Context) error { resume(s, cancel); return nil }
			result, err := backup.RestoreRuntimeBackup(ctx, s.Options, stamp)
			require.NoError(t, err)
			require.Equal(t, "new", s.ask(""))
			aside := asideOf(result, s.DatabasePath)
			require.NotEmpty(t, aside)
			require.Empty(t, notesIn(t, filepath.Join(aside, "atocore.db")))
			s.RequireNoRemains()
		})
	}
}

// removeSafety removes the newest snapshot, or a file of it.
func (s *service) removeSafety(name string) {
	stamps, err := filepath.Glob(s.SnapshotPath("*"))
	require.NoError(s.t, err)
	s.RemoveAll(filepath.Join(stamps[len(stamps)-1], name))
}

// A place where nothing is can be restored to by a service that is about to open
// it.
func TestOfflineEmptyPlace(t *testing.T) {
	s, stamp := newService(t)
	dir := t.TempDir()
	s.DatabasePath = filepath.Join(dir, "atocore.db")
	s.RegistryPath = filepath.Join(dir, "registry.json")
	s.ChromaPath = filepath.Join(dir, "chroma")
	s.Offline = s.offline
	result := s.Restore(stamp)
	require.Empty(t, result.SafetyStamp)
	require.Equal(t, 1, s.resumed)
	require.Equal(t, "new", s.ask("after"))
}

// A handle of the host is refused without Offline, because it has the database
// open.
func TestRestoreRefusesAHandleWithoutOffline(t *testing.T) {
	s, stamp := newService(t)
	s.DB = s.pool.Load()
	_, err := backup.RestoreRuntimeBackup(t.Context(), s.Options, stamp)
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	require.ErrorContains(t, err, "Offline")
}
