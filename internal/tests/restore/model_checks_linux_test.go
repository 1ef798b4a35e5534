package restore

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/atocore/backup/internal/backuptest"
)

// A model does steps in a world and checks after each of them:
//
//   - Every unit of content that was on the disk before a call of the library is
//     there afterwards: in the store, in a visible snapshot, in a directory that
//     the call reported as set aside or, as long as a restore is unfinished, in
//     its staging directory. Only the steps of the operator and the service, and
//     a prune, may end one.
//   - If no restore is unfinished, the store is one of the whole states that it
//     may have: a restore's before or after. A snapshot has such a state, too.
//   - List reports an unfinished restore as long as its journal is there.
//   - A restore changes no owner, and gives what is new to the directory's.
//   - A call that nothing hinders succeeds.
//   - At the end, the commands of docs/restore.md lead to a restored store, with
//     nothing left of any restore.
type model struct {
	*modelWorld
	within bool // calls are made in this process, unless they are to be killed
	counts modelCounts
	clock  time.Time
	last   *modelScan
	log    []string

	// may are the whole states that the store may come to have.
	may map[modelState]bool
	// pending has the slots of each unfinished restore, by id, and mounts the
	// volumes that were mounted when it began.
	pending map[string][]int
	mounts  map[string]map[string]bool
	// ended has units of content that only restored files still had when the
	// operator removed the snapshot. An undo may remove those.
	ended map[string]bool
	// told has the names of the set-aside directories that were reported, and the
	// ids of restores whose directories could not be.
	told map[string]bool

	// cut has the unfinished restores whose staging directories were removed
	// while their journals were not mounted.
	cut map[string]bool

	result *modelResult // of the last call
	server *modelServer // a service that has the database open, or nil
}

func (m *model) begin() (err error) {
	m.clock = backuptest.Noon.Time
	m.pending, m.mounts = make(map[string][]int), make(map[string]map[string]bool)
	m.ended, m.told, m.cut = make(map[string]bool), make(map[string]bool), make(map[string]bool)
	if m.last, err = m.scan(); err == nil {
		m.may = map[modelState]bool{m.last.state: true}
	}
	return err
}

func (m *model) note(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
}

// trace describes what was done and what there is now.
func (m *model) trace() string {
	var b strings.Builder
	for _, line := range m.log {
		fmt.Fprintln(&b, line)
	}
	fmt.Fprintf(&b, "mounted: %v of %v; hidden: %v\n", slices.Sorted(maps.Keys(m.mounted)), slices.Sorted(maps.Keys(m.volumes)), m.hidden)
	s, err := m.scan()
	if err != nil {
		fmt.Fprintln(&b, err)
		return b.String()
	}
	b.WriteString(s.String())
	for state := range m.may {
		fmt.Fprintf(&b, "it may be %s\n", state)
	}
	return b.String()
}

func (s modelState) String() string {
	var texts []string
	for slot, state := range s {
		if state != "" {
			texts = append(texts, fmt.Sprintf("%s/%d{%s}", modelPartNames[slot/2], slot%2, state))
		}
	}
	return strings.Join(texts, " ")
}

func (s *modelScan) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "store: %s\n", s.state)
	for _, key := range slices.Sorted(maps.Keys(s.snapshots)) {
		fmt.Fprintf(&b, "snapshot %s: %q\n", key, s.snapshots[key].parts)
	}
	for id, j := range s.journals {
		fmt.Fprintf(&b, "journal %s in %d: %q\n", id, j.slot, j.lines[min(1, len(j.lines)):])
	}
	fmt.Fprintf(&b, "set aside: %v; remains: %q, elsewhere %q\n", s.aside, s.remains, s.hidden)
	return b.String()
}

// do does a step and checks the state after it.
func (m *model) do(step modelStep) error {
	m.note("%s", step)
	before := m.last
	call := m.callOf(step)
	if call == nil {
		err := m.act(step)
		if err != nil {
			return err
		}
		if m.last, err = m.scan(); err != nil {
			return err
		}
		m.acted(before, m.last)
		return m.check()
	}
	m.clock = m.clock.Add(time.Second)
	call.Clock = m.clock
	return m.make(call, before)
}

