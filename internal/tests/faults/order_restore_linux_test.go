package faults

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

func init() {
	roles["restore"], roles["stop"], roles["recover"], roles["fail"] = beRestore, beStopped, beRecovering, beFailing
}

// beRestore restores the snapshot args[1] of the store in args[0].
func beRestore(_ *backuptest.Parent, args []string) error {
	_, err := backup.RestoreRuntimeBackup(context.Background(), backuptest.OptionsIn(args[0]), args[1])
	return err
}

// A rule is about events of a restore. An event is a change below the store, a
// line that is written to the journal, or the end of the call:
//
//	create PATH, mkdir PATH, remove PATH, rename PATH PATH, link PATH PATH
//	write PATH      the content is changed
//	change PATH     the mode, the owner or the time is changed
//	line TEXT       without its checksum; the first one is "line {"
//	end
//
// A path is relative to the store, and what is random in it is left out: a
// staging directory is called "staging-db", what is set aside "atocore.db.aside",
// the journal and the pointer "journal", a snapshot "STAMP", and one that is not
// visible "hidden".
//
// In the patterns, * is anything without a slash or a blank, ** is anything,
// (a|b) is a or b, and <part> and <name> are the same in all patterns of a rule.
type rule struct {
	on     string // the events
	except string // but not these
	when   string // if there was such an event before, in this call or an earlier one

	after   string   // then there was such an event before,
	gone    string   // there are no such paths,
	durable []string // and all changes of these paths are durable
	why     string
}

var restoreRules = []rule{
	// The journal and the pointer to it.
	{
		on:      "create data/journal",
		durable: []string{"data"},
		why:     "the journal vanishes with its directory",
	},
	{
		on: "**", except: "(create|write|remove) data/journal|line {",
		durable: []string{"data/journal"},
		why:     "nothing is done before the line that announces it is durable",
	},
	{
		on:    "create backups/journal",
		after: "line {",
		why:   "a pointer without a journal means that the journal's volume is missing",
	},
	{
		on: "(mkdir|create|rename|link) (data|config)/**", except: "* data/journal|mkdir data/chroma",
		durable: []string{"backups/journal"},
		why:     "who knows only the backup directory is kept away while the store is worked on",
	},

	// Before the swap.
	{
		on:      "line safety STAMP",
		durable: []string{"backups/*", "backups/snapshots/**"},
		why:     "the old parts are removed because that snapshot has them",
	},
	{
		on:      "line swapping",
		durable: []string{"data", "config", "data/chroma", "**/staging-*", "**/staging-*/**"},
		why:     "from here on the new store may be all that there is",
	},

	// The swap, and undoing it.
	{
		on:      "line (out|end|cleared|undone) chroma",
		durable: []string{"data/chroma/**", "data/*.aside", "data/*.aside/**"},
		why:     "a later call relies on the line and does not look again",
	},
	{
		on:      "line (out|end|cleared|undone) config",
		durable: []string{"config/**"},
		why:     "a later call relies on the line and does not look again",
	},
	{
		on:      "line (out|end|cleared|undone) db",
		durable: []string{"data/*", "data/staging-db/**", "data/*.aside/**"},
		why:     "a later call relies on the line and does not look again",
	},
	{
		on:   "rename data/staging-db/new/atocore.db data/atocore.db",
		gone: "data/atocore.db-*", durable: []string{"data/atocore.db-*", "data/staging-db/old/*"},
		why: "SQLite would apply the old WAL to the new database",
	},
	{
		on: "write data/atocore.db", when: "line begin db",
		after: "line out db",
		why:   "an overwritten file is lost unless it was copied",
	},
	{
		on: "write config/project-registry.json", when: "line begin config",
		after: "line out config",
		why:   "an overwritten file is lost unless it was copied",
	},
	{
		on:    "rename data/chroma/staging-chroma/new/* data/chroma/*",
		after: "line out chroma",
		why:   "an undo that does not know of new entries leaves them beside the old ones",
	},
	{
		on:    "rename **/staging-*/old/* **",
		after: "line (undo|done)",
		why:   "old parts are moved only to bring them back, or to keep them",
	},
	{
		on:   "rename data/staging-db/old/atocore.db data/atocore.db",
		gone: "data/atocore.db-*", durable: []string{"data/*", "data/staging-db/new/*", "data/*.aside/*"},
		why: "what was in place must have another name, and its WAL must not meet the old database",
	},
	{
		on:      "rename data/staging-db/old/atocore.db-* data/atocore.db-*",
		durable: []string{"data/atocore.db"},
		why:     "SQLite would apply the old WAL to the database that was in place",
	},
	{
		on:      "rename data/chroma/staging-chroma/old/<name> data/chroma/<name>",
		durable: []string{"data/chroma/<name>", "data/chroma.aside/*"},
		why:     "what was in the way must have another name",
	},
	{
		on:      "(rename|link) ** **/*.aside/**",
		durable: []string{"**/*.aside"},
		why:     "what is moved there vanishes with the directory",
	},

	// Afterwards.
	{
		on:      "line done",
		durable: []string{"data/**", "config/**"},
		why:     "from here on the old store may be gone",
	},
	{
		on:    "remove **/staging-<part>/old/**",
		after: "line (done|undone <part>)",
		why:   "until then the old part may be needed",
	},
	{
		on:      "line cleaned *",
		durable: []string{"data/**", "config/**"},
		why:     "a later call does not look for the old part again",
	},
	{
		on: "remove **/staging-<part>", when: "line swapping",
		after: "line cleaned <part>",
		why:   "until then a missing directory means a volume that is not mounted",
	},
	{
		on:      "remove (data|backups)/journal",
		durable: []string{"data/**", "config/**"},
		why:     "nobody goes on with what is not done yet",
	},
	{
		on:   "remove data/journal",
		gone: "backups/journal", durable: []string{"backups/journal"},
		why: "a pointer that comes back without a journal means that the journal's volume is missing",
	},
	{
		on:      "remove backups/hidden/SHA256SUMS",
		durable: []string{"backups/*", "backups/snapshots/*"},
		why:     "the safety snapshot must not come back without its files",
	},
	{
		on:      "end",
		durable: []string{"data/**", "config/**", "backups/journal", "backups/snapshots/**"},
		why:     "the call has returned",
	},
}

