package schedule

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// The files in the backup directory. docs/format.md describes them.
const (
	lockName  = ".atocore-schedule.lock"
	stateName = ".atocore-schedule.json"
	draftName = ".atocore-schedule.json.new"
)

// maxState bounds what is read of the state file.
const maxState = 1 << 20

// A state is what the snapshots do not say about a store. It is written by
// processes that held the lock, but anybody may have changed it, so it only ever
// decides whether something is done sooner or later.
type state struct {
	Pruned    string    `json:"pruned,omitempty"`   // the newest snapshot at the last prune
	Pushed    string    `json:"pushed,omitempty"`   // the snapshot that was pushed last
	Verified  string    `json:"verified,omitempty"` // the one that was verified last
	Verdict   verdict   `json:"verdict,omitempty"`  // and what was found
	DrilledAt time.Time `json:"drilled_at,omitzero"`
	Ahead     []string  `json:"ahead,omitempty"` // snapshots that were dated in the future when they were first seen
}

// A verdict is what is known about a snapshot. It is empty if nothing is.
type verdict string

const (
	valid    verdict = "valid"
	findings verdict = "findings" // intact, but SQLite or the JSON check objects to the content
	damaged  verdict = "damaged"
)

// A stateFile has the state of each store that has a schedule in the backup
// directory.
type stateFile struct {
	Version int              `json:"version"`
	Stores  map[string]state `json:"stores"`
}

// stateKey names a store in the file. Paths need not be UTF-8, as JSON must be.
func stateKey(host, database string) string {
	sum := sha256.Sum256([]byte(host + "\x00" + database))
	return hex.EncodeToString(sum[:16])
}

// readStates reads the state file. What cannot be read is taken for lost.
func readStates(backupDir string) stateFile {
	lost := stateFile{Version: 1, Stores: map[string]state{}}
	path := filepath.Join(backupDir, stateName)
	// A FIFO would block, and a link may lead anywhere.
	if info, err := os.Lstat(path); err != nil || !info.Mode().IsRegular() || info.Size() > maxState {
		return lost
	}
	f, err := os.Open(path)
	if err != nil {
		return lost
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return lost
	}
	return parseStates(data)
}

// parseStates decodes a state file.
func parseStates(data []byte) stateFile {
	var read stateFile
	if err := json.Unmarshal(data, &read); err != nil || read.Version != 1 || read.Stores == nil {
		return stateFile{Version: 1, Stores: map[string]state{}}
	}
	return read
}

// writeState replaces the state of one store in the file. It is not synced: a file
// that a power cut damages is lost, and that costs a push and a drill.
func writeState(backupDir, key string, stored state) (err error) {
	states := readStates(backupDir)
	const most = 1000 // stores; there is no order by which to drop some
	if len(states.Stores) > most {
		clear(states.Stores)
	}
	states.Stores[key] = stored
	data, err := json.MarshalIndent(states, "", "  ")
	if err != nil {
		return err
	}
	draft := filepath.Join(backupDir, draftName)
	if err := os.Remove(draft); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a process that was killed
		return err
	}
	f, err := os.OpenFile(draft, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(draft)
		}
	}()
	_, err = f.Write(append(data, '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(draft, filepath.Join(backupDir, stateName))
}
