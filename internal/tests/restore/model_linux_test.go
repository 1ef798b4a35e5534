package restore

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var (
	modelSeed   = flag.Uint64("model-seed", 0, "run the model's sequence of this seed `n` only")
	modelFirst  = flag.Uint64("model-first", 1, "run the model's sequences from the seed `n` on")
	modelTime   = flag.Duration("model-time", 5*time.Second, "begin sequences of the model until `d` has passed")
	modelSteps  = flag.Int("model-steps", 30, "let a sequence of the model have `n` steps")
	modelRun    = flag.String("model-script", "", "run the model's script in `file`")
	modelShrink = flag.Int("model-shrink", 300, "try to shorten a failing script up to `n` times")
)

// Random sequences of creates, restores, kills, failures, mounts, work of the
// service, damage and recoveries: after each step nothing that somebody wrote
// may be gone, no mixture of stores may be taken for one, and in the end the
// documented commands must lead to a whole store. See model_checks for the rules.
func TestModel(t *testing.T) {
	if *modelRun != "" {
		text, err := os.ReadFile(*modelRun)
		require.NoError(t, err)
		script, err := parseModelScript(string(text))
		require.NoError(t, err)
		runModelScript(t, script, nil)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), *modelTime)
	defer cancel()
	first := *modelFirst
	if *modelSeed != 0 {
		first = *modelSeed
	}
	counts := make(modelCounts)
	for seed := first; ; seed++ {
		script := newModelScript(seed, *modelSteps, os.Geteuid() == 0)
		t.Logf("seed %d", seed)
		runModelScript(t, script, counts)
		if *modelSeed != 0 || ctx.Err() != nil {
			break
		}
	}
	t.Log(counts)
}

// modelScripts are sequences that have found faults. Each is run with a kill at
// several of its system calls, because their numbers change with the code.
var modelScripts = []struct {
	name             string
	from, to, stride int // the values of AT
	script           string
}{
	{"a safety snapshot of a store that was written to since is kept", 40, 140, 10, `
		layout flat
		1 service mode=delete end=kill rows=3 files=2 registry=false
		2 create dir=A
		3 service mode=delete end=hot rows=0 files=0 registry=true
		4 restore dir=A snapshot=0 fault=kill at=AT
		5 service mode=wal end=hot rows=3 files=0 registry=true`},
	{"a safety snapshot is the only copy of a database that was damaged since", 40, 140, 10, `
		layout
		1 service mode=wal end=close rows=2 files=2 registry=true
		2 create dir=A
		3 service mode=wal end=close rows=2 files=2 registry=true
		4 restore dir=A snapshot=0 fault=kill at=AT
		5 damage part=db what=header`},
	{"a safety snapshot of an earlier restore is kept although the clock went back", 20, 100, 10, `
		layout
		1 service mode=wal end=close rows=2 files=2 registry=true
		2 create dir=A
		3 service mode=wal end=close rows=2 files=2 registry=true
		4 restore dir=A snapshot=0
		5 clock seconds=-3600
		6 restore dir=A snapshot=0 fault=kill at=AT`},
	{"staging directories whose journal is not mounted are kept", 85, 165, 10, `
		layout db
		1 service mode=wal end=close rows=2 files=2 registry=true
		2 create dir=A
		3 create dir=B
		4 delete part=chroma what=all
		5 restore dir=A snapshot=0 fault=kill at=AT
		6 unmount what=db
		7 service mode=wal end=close rows=1 files=0 registry=false
		8 restore dir=A snapshot=0`},
	{"a WAL is not put back beside a database that was written to since", 34, 60, 2, `
		layout db config
		1 service mode=wal end=kill rows=3 files=1 registry=false
		2 create dir=A without=chroma
		3 service mode=wal end=kill rows=2 files=0 registry=true
		4 damage part=db what=empty
		5 restore dir=A snapshot=0 fault=kill at=AT
		6 service mode=wal end=close rows=2 files=2 registry=true`},
	{"the WAL of an emptied database is left alone", 0, 0, 1, `
		layout
		1 service mode=wal end=kill rows=2 files=0 registry=false
		2 damage part=db what=empty
		3 create dir=B`},
	{"a database that was cut short can be replaced", 0, 0, 1, `
		layout db
		1 service mode=wal end=close rows=3 files=0 registry=true
		2 create dir=A
		3 damage part=db what=half
		4 restore dir=A snapshot=0`},
	{"what was set aside is told although the journal cannot be removed", 54, 72, 2, `
		layout flat chroma
		1 service mode=delete end=close rows=3 files=2 registry=true
		2 create dir=A
		3 create dir=B
		4 service mode=delete end=kill rows=1 files=2 registry=true
		5 service mode=wal end=kill rows=0 files=1 registry=true
		6 restore dir=B snapshot=4 fault=kill at=118
		7 service mode=wal end=kill rows=3 files=2 registry=false
		8 restore dir=A snapshot=4 fault=fail at=AT errno=5`},
	{"a pointer is left in a backup directory that was away, and copies on a volume", 46, 58, 4, `
		layout chroma
		1 service mode=delete end=hot rows=1 files=0 registry=false
		2 create dir=A
		3 create dir=B
		4 restore dir=A snapshot=0 fault=kill at=AT
		5 hide dir=A
		6 unmount what=chroma
		7 restore dir=B snapshot=3`},
	{"a pointer is left in a backup directory that was away", 90, 150, 20, `
		layout
		1 service mode=wal end=close rows=2 files=2 registry=true
		2 create dir=A
		3 create dir=B
		4 restore dir=A snapshot=0 fault=kill at=AT
		5 hide dir=A
		6 restore dir=B snapshot=0
		7 show dir=A
		8 delete part=db what=all`},
}

