package backup_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"time"

	_ "modernc.org/sqlite"

	"github.com/atocore/backup"
)

// exampleStore creates a machine store without a Chroma directory.
func exampleStore() (opts backup.Options, remove func()) {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	opts = backup.Options{
		DatabasePath: filepath.Join(dir, "atocore.db"),
		ChromaPath:   filepath.Join(dir, "chroma"),
		BackupDir:    filepath.Join(dir, "backups"),
		Clock:        fixedClock{time.Date(2026, 11, 24, 11, 54, 19, 0, time.UTC)},
	}
	db, err := sql.Open("sqlite", opts.DatabasePath)
	if err != nil {
		panic(err)
	}
	defer db.Close()
	if _, err := db.Exec("PRAGMA journal_mode=wal; CREATE TABLE memory (text TEXT); INSERT INTO memory VALUES ('hello')"); err != nil {
		panic(err)
	}
	return opts, func() { os.RemoveAll(dir) }
}

// fixedClock is a backup.Clock that stands still.
type fixedClock struct{ now time.Time }

func (c fixedClock) Now() time.Time { return c.now }

func Example() {
	opts, remove := exampleStore()
	defer remove()
	ctx := context.Background()

	meta, err := backup.CreateRuntimeBackup(ctx, opts)
	if err != nil {
		fmt.Println("nothing is left of the attempt:", err)
		return
	}
	fmt.Println("made", meta.Stamp)

	snapshots, err := backup.ListRuntimeBackups(ctx, opts)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, snapshot := range snapshots {
		report, err := backup.ValidateBackup(ctx, opts, snapshot.Stamp)
		switch {
		case err == nil:
			fmt.Println(snapshot.Stamp, "can be trusted")
		case errors.Is(err, backup.ErrInvalidBackup):
			fmt.Println(snapshot.Stamp, "must not be trusted:", report.Problems)
		default:
			fmt.Println(snapshot.Stamp, "could not be checked:", err)
		}
	}
	// Output:
	// made 20261124T115419Z
	// 20261124T115419Z can be trusted
}

// A service holds a mutex whenever it writes to its Chroma directory, and passes it
// to the backup as the ingestion guard.
func ExampleSyncLocker() {
	opts, remove := exampleStore()
	defer remove()
	if err := os.Mkdir(opts.ChromaPath, 0o755); err != nil {
		panic(err)
	}

	var ingestion sync.Mutex
	ingest := func(name string) {
		ingestion.Lock()
		defer ingestion.Unlock()
		if err := os.WriteFile(filepath.Join(opts.ChromaPath, name), []byte("vectors"), 0o600); err != nil {
			panic(err)
		}
	}
	ingest("data_level0.bin")

	opts.IncludeChroma = true
	opts.Locker = backup.SyncLocker(&ingestion)
	meta, err := backup.CreateRuntimeBackup(context.Background(), opts)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("files:", meta.ChromaSnapshotFiles, "bytes:", meta.ChromaSnapshotBytes)
	// Output:
	// files: 1 bytes: 7
}