// random parts of paths, and what stands for them in rules.
var unrandom = []struct {
	random *regexp.Regexp
	plain  string
}{
	{regexp.MustCompile(`\.atocore-restore-[0-9a-f]{16}-`), "staging-"},
	{regexp.MustCompile(`\.atocore-restore\.journal`), "journal"},
	{regexp.MustCompile(`\.set-aside-[0-9a-f]{16}`), ".aside"},
	{regexp.MustCompile(`\.atocore-staging-[0-9a-f]{16}`), "hidden"},
	{regexp.MustCompile(`\d{8}T\d{6}Z(-\d+)?`), "STAMP"},
}

func plain(text string) string {
	for _, u := range unrandom {
		text = u.random.ReplaceAllString(text, u.plain)
	}
	return text
}

// matcher compiles a pattern of a rule. <part> and <name> are what bound says or,
// if it says nothing, anything.
func matcher(pattern string, bound map[string]string) *regexp.Regexp {
	seen := map[string]bool{}
	expr := regexp.MustCompile(`\*\*|\*|<\w+>|[.{}+]`).ReplaceAllStringFunc(pattern, func(token string) string {
		switch {
		case token == "**":
			return `.*`
		case token == "*":
			return `[^/ ]*`
		case token[0] != '<':
			return `\` + token
		}
		name := strings.Trim(token, "<>")
		switch value, ok := bound[name]; {
		case ok:
			return regexp.QuoteMeta(value)
		case seen[name]:
			return `[^/ ]+`
		}
		seen[name] = true
		return `(?P<` + name + `>[^/ ]+)`
	})
	return regexp.MustCompile(`^(` + expr + `)$`)
}

// A watch follows the events of a call and checks the rules.
type watch struct {
	t      *testing.T
	s      *store
	ledger *ledger
	before []string          // the events so far
	moved  map[string]string // where something was moved, until the place it left was synced
	met    []int             // how often each rule had something to check
}

// newWatch returns a watch of a call that begins now. A journal has lines of an
// earlier call, which may have been killed before the last one was durable; so may
// the names that match a pattern in dirty.
func newWatch(t *testing.T, s *store, met []int, dirty ...string) *watch {
	t.Helper()
	w := &watch{t: t, s: s, ledger: newLedger(t, s.Dir), moved: map[string]string{}, met: met}
	const before = -1
	for _, pattern := range dirty {
		matches := matcher(pattern, nil)
		if path := filepath.Join(s.Dir, pattern); !strings.Contains(pattern, "*") && !w.ledger.exists[path] {
			w.ledger.named[path] = before // it is gone
		}
		for path := range w.ledger.exists {
			if matches.MatchString(w.relative(path)) {
				w.ledger.named[path] = before
			}
		}
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(strings.Join(w.before, "\n"))
		}
	})
	data, err := os.ReadFile(journalOf(s))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	for line := range strings.Lines(string(data)) {
		if line, whole := strings.CutSuffix(line, "\n"); whole {
			w.before = append(w.before, lineEvent(line))
			w.ledger.changed[journalOf(s)] = before
		}
	}
	return w
}

func journalOf(s *store) string {
	return filepath.Join(filepath.Dir(s.DatabasePath), ".atocore-restore.journal")
}

// lineEvent returns the event of a sealed line.
func lineEvent(line string) string {
	if strings.HasPrefix(line, "{") {
		return "line {"
	}
	return plain("line " + line[:max(0, strings.LastIndexByte(line, ' '))])
}

// describe returns an event in the words of the rules, or nothing if it changes
// nothing below the store.
func (w *watch) describe(e *event) string {
	if e.ret < 0 {
		return ""
	}
	verb, paths := "", e.places()
	switch e.name {
	case "openat", "open", "creat":
		if !e.creates(w.ledger) {
			return ""
		}
		verb, paths = "create", []string{e.retPath}
	case "mkdirat", "mkdir":
		verb = "mkdir"
	case "unlinkat", "unlink", "rmdir":
		verb = "remove"
	case "renameat2", "renameat", "rename":
		verb = "rename"
	case "linkat", "link":
		verb = "link"
	case "utimensat", "fchmodat", "fchownat":
		verb = "change"
	case "fchmod", "fchown":
		_, path := e.fd()
		verb, paths = "change", []string{path}
	case "write", "pwrite64":
		_, path := e.fd()
		if path == journalOf(w.s) {
			text := quoted.FindStringSubmatch(e.args)[1]
			return lineEvent(strings.TrimSuffix(text, `\n`))
		}
		verb, paths = "write", []string{path}
	case "ftruncate", "fallocate", "ioctl":
		_, path := e.fd()
		verb, paths = "write", []string{path}
	case "copy_file_range":
		verb, paths = "write", []string{e.copiesTo()}
	}
	for i, path := range paths {
		if !w.ledger.has(path) {
			return ""
		}
		paths[i] = w.relative(path)
	}
	if len(paths) == 0 {
		return ""
	}
	return verb + " " + strings.Join(paths, " ")
}

func (w *watch) relative(path string) string {
	return plain(strings.TrimPrefix(path, w.s.Dir+"/"))
}

// follow checks the rules for each event.
func (w *watch) follow(events []*event) {
	w.t.Helper()
	for _, e := range events {
		_, path := e.fd()
		switch {
		case e.name == "ftruncate" && path == journalOf(w.s):
			continue // before each line, to the size that it has
		case path == w.s.DatabasePath+"-wal" && (e.name == "ftruncate" || e.name == "fchown" || e.name == "fchmod"):
			// SQLite empties a WAL when its content is durable in the database.
			// If the content comes back, it is what the database holds anyway.
			continue
		}
		if text := w.describe(e); text != "" {
			w.check(text, e.begin)
			w.before = append(w.before, text)
		}
		w.checkMoves(e)
		w.ledger.follow(e)
	}
}

// checkMoves checks that what is moved is durable where it went before it is durable
// that it has left, because not every file system makes that one step. New parts
// may get lost, being copies.
func (w *watch) checkMoves(e *event) {
	w.t.Helper()
	switch {
	case e.ret < 0:
	case strings.HasPrefix(e.name, "rename"):
		w.moved[e.places()[0]] = e.places()[1]
	case e.name == "fsync":
		_, dir := e.fd()
		for from, to := range w.moved {
			if filepath.Dir(from) != dir || filepath.Dir(to) == dir {
				continue
			}
			if w.ledger.exists[to] && !matcher("**/staging-*/new/*", nil).MatchString(w.relative(to)) {
				require.True(w.t, w.ledger.durable(to, e.begin), "%s is synced before %s is durable, which was moved from there", dir, to)
			}
			delete(w.moved, from)
		}
	}
}

// end checks the rules for the end of a call.
func (w *watch) end() {
	w.t.Helper()
	w.check("end", math.MaxInt)
}

func (w *watch) check(text string, moment int) {
	w.t.Helper()
	happened := func(pattern string, bound map[string]string) bool {
		return slices.ContainsFunc(w.before, matcher(pattern, bound).MatchString)
	}
	for i, r := range restoreRules {
		on := matcher(r.on, nil)
		m := on.FindStringSubmatch(text)
		if m == nil || r.except != "" && matcher(r.except, nil).MatchString(text) {
			continue
		}
		bound := map[string]string{}
		for n, name := range on.SubexpNames() {
			if name != "" {
				bound[name] = m[n]
			}
		}
		if r.when != "" && !happened(r.when, bound) {
			continue
		}
		if r.after != "" {
			require.True(w.t, happened(r.after, bound), "%q comes before %q: %s", text, r.after, r.why)
			w.met[i]++
		}
		if r.gone != "" {
			gone := matcher(r.gone, bound)
			for path, exists := range w.ledger.exists {
				require.False(w.t, exists && gone.MatchString(w.relative(path)), "%q comes while there is %s: %s", text, path, r.why)
			}
			w.met[i]++
		}
		for _, pattern := range r.durable {
			durable := matcher(pattern, bound)
			for _, path := range w.ledger.paths() {
				if durable.MatchString(w.relative(path)) {
					require.True(w.t, w.ledger.durable(path, moment), "%q comes before %s is durable: %s", text, path, r.why)
					w.met[i]++
				}
			}
		}
	}
}

// beStopped restores the snapshot args[1] of the store in args[0]. When the phase
// args[2] begins, it says so and waits for a line, or to be killed.
func beStopped(p *backuptest.Parent, args []string) error {
	opts := backuptest.OptionsIn(args[0])
	stopped := false
	opts.OnProgress = func(now backup.Progress) {
		if string(now.Phase) == args[2] && !stopped {
			stopped = true
			p.Say(args[2])
			p.Hear()
		}
	}
	_, err := backup.RestoreRuntimeBackup(context.Background(), opts, args[1])
	return err
}

// beRecovering makes a call that recovers from an interrupted restore of the
// store in args[0] and then finds that its own snapshot does not exist.
func beRecovering(_ *backuptest.Parent, args []string) error {
	result, err := backup.RestoreRuntimeBackup(context.Background(), backuptest.OptionsIn(args[0]), "none")
	if !errors.Is(err, backup.ErrInvalidBackup) {
		return fmt.Errorf("recover: %w", err)
	}
	if result != nil {
		fmt.Println(result.Recovered)
	}
	return nil
}

// beFailing restores the snapshot args[1] of the store in args[0], which must fail:
// it damages two of the new parts before they are compared.
func beFailing(_ *backuptest.Parent, args []string) error {
	opts := backuptest.OptionsIn(args[0])
	damaged := false
	opts.OnProgress = func(now backup.Progress) {
		if now.Phase != backup.PhaseVerify || damaged {
			return
		}
		damaged = true
		for _, path := range []string{opts.RegistryPath, filepath.Join(opts.ChromaPath, "chroma.sqlite3")} {
			if err := overwrite(path); err != nil {
				panic(err)
			}
		}
	}
	_, err := backup.RestoreRuntimeBackup(context.Background(), opts, args[1])
	if err == nil || errors.Is(err, backup.ErrRestoreUnfinished) || !strings.Contains(err.Error(), "is not what the snapshot holds") {
		return fmt.Errorf("it was not undone because of the damage: %w", err)
	}
	return nil
}

// overwrite damages a file, durably.
func overwrite(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("damaged"), 0); err != nil {
		return err
	}
	return f.Sync()
}

// The lines of a journal, in pieces.
var (
	swapLines = []string{
		"swapping",
		"begin chroma", "out chroma", "end chroma",
		"begin config", "out config", "end config",
		"begin db", "out db", "end db",
	}
	cleanLines = []string{"cleaned chroma", "cleaned config", "cleaned db"}
)

// stop begins a restore and kills it when a phase begins.
func (s *store) stop(stamp string, phase backup.Phase) {
	s.T.Helper()
	c := backuptest.Start(s.T, "stop", s.Dir, stamp, string(phase))
	require.Equal(s.T, string(phase), c.Hear())
	c.Kill()
}

// stopBefore is stop after the swap, and before a line of it was written.
func (s *store) stopBefore(stamp, line string) {
	s.T.Helper()
	s.stop(stamp, backup.PhaseVerify)
	data, err := os.ReadFile(journalOf(s))
	require.NoError(s.T, err)
	s.writeJournalBefore(string(data), line)
}

// stopLater is stopBefore for a line that is written after the new store was
// compared. The store is as it was then.
func (s *store) stopLater(stamp, line string) {
	s.T.Helper()
	kept := s.Dir + ".kept"
	journal := s.journalOfWhole(stamp, func() {
		require.NoError(s.T, exec.Command("cp", "-a", s.Dir, kept).Run())
	})
	require.NoError(s.T, os.RemoveAll(s.Dir))
	require.NoError(s.T, os.Rename(kept, s.Dir))
	s.writeJournalBefore(journal, line)
}

// writeJournalBefore writes the lines of a journal that come before one of them.
func (s *store) writeJournalBefore(journal, line string) {
	s.T.Helper()
	lines, _, found := strings.Cut(journal, "\n"+line+" ")
	require.True(s.T, found)
	backuptest.Write(s.T, journalOf(s), lines+"\n")
}

// journalOfWhole restores and returns the journal as it was at the end. atVerify is
// called when the new store is in place.
func (s *store) journalOfWhole(stamp string, atVerify func()) string {
	s.T.Helper()
	c := backuptest.Start(s.T, "stop", s.Dir, stamp, string(backup.PhaseVerify))
	require.Equal(s.T, string(backup.PhaseVerify), c.Hear())
	atVerify()
	kept := filepath.Join(s.Dir, "kept")
	require.NoError(s.T, os.Link(journalOf(s), kept))
	c.Tell("go on")
	c.Wait()
	data, err := os.ReadFile(kept)
	require.NoError(s.T, err)
	require.NoError(s.T, os.Remove(kept))
	return string(data)
}

// staged returns the path of something in the staging directory of a part.
func (s *store) staged(dir, part string, elem ...string) string {
	s.T.Helper()
	found, err := filepath.Glob(filepath.Join(dir, ".atocore-restore-*-"+part))
	require.NoError(s.T, err)
	require.Len(s.T, found, 1)
	return filepath.Join(append(found, elem...)...)
}

// moveAll moves everything in one directory to another, but staging.
func (s *store) moveAll(from, to string) {
	s.T.Helper()
	entries, err := os.ReadDir(from)
	require.NoError(s.T, err)
	for _, entry := range entries {
		if !strings.HasPrefix(entry.Name(), ".atocore-restore-") {
			require.NoError(s.T, os.Rename(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())))
		}
	}
}

// unswap makes the state of a restore that was killed while it swapped Chroma, when
// all old entries were moved away.
func (s *store) unswap(stamp string) {
	s.T.Helper()
	s.stopBefore(stamp, "out chroma")
	s.moveAll(s.ChromaPath, s.staged(s.ChromaPath, "chroma", "new"))
	for part, path := range map[string]string{"config": s.RegistryPath, "db": s.DatabasePath} {
		dir, name := filepath.Split(path)
		require.NoError(s.T, os.Rename(path, s.staged(dir, part, "new", name)))
		s.moveAll(s.staged(dir, part, "old"), dir)
	}
}

// setAsideByHand sets aside everything in from, of the part Chroma.
func (s *store) setAsideByHand(from, part string) {
	s.T.Helper()
	staging := filepath.Base(s.staged(s.ChromaPath, part))
	id := strings.TrimSuffix(strings.TrimPrefix(staging, ".atocore-restore-"), "-"+part)
	aside := s.ChromaPath + ".set-aside-" + id
	require.NoError(s.T, os.Mkdir(aside, 0o700))
	s.moveAll(from, aside)
}

// TestOrderOfRestore checks the order of the system calls of restores, and of
// what undoes and finishes them, in the same call and in a later one.
func TestOrderOfRestore(t *testing.T) {
	restore := func(s *store, stamp string) []string { return []string{"restore", s.Dir, stamp} }
	recover := func(s *store) []string { return []string{"recover", s.Dir} }
	tests := []struct {
		name string
		// prepare makes the state that the call finds, and returns the role that
		// makes the call, with its arguments.
		prepare func(s *store, stamp string) []string
		lines   []string // that the call writes
		dirty   []string // names that are not durable before the call, in the words of the rules
	}{
		{
			"over a store",
			restore,
			slices.Concat([]string{"{", "safety STAMP"}, swapLines, []string{"done"}, cleanLines),
			nil,
		},
		{
			"into an empty place",
			func(s *store, stamp string) []string {
				s.RemoveAll(filepath.Join(s.Dir, "data"))
				s.RemoveAll(filepath.Join(s.Dir, "config"))
				return restore(s, stamp)
			},
			slices.Concat([]string{"{", "swapping", "begin chroma", "out chroma", "end chroma",
				"begin config", "end config", "begin db", "end db", "done"}, cleanLines),
			nil,
		},
		{
			"over a broken database",
			func(s *store, stamp string) []string {
				backuptest.Write(s.T, s.DatabasePath, strings.Repeat("rubbish ", 1000))
				return restore(s, stamp)
			},
			slices.Concat([]string{"{", "keep-old"}, swapLines, []string{"done"}, cleanLines),
			nil,
		},
		{
			"over a WAL without its database",
			func(s *store, stamp string) []string {
				require.NoError(s.T, os.Remove(s.DatabasePath))
				return restore(s, stamp)
			},
			slices.Concat([]string{"{", "keep-old"}, slices.DeleteFunc(slices.Clone(swapLines), func(line string) bool {
				return line == "out db"
			}), []string{"done"}, cleanLines),
			nil,
		},
		{
			"over files that are mounted",
			func(s *store, stamp string) []string {
				s.mountFiles()
				return restore(s, stamp)
			},
			slices.Concat([]string{"{", "safety STAMP"}, swapLines, []string{"done"}, cleanLines),
			nil,
		},
		{
			"one that fails",
			func(s *store, stamp string) []string { return []string{"fail", s.Dir, stamp} },
			slices.Concat([]string{"{", "safety STAMP"}, swapLines, []string{"undo",
				"undone db", "aside config", "undone config", "aside chroma", "cleared chroma", "undone chroma"}, cleanLines),
			nil,
		},
		{
			"after one that was killed at once",
			func(s *store, stamp string) []string {
				backuptest.Write(s.T, journalOf(s), `{"version":2,`)
				return recover(s)
			},
			nil,
			nil,
		},
		{
			"after one that was killed while staging",
			func(s *store, stamp string) []string {
				s.stop(stamp, backup.PhaseSwap)
				return recover(s)
			},
			nil,
			nil,
		},
		{
			"after one that was killed in the swap",
			func(s *store, stamp string) []string {
				s.stopBefore(stamp, "end db")
				return recover(s)
			},
			slices.Concat([]string{"undo", "undone db", "undone config", "cleared chroma", "undone chroma"}, cleanLines),
			nil,
		},
		{
			"after one that was killed in the swap, and the store was used",
			func(s *store, stamp string) []string {
				s.stopBefore(stamp, "end db")
				db := backuptest.OpenDB(s.T, s.DatabasePath, "_pragma=journal_mode(wal)")
				_, err := db.Exec("CREATE TABLE since (n INTEGER)")
				require.NoError(s.T, err)
				backuptest.KeepWAL(s.T, db, s.DatabasePath)
				backuptest.Write(s.T, s.RegistryPath, "{}")
				backuptest.Write(s.T, s.InChroma("since"), "x")
				return recover(s)
			},
			slices.Concat([]string{"undo", "aside db", "undone db", "aside config", "undone config",
				"aside chroma", "cleared chroma", "undone chroma"}, cleanLines),
			nil,
		},
		{
			"after one that was killed in the swap, where nothing was before",
			func(s *store, stamp string) []string {
				s.RemoveAll(filepath.Join(s.Dir, "data"))
				s.RemoveAll(filepath.Join(s.Dir, "config"))
				s.stopBefore(stamp, "end db")
				backuptest.Write(s.T, s.RegistryPath, "{}")
				return recover(s)
			},
			slices.Concat([]string{"undo", "undone db", "aside config", "undone config", "cleared chroma", "undone chroma"}, cleanLines),
			nil,
		},
		{
			"after one that was killed in the swap of files that are mounted",
			func(s *store, stamp string) []string {
				s.mountFiles()
				s.stopBefore(stamp, "end db")
				backuptest.Write(s.T, s.RegistryPath, "{}")
				return recover(s)
			},
			slices.Concat([]string{"undo", "cleared db", "undone db", "aside config", "cleared config", "undone config",
				"cleared chroma", "undone chroma"}, cleanLines),
			nil,
		},
		{
			"after one whose undo was killed, and somebody opened the database",
			func(s *store, stamp string) []string {
				backuptest.Write(s.T, s.DatabasePath, strings.Repeat("rubbish ", 1000))
				s.stopBefore(stamp, "end db")
				require.NoError(s.T, os.Rename(s.staged(filepath.Dir(s.DatabasePath), "db", "old", "atocore.db"), s.DatabasePath))
				backuptest.Write(s.T, s.DatabasePath+"-wal", "of somebody")
				return recover(s)
			},
			slices.Concat([]string{"undo", "undone db", "undone config", "cleared chroma", "undone chroma"}, cleanLines),
			nil,
		},
		{
			"after one that was killed while it moved Chroma away, and somebody wrote there",
			func(s *store, stamp string) []string {
				s.unswap(stamp)
				backuptest.Write(s.T, s.InChroma("chroma.sqlite3"), "of somebody")
				return recover(s)
			},
			slices.Concat([]string{"undo", "undone chroma"}, cleanLines),
			nil,
		},
		{
			"after one that was killed when all was in place",
			func(s *store, stamp string) []string {
				s.stop(stamp, backup.PhaseVerify)
				return recover(s)
			},
			slices.Concat([]string{"done"}, cleanLines),
			nil,
		},
		{
			"after one over a broken database that was killed when all was in place",
			func(s *store, stamp string) []string {
				backuptest.Write(s.T, s.DatabasePath, strings.Repeat("rubbish ", 1000))
				s.stop(stamp, backup.PhaseVerify)
				return recover(s)
			},
			slices.Concat([]string{"done"}, cleanLines),
			nil,
		},
		{
			"after one whose undo was killed when the database was back",
			func(s *store, stamp string) []string {
				backuptest.Write(s.T, s.DatabasePath, strings.Repeat("rubbish ", 1000))
				s.stopBefore(stamp, "end db")
				require.NoError(s.T, os.Rename(s.staged(filepath.Dir(s.DatabasePath), "db", "old", "atocore.db"), s.DatabasePath))
				return recover(s)
			},
			slices.Concat([]string{"undo", "undone db", "undone config", "cleared chroma", "undone chroma"}, cleanLines),
			[]string{"data/atocore.db"},
		},
		{
			"after one whose undo was killed when something was set aside in Chroma",
			func(s *store, stamp string) []string {
				s.unswap(stamp)
				s.setAsideByHand(s.ChromaPath, "chroma")
				return recover(s)
			},
			slices.Concat([]string{"undo", "undone chroma"}, cleanLines),
			[]string{"data/chroma.aside", "data/chroma.aside/*", "data/chroma/chroma.sqlite3"},
		},
		{
			"after one over a broken database that was killed while the old store was set aside",
			func(s *store, stamp string) []string {
				backuptest.Write(s.T, s.DatabasePath, strings.Repeat("rubbish ", 1000))
				s.stopLater(stamp, "cleaned chroma")
				s.setAsideByHand(s.staged(s.ChromaPath, "chroma", "old"), "chroma")
				return recover(s)
			},
			cleanLines,
			[]string{"data/chroma.aside", "data/chroma.aside/*"},
		},
		{
			"after one that was killed when the pointer was removed",
			func(s *store, stamp string) []string {
				backuptest.Write(s.T, journalOf(s), s.journalOfWhole(stamp, func() {}))
				return recover(s)
			},
			nil,
			[]string{"backups/.atocore-restore.journal"},
		},
	}
	met, ran := make([]int, len(restoreRules)), 0
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t, memoryDir(t), "wal")
			stamp := do(t, s.createCmd()).requireDone(t).stamp(t)
			// A store that is not the snapshot's, with a WAL.
			db := backuptest.OpenDB(t, s.DatabasePath)
			require.NoError(t, backuptest.Move(t.Context(), db, 1, 2, 3))
			backuptest.KeepWAL(t, db, s.DatabasePath)
			backuptest.Write(t, s.RegistryPath, `{"old": true}`)
			backuptest.Write(t, s.InChroma("old"), "x")

			role := test.prepare(s, stamp)
			w := newWatch(t, s, met, test.dirty...)
			earlier := len(w.before)
			w.follow(record(t, backuptest.Command(t, role[0], role[1:]...)))
			w.end()
			var lines []string
			for _, text := range w.before[earlier:] {
				if line, ok := strings.CutPrefix(text, "line "); ok {
					lines = append(lines, line)
				}
			}
			require.Equal(t, test.lines, lines)
			require.NoFileExists(t, journalOf(s))
			s.RequireNoRemains()
			ran++
		})
	}
	if ran == len(tests) {
		for i, r := range restoreRules {
			require.NotZero(t, met[i], "no event met the rule for %q", r.on)
		}
	}
}

// mountFiles makes the database and the registry mount points of their own.
func (s *store) mountFiles() {
	s.T.Helper()
	for _, path := range []string{s.DatabasePath, s.RegistryPath} {
		elsewhere := filepath.Join(s.T.TempDir(), filepath.Base(path))
		data, err := os.ReadFile(path)
		require.NoError(s.T, err)
		require.NoError(s.T, os.WriteFile(elsewhere, data, 0o600))
		backuptest.MountBind(s.T, elsewhere, path)
	}
}