// callOf returns the call of the library that a step makes, or nil if it makes
// none.
func (m *model) callOf(step modelStep) *modelCall {
	dir := step.Arg["dir"]
	c := &modelCall{Name: step.Op, Keep: step.number("keep"), Fault: step.fault()}
	switch step.Op {
	case "create":
		if m.hidden[dir] {
			return nil // it would make another one
		}
	case "prune", "list":
	case "restore", "validate":
		c.Stamp = m.stampOf(dir, step.Arg["snapshot"])
	default:
		return nil
	}
	if only := step.Arg["only"]; only != "" {
		c.Only = strings.Split(only, ",")
	}
	c.Store = m.paths(dir)
	switch step.Arg["without"] {
	case "registry":
		c.Store.Registry = ""
	case "chroma":
		c.Store.Chroma, c.Store.IncludeChroma = "", false
	}
	return c
}

const unknownStamp = "20200101T000000Z"

// validStamp chooses a snapshot of a backup directory that must be valid.
func (m *model) validStamp(dir string) string {
	for _, snapshot := range m.last.snapshots {
		if snapshot.dir == dir && snapshot.isValid() {
			return snapshot.stamp
		}
	}
	return unknownStamp
}

// isValid reports whether a snapshot must be valid: a create does not look for
// damaged pages.
func (s *modelSnapshot) isValid() bool {
	return s != nil && strings.HasPrefix(s.parts[modelDB], "rows")
}

// stampOf chooses a snapshot of a backup directory.
func (m *model) stampOf(dir, which string) string {
	if which == "other" {
		dir, which = map[string]string{"A": "B", "B": "A"}[dir], "0"
	}
	var stamps []string
	for key := range m.last.snapshots {
		if stamp, ok := strings.CutPrefix(key, dir+"/"); ok {
			stamps = append(stamps, stamp)
		}
	}
	slices.Sort(stamps)
	n := len(stamps) - 1
	if which != "newest" {
		if _, err := fmt.Sscan(which, &n); err != nil {
			return unknownStamp
		}
	}
	if len(stamps) == 0 {
		return unknownStamp
	}
	return stamps[n%len(stamps)]
}

// make makes a call of the library and checks what became of it.
func (m *model) make(call *modelCall, before *modelScan) error {
	_, err := os.Lstat(filepath.Join(call.Store.BackupDir, journalFile))
	pointed := err == nil
	owners, _ := m.owners()
	wasPending := len(m.pending) > 0
	var result *modelResult
	if kind := call.Fault.Kind; m.within && (kind == "" || kind == "cancel") {
		result = call.run()
	} else if result, err = call.runApart(m.t); err != nil {
		return err
	}
	m.counts.count(call.Name + "s")
	outcome := "ok"
	switch {
	case result.Killed:
		outcome = "killed"
		m.counts.count("kills")
		if len(before.journals) > 0 {
			m.counts.count("kills while a restore was unfinished")
		}
	case result.Err != "":
		outcome = result.Err
		if call.Fault.Kind != "" {
			m.counts.count("failures")
		}
	}
	if result.Err == "" && len(call.Only) > 0 {
		m.counts.count("restores of some parts")
	}
	m.note("  %s %s: %s", call.Name, call.Stamp, outcome)
	if result.Recovered != "" {
		m.counts.count("restores " + result.Recovered)
		m.note("  the restore of %s was %s; set aside: %v", result.RecoveredStamp, result.Recovered, result.SetAside)
	}
	m.result = result
	if m.last, err = m.scan(); err != nil {
		return err
	}
	if m.findCut(before) && pointed {
		return errors.New("staging directories were removed although the backup directory has a pointer to their journal")
	}
	touched := m.expect(call, result, before)
	if !wasPending && len(m.last.journals) == 0 && !strings.HasPrefix(call.Fault.Kind, "fail") {
		now, files := m.owners()
		for part, owner := range owners {
			if files[part] && now[part] != owner {
				return fmt.Errorf("the owner of %s was %d and is %d", modelPartNames[part], owner, now[part])
			}
		}
	}
	return errors.Join(
		m.checkUnits(call, before), m.settle(touched), m.checkTold(result, before), m.checkCall(call, result, before), m.check(),
	)
}

