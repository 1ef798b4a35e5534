package restore

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/atocore/backup"
)

// The steps of the model: how they are chosen, written down and read again.

// A modelStep is one line of a script. What a step means depends on the state in
// which it is done, so that any step can follow any other.
type modelStep struct {
	// N is the number of the step. What the step writes is named after it, so
	// it stays when other steps are left out.
	N  int
	Op string
	// Arg has the arguments, by name.
	Arg map[string]string
}

// The arguments of the steps, in the order in which they are written.
var modelArgs = []string{"dir", "part", "what", "snapshot", "without", "only", "mode", "end", "rows", "files", "registry",
	"keep", "seconds", "fault", "at", "phase", "errno"}

func (s modelStep) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d %s", s.N, s.Op)
	for _, name := range modelArgs {
		if value, ok := s.Arg[name]; ok {
			fmt.Fprintf(&b, " %s=%s", name, value)
		}
	}
	return b.String()
}

func (s modelStep) number(name string) int {
	n, _ := strconv.Atoi(s.Arg[name])
	return n
}

// fault returns what happens to the step's call.
func (s modelStep) fault() modelFault {
	return modelFault{
		Kind: s.Arg["fault"], At: s.number("at"), Phase: backup.Phase(s.Arg["phase"]), Errno: syscall.Errno(s.number("errno")),
	}
}

// A modelScript is a sequence of steps in a store of some layout.
type modelScript struct {
	// layout has the words of newModelWorld, and "within" if calls are made in
	// the process of the test.
	layout string
	steps  []modelStep
}

func (s *modelScript) String() string {
	lines := []string{"layout " + s.layout}
	for _, step := range s.steps {
		lines = append(lines, step.String())
	}
	return strings.Join(lines, "\n") + "\n"
}

// parseModelScript reads a script again.
func parseModelScript(text string) (*modelScript, error) {
	script := new(modelScript)
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || strings.HasPrefix(fields[0], "#") {
			continue
		}
		if fields[0] == "layout" {
			script.layout = strings.Join(fields[1:], " ")
			continue
		}
		n, err := strconv.Atoi(fields[0])
		if err != nil || len(fields) < 2 {
			return nil, fmt.Errorf("%q is no step", line)
		}
		step := modelStep{N: n, Op: fields[1], Arg: make(map[string]string)}
		for _, field := range fields[2:] {
			name, value, _ := strings.Cut(field, "=")
			step.Arg[name] = value
		}
		script.steps = append(script.steps, step)
	}
	return script, nil
}

// newModelScript chooses a script with so many steps. Without volumes, there
// are no mount points.
func newModelScript(seed uint64, steps int, volumes bool) *modelScript {
	g := &modelChooser{Rand: rand.New(rand.NewPCG(seed, 0)), restores: 40}
	if g.chance(30) {
		g.restores = 150
	}
	script := new(modelScript)
	var layout []string
	if g.chance(30) {
		layout = append(layout, "flat")
	}
	if g.chance(15) {
		layout = append(layout, "within")
	}
	for _, dir := range []struct {
		name    string
		percent int
	}{{"db", 25}, {"config", 20}, {"chroma", 70}} {
		if g.chance(dir.percent) && volumes {
			layout = append(layout, dir.name)
		}
	}
	// Not the database: no snapshot is taken of a WAL database that is a mount
	// point without its WAL, because its users may have it by another name.
	for _, file := range []struct{ name, dir string }{{"registry", "config"}} {
		if g.chance(15) && volumes && !slices.Contains(layout, file.dir) && !slices.Contains(layout, "flat") {
			layout = append(layout, "file:"+file.name)
		}
	}
	script.layout = strings.Join(layout, " ")
	// Without a store and a snapshot, little could happen.
	for _, dir := range []string{"A", "B"} {
		create := modelStep{Op: "create", Arg: map[string]string{"dir": dir}}
		script.steps = append(script.steps, g.step("service"), create)
	}
	for len(script.steps) < steps {
		last := script.steps[len(script.steps)-1]
		script.steps = append(script.steps, g.step(g.opAfter(last)))
	}
	if g.chance(60) { // let it end with an unfinished restore
		last := g.step("restore")
		last.Arg["fault"], last.Arg["at"] = "kill", fmt.Sprint(80+g.IntN(140))
		delete(last.Arg, "phase")
		delete(last.Arg, "errno")
		script.steps[len(script.steps)-1-g.IntN(4)] = last
	}
	for i := range script.steps {
		script.steps[i].N = i + 1
	}
	return script
}

// A modelChooser chooses steps at random.
type modelChooser struct {
	*rand.Rand
	restores int // the weight of restores
}

func (g *modelChooser) chance(percent int) bool { return g.IntN(100) < percent }