func TestModelScripts(t *testing.T) {
	for _, tt := range modelScripts {
		t.Run(tt.name, func(t *testing.T) {
			for at := tt.from; at <= tt.to; at += tt.stride {
				script, err := parseModelScript(strings.ReplaceAll(tt.script, "AT", fmt.Sprint(at)))
				require.NoError(t, err)
				if script.layout != "" && script.layout != "flat" && os.Geteuid() != 0 {
					t.Skip("only the superuser can mount volumes")
				}
				require.NoError(t, playModelScript(t, script, nil), "%s", script)
			}
		})
	}
}

// modelCounts are the numbers of what was done.
type modelCounts map[string]int

func (c modelCounts) count(what string) {
	if c != nil {
		c[what]++
	}
}

func (c modelCounts) String() string {
	var texts []string
	for _, what := range slices.Sorted(maps.Keys(c)) {
		texts = append(texts, fmt.Sprintf("%d %s", c[what], what))
	}
	return strings.Join(texts, ", ")
}

// runModelScript runs a script. If it fails, a shorter one is looked for that
// fails, too, and the test fails with that.
func runModelScript(t *testing.T, script *modelScript, counts modelCounts) {
	t.Helper()
	err := playModelScript(t, script, counts)
	if err == nil {
		return
	}
	t.Logf("this script fails:\n%s%v", script, err)
	tries, kind := 0, kindOf(err)
	shorter := shrinkModelScript(script, func(s *modelScript) bool {
		tries++
		if tries > *modelShrink {
			return false
		}
		failed := playModelScript(t, s, nil)
		if failed == nil || kindOf(failed) != kind {
			return false
		}
		err = failed
		return true
	})
	require.FailNow(t, "the model does not hold", "%s%v", shorter, err)
}

// kindOf returns the beginning of an error's text without names of its script,
// so that another fault does not take the place of the one that is looked for.
func kindOf(err error) string {
	_, text, _ := strings.Cut(err.Error(), ": ")
	words := strings.Fields(text)
	for len(words) > 0 && strings.ContainsAny(words[0], "0123456789") {
		words = words[1:]
	}
	return strings.Join(words[:min(len(words), 4)], " ")
}

// shrinkModelScript leaves out steps, first many at once and then single ones,
// as long as the script fails without them.
func shrinkModelScript(script *modelScript, fails func(*modelScript) bool) *modelScript {
	for size := len(script.steps) / 2; size > 0; {
		shorter := false
		for at := 0; at < len(script.steps); {
			end := min(at+size, len(script.steps))
			without := &modelScript{layout: script.layout, steps: slices.Concat(script.steps[:at], script.steps[end:])}
			if fails(without) {
				script, shorter = without, true
			} else {
				at = end
			}
		}
		if !shorter || size > 1 {
			size /= 2
		}
	}
	return script
}

// playModelScript does the steps of a script, checks the state after each, and
// leads the store out of the last one.
func playModelScript(t *testing.T, script *modelScript, counts modelCounts) (err error) {
	// A sequence syncs thousands of times, which needs no disk.
	root, err := os.MkdirTemp("/dev/shm", "model")
	if err != nil {
		root, err = os.MkdirTemp("", "model")
	}
	require.NoError(t, err)
	root, err = filepath.EvalSymlinks(root)
	require.NoError(t, err)
	layout := strings.Fields(script.layout)
	within := slices.Contains(layout, "within")
	layout = slices.DeleteFunc(layout, func(word string) bool { return word == "within" })
	w, err := newModelWorld(t, root, layout...)
	if err != nil {
		t.Skipf("no volumes can be mounted here: %v", err)
	}
	m := &model{modelWorld: w, within: within, counts: counts}
	defer func() {
		m.stopService("kill")
		err = errors.Join(err, w.remove())
	}()
	if err := m.begin(); err != nil {
		return err
	}
	counts.count("sequences")
	for _, step := range script.steps {
		counts.count("steps")
		if err := m.do(step); err != nil {
			return fmt.Errorf("step %d: %w\n%s", step.N, err, m.trace())
		}
	}
	if err := m.wayOut(); err != nil {
		return fmt.Errorf("way out: %w\n%s", err, m.trace())
	}
	return nil
}