// findCut finds staging directories that a call has removed although their
// journal, which was not mounted, has no line about that. A call without the
// pointer to that journal takes them for strays.
func (m *model) findCut(before *modelScan) (found bool) {
	now := slices.Concat(m.last.remains, m.last.hidden)
	for _, path := range slices.Concat(before.remains, before.hidden) {
		id, part, _ := strings.Cut(strings.TrimPrefix(filepath.Base(path), remainsPrefix+"-"), "-")
		j := m.last.journals[id]
		if j != nil && j.slot != m.slot(modelDB) && !slices.Contains(now, path) && !slices.Contains(j.lines, "cleaned "+part) {
			m.cut[id], found = true, true
		}
	}
	return found
}

// expect extends what the store may be by what the call may do. It returns the
// slots that the call may have changed.
func (m *model) expect(call *modelCall, result *modelResult, before *modelScan) (touched []int) {
	snapshot := before.snapshots[filepath.Base(call.Store.BackupDir)+"/"+call.Stamp]
	if call.Name != "restore" || m.hidden[filepath.Base(call.Store.BackupDir)] {
		snapshot = nil
	}
	after := make(map[modelState]bool)
	for state := range m.may {
		for part := range modelParts {
			if snapshot != nil && snapshot.parts[part] != "" && call.restores(part) {
				state[m.slot(part)] = snapshot.parts[part]
			}
		}
		after[state] = true
	}
	if snapshot != nil {
		for part, state := range snapshot.parts {
			if state != "" && call.restores(part) {
				touched = append(touched, m.slot(part))
			}
		}
	}
	switch {
	case result.Killed, result.Unfinished:
		maps.Copy(m.may, after)
	case result.Err == "":
		m.may = after
	}
	for id := range m.last.journals {
		if m.pending[id] == nil {
			m.pending[id] = append([]int{}, touched...)
			m.mounts[id] = maps.Clone(m.mounted)
		}
	}
	return touched
}

// agree reports whether two states have the same in these slots.
func agree(a, b modelState, slots []int) bool {
	return !slices.ContainsFunc(slots, func(slot int) bool { return a[slot] != b[slot] })
}

// settle checks the slots that no unfinished restore is about any more: what is
// in them is part of a state that the store may have.
func (m *model) settle(touched []int) error {
	settled := slices.Clone(touched)
	var still []int
	for id, slots := range m.pending {
		if m.last.journals[id] != nil {
			still = append(still, slots...)
			continue
		}
		settled = append(settled, slots...)
		delete(m.pending, id)
		delete(m.mounts, id)
	}
	if len(m.pending) == 0 {
		settled = []int{0, 1, 2, 3, 4, 5}
		for unit := range m.last.units {
			delete(m.ended, unit)
		}
	}
	settled = slices.DeleteFunc(settled, func(slot int) bool { return slices.Contains(still, slot) })
	left := make(map[modelState]bool)
	for state := range m.may {
		if agree(state, m.last.state, settled) {
			left[state] = true
		}
	}
	if len(left) == 0 {
		return fmt.Errorf("the store is a mixture: it is %s in the slots %v", m.last.state, settled)
	}
	m.may = left
	return nil
}

// acted extends what the store may be after a step of the operator or the
// service. What was changed in a part of an unfinished restore is kept if that
// part is: an undo sets it aside if the restore had replaced the part before,
// and keeps it in the parts that are still the old ones. Of a Chroma directory
// that was being emptied, it keeps what is in the way of nothing.
func (m *model) acted(before, after *modelScan) {
	concerned := make(map[int]bool)
	for _, slots := range m.pending {
		for _, slot := range slots {
			concerned[slot] = true
		}
	}
	may := make(map[modelState]bool)
	for state := range m.may {
		variants := []modelState{state}
		for slot := range after.state {
			switch {
			case before.state[slot] == after.state[slot]:
			case !concerned[slot]:
				for i := range variants {
					variants[i][slot] = after.state[slot]
				}
			case state[slot] == before.state[slot]:
				for _, kept := range variants {
					kept[slot] = after.state[slot]
					variants = append(variants, kept)
				}
			case slot/2 == modelChroma:
				for _, joined := range variants {
					joined[slot] = joinChroma(joined[slot], before.state[slot], after.state[slot])
					variants = append(variants, joined)
				}
			}
		}
		for _, variant := range variants {
			may[variant] = true
		}
	}
	m.may = may
	m.ends(before)
}