func (g *modelChooser) pick(choices ...string) string { return choices[g.IntN(len(choices))] }

// op chooses the kind of a step.
func (g *modelChooser) op() string {
	kinds := []struct {
		op     string
		weight int
	}{
		{"restore", g.restores}, {"service", 20}, {"create", 12}, {"mount", 7}, {"unmount", 7}, {"damage", 6},
		{"delete", 6}, {"start", 2}, {"stop", 2}, {"hide", 2}, {"show", 3}, {"prune", 3}, {"lose", 2},
		{"clear", 2}, {"clock", 2}, {"validate", 1},
	}
	sum := 0
	for _, kind := range kinds {
		sum += kind.weight
	}
	at := g.IntN(sum)
	for _, kind := range kinds {
		if at -= kind.weight; at < 0 {
			return kind.op
		}
	}
	panic("unreachable")
}

// opAfter chooses the kind of a step that follows another one. It disturbs most
// restores that were interrupted before it goes on with them.
func (g *modelChooser) opAfter(last modelStep) string {
	switch {
	case last.Arg["fault"] == "kill" && last.Op == "restore" && g.chance(60):
		return g.pick("service", "service", "service", "damage", "delete", "lose", "unmount", "hide")
	case last.Op == "service" && g.chance(30):
		return g.pick("damage", "delete", "restore")
	}
	return g.op()
}

func (g *modelChooser) step(op string) modelStep {
	s := modelStep{Op: op, Arg: make(map[string]string)}
	set := func(name string, value any) { s.Arg[name] = fmt.Sprint(value) }
	dir := func() { set("dir", g.pick("A", "A", "B")) }
	switch op {
	case "restore":
		dir()
		switch {
		case g.chance(6):
			set("snapshot", "unknown")
		case g.chance(4):
			set("snapshot", "other") // of the other backup directory
		case g.chance(50):
			set("snapshot", 0)
		default:
			set("snapshot", g.IntN(8))
		}
		if g.chance(4) {
			set("without", g.pick("registry", "chroma"))
		}
		if g.chance(20) {
			set("only", g.pick("db", "registry", "chroma", "db,registry", "db,chroma", "registry,chroma"))
		}
		g.fault(set, "stage", "swap", "verify", "validate_files", "database", "publish")
	case "create":
		dir()
		if g.chance(20) {
			set("without", g.pick("registry", "chroma"))
		}
		if g.chance(30) {
			g.fault(set, "database", "chroma", "hash", "publish")
		}
	case "prune":
		dir()
		set("keep", 1+g.IntN(3))
		if g.chance(30) {
			set("fault", "kill")
			set("at", 1+g.IntN(20))
		}
	case "validate":
		dir()
		set("snapshot", g.IntN(8))
	case "hide", "show":
		dir()
	case "lose":
		dir()
		set("snapshot", g.pick("0", "1", "2", "newest", "newest"))
	case "mount", "unmount":
		set("what", g.pick("chroma", "chroma", "db", "config"))
	case "service":
		set("mode", g.pick("wal", "wal", "wal", "delete"))
		set("end", g.pick("close", "kill", "kill", "hot"))
		set("rows", g.IntN(4))
		set("files", g.IntN(3))
		set("registry", g.chance(50))
	case "start":
		set("mode", g.pick("wal", "delete"))
	case "stop":
		set("end", g.pick("close", "kill"))
	case "damage":
		set("part", g.pick("db", "db", "registry", "chroma"))
		set("what", g.pick("header", "page", "half", "empty"))
	case "delete":
		set("part", g.pick("db", "db", "registry", "chroma", "chroma"))
		set("what", g.pick("file", "all"))
	case "clock":
		set("seconds", []int{-86400, -3600, -2, -1, 1, 3600}[g.IntN(6)])
	}
	return s
}

// fault chooses what happens to a call, if anything.
func (g *modelChooser) fault(set func(string, any), phases ...string) {
	at := 1 + g.IntN(60)
	switch {
	case g.chance(30):
		at = 1 + g.IntN(260)
	case g.chance(50):
		at = 90 + g.IntN(100) // while the parts are swapped
	}
	switch {
	case g.chance(35):
	case g.chance(50):
		set("fault", "kill")
		set("at", at)
	case g.chance(30):
		set("fault", "kill-phase")
		set("phase", g.pick(phases...))
		set("at", 1+g.IntN(3))
	case g.chance(30):
		set("fault", "cancel")
		set("phase", g.pick(phases...))
		set("at", 1+g.IntN(3))
	default:
		set("fault", g.pick("fail", "fail-on"))
		set("at", at)
		set("errno", int([]syscall.Errno{syscall.EIO, syscall.ENOSPC, syscall.EPERM}[g.IntN(3)]))
	}
}
