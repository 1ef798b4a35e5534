package restore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/atocore/backup/internal/backuptest"
)

// What the service and the operator do in the model.

// act does a step that calls no function of the library.
func (m *model) act(step modelStep) error {
	dir := step.Arg["dir"]
	switch step.Op {
	case "service":
		return m.serve(step)
	case "start":
		return m.startService(step)
	case "stop":
		m.stopService(step.Arg["end"])
	case "mount":
		if m.server == nil {
			return m.mount(step.Arg["what"])
		}
	case "unmount":
		if m.server == nil {
			return m.unmount(step.Arg["what"])
		}
	case "hide":
		if _, err := os.Stat(m.backupPath(dir)); err == nil && !m.hidden[dir] {
			m.hidden[dir] = true
			return os.Rename(filepath.Join(m.root, dir), filepath.Join(m.root, dir+".hidden"))
		}
	case "show":
		return m.show(dir)
	case "lose":
		stamp := m.stampOf(dir, step.Arg["snapshot"])
		return os.RemoveAll(filepath.Join(m.backupPath(dir), "snapshots", stamp))
	case "clear":
		return m.clearAside()
	case "clock":
		m.clock = m.clock.Add(time.Duration(step.number("seconds")) * time.Second)
	case "delete":
		return m.delete(step)
	case "damage":
		return m.damage(step)
	}
	return nil
}

func partOf(step modelStep) int { return slices.Index(modelPartNames[:], step.Arg["part"]) }

// serve runs the service once. It adds rows and files, each with a unit of its
// own.
func (m *model) serve(step modelStep) error {
	if err := m.serveDatabase(step); err != nil {
		return err
	}
	if step.Arg["registry"] == "true" {
		text := fmt.Sprintf(`{"unit": "unit-%dr"}`, step.N)
		if err := m.writeRegistry(text); err != nil {
			return err
		}
	}
	chroma := filepath.Join(m.root, "live", "chroma")
	for n := range step.number("files") {
		name := "same"
		if n > 0 {
			name = fmt.Sprintf("segment-%d/data", step.N)
		}
		path := filepath.Join(chroma, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, fmt.Appendf(nil, "unit-%dc%d", step.N, n), 0o600); err != nil {
			return err
		}
	}
	return m.chownParts(70000 + step.N)
}

// chownParts gives a file of each part to a user of its own.
func (m *model) chownParts(owner int) error {
	if os.Geteuid() != 0 || m.server != nil {
		return nil
	}
	for part := range modelParts {
		if err := os.Lchown(m.liveFile(part), owner, owner); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// writeRegistry replaces the registry as editors do, or overwrites it if it is a
// mount point.
func (m *model) writeRegistry(text string) error {
	path := m.liveFile(modelRegistry)
	if m.files[modelRegistry] {
		return os.WriteFile(path, []byte(text), 0o600)
	}
	if err := os.WriteFile(path+".tmp", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// serveDatabase lets the service add rows. A service does not work on a database
// that it cannot read.
func (m *model) serveDatabase(step modelStep) error {
	if strings.HasPrefix(m.last.state[m.slot(modelDB)], "bad") {
		return nil
	}
	var units []string
	for n := range step.number("rows") {
		units = append(units, fmt.Sprintf("unit-%dd%d", step.N, n))
	}
	if m.server != nil {
		for _, unit := range units {
			if err := m.ask(unit); err != nil {
				return err
			}
		}
		return nil
	}
	end := step.Arg["end"]
	cmd := backuptest.Command(m.t, "model-service", m.liveFile(modelDB), step.Arg["mode"], end, strings.Join(units, " "))
	out, err := cmd.CombinedOutput()
	if end == "close" && err != nil || len(out) > 0 {
		return fmt.Errorf("the service failed: %w\n%s", err, out)
	}
	return nil
}

// A modelServer is a service that has the database open.
type modelServer struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// startService starts a service that keeps the database open.
func (m *model) startService(step modelStep) error {
	if m.server != nil || strings.HasPrefix(m.last.state[m.slot(modelDB)], "bad") {
		return nil
	}
	cmd := backuptest.Command(m.t, "model-service", m.liveFile(modelDB), step.Arg["mode"], "stay", "")
	cmd.Env = append(cmd.Env, "BACKUPTEST_TIED=1")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	m.server = &modelServer{cmd: cmd, in: in, out: bufio.NewScanner(out)}
	return m.heard()
}

func (m *model) ask(line string) error {
	if _, err := fmt.Fprintln(m.server.in, line); err != nil {
		return err
	}
	return m.heard()
}

func (m *model) heard() error {
	if !m.server.out.Scan() {
		return errors.New("the service ended")
	}
	return nil
}

// stopService lets the service close the database, or kills it.
func (m *model) stopService(end string) {
	if m.server == nil {
		return
	}
	if end == "close" {
		fmt.Fprintln(m.server.in, "stop")
	} else {
		_ = m.server.cmd.Process.Kill()
	}
	_ = m.server.cmd.Wait()
	m.server = nil
}

// delete removes files of the store.
func (m *model) delete(step modelStep) error {
	part, all := partOf(step), step.Arg["what"] == "all"
	path := m.liveFile(part)
	switch {
	case m.server != nil && part == modelDB:
		return nil
	case part == modelChroma && all:
		return m.emptyChroma()
	case part == modelDB && all:
		for _, suffix := range []string{"-wal", "-shm", "-journal"} {
			if err := removeFile(path + suffix); err != nil {
				return err
			}
		}
	}
	if m.files[part] {
		return os.Truncate(path, 0)
	}
	return removeFile(path)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// emptyChroma removes everything in the Chroma directory but what restores have
// put there.
func (m *model) emptyChroma() error {
	dir := filepath.Join(m.root, "live", "chroma")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, entry := range entries {
		if name := entry.Name(); !strings.HasPrefix(name, remainsPrefix) && !strings.Contains(name, asideMark) {
			if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
				return err
			}
		}
	}
	return nil
}

// damage writes something into a file of the store that is there. What is
// written is a unit of content, too.
func (m *model) damage(step modelStep) error {
	part := partOf(step)
	if m.server != nil && part == modelDB {
		return nil
	}
	path := m.liveFile(part)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	unit := fmt.Sprintf("damage-%d%s", step.N, modelPartNames[part][:1])
	switch what := step.Arg["what"]; {
	case what == "empty":
		data = nil
	case part != modelDB:
		data = []byte("{ " + unit)
	case what == "header":
		copy(data, strings.Repeat(unit+" ", 10))
	case what == "page" && len(data) >= 8192:
		copy(data[4096:8192], strings.Repeat(unit+" ", 400))
	case what == "half":
		data = append(data[:len(data)/2], unit...)
	}
	return os.WriteFile(path, data, 0o600)
}

// clearAside removes what was set aside and reported.
func (m *model) clearAside() error {
	for name, path := range m.last.aside {
		if m.told[name] && path != "" {
			if err := os.RemoveAll(path); err != nil {
				return err
			}
		}
	}
	return nil
}