// joinChroma returns the state of a Chroma directory with the files that came
// to another one between the states before and after.
func joinChroma(state, before, after string) string {
	files := strings.Fields(state)
	for _, file := range strings.Fields(after) {
		path, _, _ := strings.Cut(file, "=")
		taken := func(file string) bool { return strings.HasPrefix(file, path+"=") }
		if file != missingPart && !slices.Contains(strings.Fields(before), file) && !slices.ContainsFunc(files, taken) {
			files = append(files, file)
		}
	}
	if len(files) > 1 {
		files = slices.DeleteFunc(files, func(file string) bool { return file == missingPart })
	}
	slices.Sort(files)
	return strings.Join(files, " ")
}

// ends records the units that the operator, the service or a prune has ended
// while a restore is unfinished, although they are in the restored store, which
// an undo removes, or in a second name that the restore has given the database.
func (m *model) ends(before *modelScan) {
	if len(m.pending) == 0 {
		return
	}
	for unit, places := range m.last.units {
		was := before.units[unit]
		if len(places) != 1 || len(was) < 2 {
			continue
		}
		if places[0] == "live" || strings.HasPrefix(places[0], "old ") && slices.Contains(was, "live") {
			m.ended[unit] = true
		}
	}
}

// checkUnits checks that a call ended no unit of content.
func (m *model) checkUnits(call *modelCall, before *modelScan) error {
	pruned := func(place string) bool {
		return call.Name == "prune" && strings.HasPrefix(place, filepath.Base(call.Store.BackupDir)+"/")
	}
	for _, unit := range slices.Sorted(maps.Keys(before.units)) {
		places := before.units[unit]
		if len(m.last.units[unit]) > 0 || m.ended[unit] || m.unsure[unit] || !slices.ContainsFunc(places, func(p string) bool { return !pruned(p) }) {
			continue
		}
		return fmt.Errorf("%s is gone: it was in %v", unit, places)
	}
	for unit, places := range m.last.units {
		for _, place := range places {
			if id, ok := strings.CutPrefix(place, "old "); ok && m.last.journals[id] == nil {
				return fmt.Errorf("%s is in a staging directory without a journal: %v", unit, places)
			}
		}
	}
	if call.Name == "prune" {
		m.ends(before)
	}
	return nil
}

// checkTold checks that every new directory with what was set aside was
// reported. A call that was killed can't.
func (m *model) checkTold(result *modelResult, before *modelScan) error {
	for _, path := range result.SetAside {
		m.told[filepath.Base(path)] = true
		if _, err := os.Stat(path); err != nil {
			m.counts.count("set-aside directories that a restore replaced")
		}
	}
	for id := range before.journals {
		if result.Killed && m.last.journals[id] == nil {
			m.told[id] = true // it was not, but would have been
		}
	}
	for _, snapshot := range before.snapshots { // a restore brings these back
		for _, name := range snapshot.aside {
			m.told[name] = true
		}
	}
	for name, path := range m.last.aside {
		id := name[strings.Index(name, asideMark)+len(asideMark):]
		if m.told[name] || m.told[id] || m.last.journals[id] != nil {
			continue
		}
		if !result.Killed && path != "" && !slices.Contains(result.SetAside, path) && !strings.Contains(result.Err, path) {
			return fmt.Errorf("%s was set aside and not reported: %v", path, result.SetAside)
		}
		m.told[name] = true
	}
	return nil
}

// visibleJournal reports whether there is a journal beside the database.
func (m *model) visibleJournal() bool {
	for _, j := range m.last.journals {
		if j.slot == m.slot(modelDB) {
			return true
		}
	}
	return false
}

// strayPointer reports whether a backup directory has a pointer to a journal
// although there is none.
func (m *model) strayPointer(dir string) bool {
	_, err := os.Stat(filepath.Join(m.backupPath(dir), journalFile))
	return err == nil && !m.visibleJournal()
}