// A channel serves as an ingestion guard. Waiting for it can be cancelled and
// leaves nothing behind, and it works in a bubble of testing/synctest.
func ExampleLocker() {
	opts, remove := exampleStore()
	defer remove()
	if err := os.Mkdir(opts.ChromaPath, 0o755); err != nil {
		panic(err)
	}

	ingestion := make(chan struct{}, 1) // a writer to the Chroma directory has sent to it and receives when it is done
	opts.IncludeChroma = true
	opts.Locker = backup.LockerFunc(func(ctx context.Context) (unlock func(), err error) {
		select {
		case ingestion <- struct{}{}:
			return func() { <-ingestion }, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	})

	meta, err := backup.CreateRuntimeBackup(context.Background(), opts)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("made", meta.Stamp)
	// Output:
	// made 20261124T115419Z
}

// If the guard fails, the backup fails with the guard's error and leaves nothing.
func ExampleLockerFunc() {
	opts, remove := exampleStore()
	defer remove()

	errMigrating := errors.New("a migration is running")
	opts.IncludeChroma = true
	opts.Locker = backup.LockerFunc(func(context.Context) (unlock func(), err error) {
		return nil, errMigrating
	})
	_, err := backup.CreateRuntimeBackup(context.Background(), opts)
	fmt.Println(errors.Is(err, errMigrating))
	fmt.Println(err)
	// Output:
	// true
	// create backup: take ingestion guard: a migration is running
}

// With a clock that stands still, the names of snapshots are known in advance.
func ExampleClock() {
	opts, remove := exampleStore()
	defer remove()

	opts.Clock = fixedClock{time.Date(2000, 1, 1, 0, 30, 0, 0, time.FixedZone("CET", 3600))}
	for range 2 {
		meta, err := backup.CreateRuntimeBackup(context.Background(), opts)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(meta.Stamp, meta.CreatedAt.Format(time.RFC3339))
	}
	// Output:
	// 19991231T233000Z 1999-12-31T23:30:00Z
	// 19991231T233000Z-002 1999-12-31T23:30:00Z
}

// A service acts on some errors.
func ExampleCreateRuntimeBackup_errors() {
	opts, remove := exampleStore()
	defer remove()

	opts.DatabasePath += ".moved"
	for range 3 {
		_, err := backup.CreateRuntimeBackup(context.Background(), opts)
		switch {
		case errors.Is(err, backup.ErrSourceChanged):
			continue // a writer ignored the guard: try again
		case errors.Is(err, backup.ErrNoSpace):
			fmt.Println("free some space, for instance by removing old snapshots")
		case errors.Is(err, fs.ErrNotExist):
			var pathErr *fs.PathError
			fmt.Println("there is no such file:", errors.As(err, &pathErr) && pathErr.Path == opts.DatabasePath)
		case err != nil:
			fmt.Println(err)
		}
		break
	}
	// Output:
	// there is no such file: true
}

// The progress of a long call can be logged with a line for each phase.
func ExampleProgress() {
	opts, remove := exampleStore()
	defer remove()

	var last backup.Phase
	opts.OnProgress = func(p backup.Progress) {
		if p.Phase != last {
			fmt.Println(p.Phase)
			last = p.Phase
		}
	}
	if _, err := backup.CreateRuntimeBackup(context.Background(), opts); err != nil {
		fmt.Println(err)
	}
	// Output:
	// init
	// database
	// registry
	// seal
	// hash
	// sync
	// publish
}

// The report of a damaged snapshot says what is wrong with it.
func ExampleValidateBackup() {
	opts, remove := exampleStore()
	defer remove()
	ctx := context.Background()
	meta, err := backup.CreateRuntimeBackup(ctx, opts)
	if err != nil {
		fmt.Println(err)
		return
	}

	if err := os.WriteFile(filepath.Join(meta.BackupRoot, "note.txt"), []byte("hi"), 0o600); err != nil {
		panic(err)
	}
	report, err := backup.ValidateBackup(ctx, opts, meta.Stamp)
	fmt.Println(errors.Is(err, backup.ErrInvalidBackup), report.Valid)
	for _, problem := range report.Problems {
		fmt.Println(problem.Code, problem.Path)
	}
	// Output:
	// true false
	// file_unknown note.txt
}

// A drill restores a snapshot into a scratch directory, which is removed afterwards.
// Every restored file is compared with the snapshot, byte by byte.
func ExampleRestoreRuntimeBackup() {
	opts, remove := exampleStore()
	defer remove()
	ctx := context.Background()
	meta, err := backup.CreateRuntimeBackup(ctx, opts)
	if err != nil {
		fmt.Println(err)
		return
	}

	scratch, err := os.MkdirTemp("", "drill")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(scratch)
	opts.DatabasePath = filepath.Join(scratch, "atocore.db")
	opts.ChromaPath = filepath.Join(scratch, "chroma")
	result, err := backup.RestoreRuntimeBackup(ctx, opts, meta.Stamp)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(result.Files, "file of", result.Stamp, "restored")
	// Output:
	// 1 file of 20261124T115419Z restored
}

// A service restores its store while it answers requests. They wait only while the
// new parts take the place of the old ones.
func ExampleRestoreRuntimeBackup_service() {
	opts, remove := exampleStore()
	defer remove()
	ctx := context.Background()
	meta, err := backup.CreateRuntimeBackup(ctx, opts)
	if err != nil {
		fmt.Println(err)
		return
	}

	var offline sync.RWMutex // every request holds it for reading
	var db *sql.DB
	open := func(ctx context.Context) (err error) {
		if db, err = sql.Open("sqlite", opts.DatabasePath); err != nil {
			return err
		}
		_, err = db.ExecContext(ctx, "PRAGMA journal_mode=wal")
		return err
	}
	if err := open(ctx); err != nil {
		fmt.Println(err)
		return
	}
	defer func() { db.Close() }()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		offline.RLock()
		defer offline.RUnlock()
		var text string
		if err := db.QueryRowContext(r.Context(), "SELECT group_concat(text) FROM memory").Scan(&text); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, text)
	}))
	defer server.Close()
	if _, err := db.Exec("INSERT INTO memory VALUES ('a mistake')"); err != nil {
		fmt.Println(err)
		return
	}

	opts.Offline = func(context.Context) (func(context.Context) error, error) {
		offline.Lock() // waits for the requests that are being answered
		resume := func(ctx context.Context) error {
			defer offline.Unlock()
			return open(ctx) // fails if the store must not be opened: then ctx is cancelled
		}
		if err := db.Close(); err != nil {
			return nil, errors.Join(err, resume(ctx))
		}
		return resume, nil
	}
	result, err := backup.RestoreRuntimeBackup(ctx, opts, meta.Stamp)
	if err != nil {
		fmt.Println(err)
		return
	}
	answer, err := server.Client().Get(server.URL)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	fmt.Println(string(text), err, "and the old store is in", result.SafetyStamp)
	// Output:
	// hello <nil> and the old store is in 20261124T115419Z-002
}

// Of two snapshots a day, prune keeps the last one of each of the last two days, and
// the oldest of all.
func ExamplePruneRuntimeBackups() {
	opts, remove := exampleStore()
	defer remove()
	ctx := context.Background()
	for day := 1; day <= 3; day++ {
		for _, hour := range []int{9, 17} {
			opts.Clock = fixedClock{time.Date(2026, 11, day, hour, 0, 0, 0, time.UTC)}
			if _, err := backup.CreateRuntimeBackup(ctx, opts); err != nil {
				fmt.Println(err)
				return
			}
		}
	}

	keep := backup.Retention{KeepDaily: 2, KeepYearly: 2}
	result, err := backup.PruneRuntimeBackups(ctx, opts, keep)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, k := range result.Kept {
		fmt.Println("kept   ", k.Stamp, k.Reasons)
	}
	for _, stamp := range result.Removed {
		fmt.Println("removed", stamp)
	}
	// Output:
	// kept    20261103T170000Z [newest snapshot daily snapshot yearly snapshot]
	// kept    20261102T170000Z [daily snapshot]
	// kept    20261101T090000Z [oldest yearly snapshot]
	// removed 20261103T090000Z
	// removed 20261102T090000Z
	// removed 20261101T170000Z
}