// checkCall checks what a call returned.
func (m *model) checkCall(call *modelCall, result *modelResult, before *modelScan) error {
	dir := filepath.Base(call.Store.BackupDir)
	if call.Name == "create" && result.Err == "" && !result.Killed {
		m.counts.count("snapshots")
		snapshot := m.last.snapshots[dir+"/"+result.Stamp]
		if snapshot == nil {
			return errors.New("the new snapshot is not there")
		}
		if m.visibleJournal() {
			return errors.New("a snapshot was taken although a restore is unfinished")
		}
		if !m.isWhole(snapshot, call) {
			return fmt.Errorf("the snapshot %s is a mixture: %q", result.Stamp, snapshot.parts)
		}
	}
	if result.Killed || result.Err == "" || call.Fault.Kind != "" || m.hidden[dir] || m.server != nil && call.Name == "restore" {
		return nil
	}
	// Nothing hinders the call.
	database := before.state[m.slot(modelDB)]
	switch call.Name {
	case "create":
		registry := before.state[m.slot(modelRegistry)]
		if len(m.pending) == 0 && strings.HasPrefix(database, "rows") && !strings.Contains(registry, "damage") && registry != describeContent(nil) {
			return fmt.Errorf("no snapshot could be taken: %s", result.Err)
		}
	case "restore":
		if !before.snapshots[dir+"/"+call.Stamp].isValid() || call.Store.Registry == "" || call.Store.Chroma == "" || m.strayPointer(dir) && database == missingPart {
			return nil
		}
		for part, state := range before.snapshots[dir+"/"+call.Stamp].parts {
			if state == "" && len(call.Only) > 0 && call.restores(part) {
				return nil // it does not have what is asked for
			}
		}
		if len(before.journals) == 0 || m.mountsAsThen(before) {
			return fmt.Errorf("the restore failed: %s", result.Err)
		}
	}
	return nil
}

// mountsAsThen reports whether the only unfinished restore had the volumes
// mounted that are mounted now.
func (m *model) mountsAsThen(s *modelScan) bool {
	if len(s.journals) != 1 {
		return false
	}
	for id := range s.journals {
		if mounts, ok := m.mounts[id]; ok {
			return maps.Equal(mounts, m.mounted)
		}
	}
	return false
}

// isWhole reports whether a snapshot has what the store may have.
func (m *model) isWhole(snapshot *modelSnapshot, call *modelCall) bool {
	for state := range m.may {
		same := true
		for part, was := range snapshot.parts {
			now := state[m.slot(part)]
			if was == "" && (part == modelChroma || part == modelRegistry && call.Store.Registry == "") { // it was left out
				continue
			}
			if was == "" {
				was = missingPart
			}
			same = same && was == now
		}
		if same {
			return true
		}
	}
	return false
}

// check checks what holds after every step.
func (m *model) check() error {
	if err := m.settle(nil); err != nil {
		return err
	}
	for _, dir := range []string{"A", "B"} {
		if m.hidden[dir] {
			continue
		}
		call := &modelCall{Name: "list", Store: m.paths(dir), Clock: m.clock}
		result := call.run()
		switch {
		case m.visibleJournal() && !result.Unfinished:
			return fmt.Errorf("list in %s says nothing of an unfinished restore: %q", dir, result.Err)
		case len(m.pending) == 0 && result.Err != "" && !m.strayPointer(dir):
			return fmt.Errorf("list in %s: %s", dir, result.Err)
		}
	}
	return nil
}

// wayOut does what docs/restore.md says about an unfinished restore, and then
// restores a snapshot.
func (m *model) wayOut() error {
	m.stopService("kill")
	for _, dir := range []string{"A", "B"} {
		if err := m.show(dir); err != nil {
			return err
		}
	}
	before := m.last
	var err error
	if m.last, err = m.scan(); err != nil {
		return err
	}
	m.acted(before, m.last)
	for rounds := 0; len(m.last.journals) > 0; rounds++ {
		if rounds == 4 {
			return errors.New("the unfinished restores do not end")
		}
		for id := range m.last.journals {
			if m.cut[id] {
				err = m.clearAway()
			} else {
				err = m.leave(id)
			}
			if err != nil {
				return err
			}
			break
		}
	}
	if err := m.setMounts(m.volumes); err != nil {
		return err
	}
	m.note("everything is mounted")
	for _, dir := range []string{"A", "B"} {
		if stamp := m.validStamp(dir); stamp != unknownStamp {
			if err := m.restoreFully(dir, stamp); err != nil {
				return err
			}
		}
	}
	return m.validateAll()
}

// leave recovers from one unfinished restore.
func (m *model) leave(id string) error {
	j := m.last.journals[id]
	// Everything is mounted, as the guide says.
	mounts := maps.Clone(m.volumes)
	if j.slot%2 == 0 {
		delete(mounts, "db")
	}
	dir := "A"
	if j.BackupDir != "" {
		dir = filepath.Base(j.BackupDir)
	} else if _, err := os.Stat(m.backupPath(dir)); err != nil {
		dir = "B"
	}
	for attempt := 1; ; attempt++ {
		if err := m.setMounts(mounts); err != nil {
			return err
		}
		m.note("to leave %s: restore with %s, mounted: %v", id, dir, slices.Sorted(maps.Keys(mounts)))
		m.clock = m.clock.Add(time.Second)
		call := &modelCall{Name: "restore", Store: m.paths(dir), Stamp: m.validStamp(dir), Clock: m.clock}
		before := m.last
		if err := m.make(call, before); err != nil {
			return err
		}
		if m.last.journals[id] == nil {
			m.counts.count(fmt.Sprintf("ways out in %d attempts", attempt))
			return nil
		}
		if attempt == 3 {
			return fmt.Errorf("the restore %s does not end in 3 attempts", id)
		}
		if then, ok := m.mounts[id]; ok && !maps.Equal(then, mounts) {
			// The volumes as they were.
			m.counts.count("ways out only with other volumes")
			mounts = maps.Clone(then)
		}
	}
}

// clearAway moves everything away that restores have left, as the guide says
// for one that can't be finished or undone. What is left is not one store.
func (m *model) clearAway() error {
	m.counts.count("ways out by clearing away")
	m.note("everything that restores have left is moved away")
	to := filepath.Join(m.root, "cleared")
	if err := os.Mkdir(to, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	for _, path := range slices.Concat(m.last.remains, m.last.hidden) {
		// Not a rename: the directories are mounts.
		if out, err := exec.Command("mv", path, to).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
	}
	var err error
	m.last, err = m.scan()
	m.may = map[modelState]bool{m.last.state: true}
	return errors.Join(err, m.settle(nil))
}

// restoreFully restores a snapshot, after which nothing may be left.
func (m *model) restoreFully(dir, stamp string) error {
	m.clock = m.clock.Add(time.Second)
	call := &modelCall{Name: "restore", Store: m.paths(dir), Stamp: stamp, Clock: m.clock}
	if err := m.make(call, m.last); err != nil {
		return err
	}
	if m.result.Err != "" && m.strayPointer(dir) {
		// What the guide says if everything is mounted.
		m.counts.count("ways out by removing a pointer")
		if err := os.Remove(filepath.Join(m.root, dir, journalFile)); err != nil {
			return err
		}
		if err := m.make(call, m.last); err != nil {
			return err
		}
	}
	if m.result.Err != "" {
		return fmt.Errorf("the last restore failed: %s", m.result.Err)
	}
	if len(m.last.remains) > 0 {
		return fmt.Errorf("this is left of a restore: %q", m.last.remains)
	}
	if len(m.last.hidden) > 0 {
		m.counts.count("remains below a mount point or in another volume")
	}
	return nil
}

// validateAll checks that every snapshot is valid, but for a registry that is
// empty.
func (m *model) validateAll() error {
	for key, snapshot := range m.last.snapshots {
		call := &modelCall{Name: "validate", Store: m.paths(snapshot.dir), Stamp: snapshot.stamp, Clock: m.clock}
		result := call.run()
		valid := result.Err == "" || strings.Contains(result.Err, "has a problem: registry_invalid_json")
		if valid != snapshot.isValid() {
			return fmt.Errorf("the verdict on the snapshot %s is wrong: %s", key, result.Err)
		}
	}
	return nil
}

// show brings a backup directory back.
func (m *model) show(dir string) error {
	if !m.hidden[dir] {
		return nil
	}
	delete(m.hidden, dir)
	return os.Rename(filepath.Join(m.root, dir+".hidden"), filepath.Join(m.root, dir))
}
