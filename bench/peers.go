package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// tools are the paths of the tools found on this machine, or "" for one that is
// missing.
type tools struct {
	cp, sync, rsync, sqlite3, python, sha256sum, mkfsXFS, restic string

	goPeers string   // the program built from bench/peers
	names   []string // the peers that it contains
	dir     string   // the directory it was built in
}

func (t *tools) remove() error { return os.RemoveAll(t.dir) }

func (b *bench) findTools(ctx context.Context) (t tools, err error) {
	for name, into := range map[string]*string{
		"cp": &t.cp, "sync": &t.sync, "rsync": &t.rsync, "sqlite3": &t.sqlite3,
		"python3": &t.python, "sha256sum": &t.sha256sum, "mkfs.xfs": &t.mkfsXFS, "restic": &t.restic,
	} {
		if *into, err = exec.LookPath(name); err != nil {
			*into = ""
			b.say("%s is not installed: its rows are left out", name)
		}
	}
	if t.python != "" { // resolved, because a wrapper would add its own start-up time
		if real, err := output(ctx, t.python, "-c", "import sqlite3, sys; print(sys.executable)"); err != nil {
			t.python = ""
			b.say("python3 has no sqlite3: its rows are left out")
		} else {
			t.python = real
		}
	}
	if t.dir, err = os.MkdirTemp("", "atocore-bench-peers-"); err != nil {
		return t, err
	}
	// The peers are a separate module, so that the library's module does not
	// depend on them.
	program := filepath.Join(t.dir, "peers")
	if _, err := output(ctx, "go", "build", "-C", filepath.Join("bench", "peers"), "-o", program, "."); err != nil {
		b.say("the Go peers are left out: %v", err)
		return t, ctx.Err()
	}
	names, err := output(ctx, program, "names")
	if err != nil {
		return t, err
	}
	t.goPeers, t.names = program, strings.Fields(names)
	if !slices.Contains(t.names, "mattn") {
		b.say("cgo is not available: mattn/go-sqlite3 is left out")
	}
	return t, nil
}

func output(ctx context.Context, argv ...string) (string, error) {
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = errors.New(string(bytes.TrimSpace(exit.Stderr)))
	}
	return string(bytes.TrimSpace(out)), err
}

// present returns the candidates whose tool is installed.
func present(candidates ...candidate) (found []candidate) {
	for _, c := range candidates {
		if c.run != nil {
			found = append(found, c)
		}
	}
	return found
}

// tool is a candidate that runs the program at path. If path is empty, the
// candidate has no run function.
func (b *bench) tool(path, name string, args func(dst string) []string) candidate {
	if path == "" {
		return candidate{}
	}
	return b.commands(name, func(dst string) [][]string {
		return [][]string{append([]string{path}, args(dst)...)}
	})
}

func (b *bench) goPeer(peer, name, src string) candidate {
	if !slices.Contains(b.tools.names, peer) {
		return candidate{}
	}
	return b.tool(b.tools.goPeers, name, func(dst string) []string {
		return []string{peer, src, filepath.Join(dst, "copy")}
	})
}

const cpName, cpSyncName = "`cp -a`", "`cp -a`, then `sync -f`"

// cp copies the files of a store without regard to writers.
func (b *bench) cp(paths []string, options ...string) candidate {
	name := cpName
	if len(options) > 0 {
		name = "`cp -a " + strings.Join(options, " ") + "`"
	}
	return b.tool(b.tools.cp, name, func(dst string) []string {
		return slices.Concat([]string{"-a"}, options, paths, []string{dst})
	})
}

func (b *bench) cpSync(paths []string) candidate {
	if b.tools.cp == "" || b.tools.sync == "" {
		return candidate{}
	}
	return b.commands(cpSyncName, func(dst string) [][]string {
		return [][]string{
			slices.Concat([]string{b.tools.cp, "-a"}, paths, []string{dst}),
			{b.tools.sync, "-f", dst},
		}
	})
}

func (b *bench) rsync(paths []string) candidate {
	return b.tool(b.tools.rsync, "`rsync -a`", func(dst string) []string {
		return slices.Concat([]string{"-a"}, paths, []string{dst})
	})
}

// pythonScript runs a script that times itself, so that the time that the
// interpreter takes to start does not count.
func (b *bench) pythonScript(name, script string, args func(dst string) []string) candidate {
	const frame = `
import json, os, shutil, sqlite3, sys, time
from pathlib import Path
start = time.perf_counter()
%
print(json.dumps({"seconds": time.perf_counter() - start}))
`
	source := strings.Replace(frame, "%", strings.TrimSpace(script), 1)
	return b.tool(b.tools.python, name, func(dst string) []string {
		return append([]string{"-c", source}, args(dst)...)
	})
}

const pythonBackupName = "Python `conn.backup()`"

func (b *bench) pythonBackup(db string) candidate {
	return b.pythonScript(pythonBackupName, `
source, target = sqlite3.connect(sys.argv[1]), sqlite3.connect(sys.argv[2])
with target:
    source.backup(target)
target.close()
source.close()
`, func(dst string) []string { return []string{db, filepath.Join(dst, "copy.db")} })
}

func (b *bench) pythonCopytree(src string) candidate {
	return b.pythonScript("Python `shutil.copytree`", `
shutil.copytree(sys.argv[1], sys.argv[2])
`, func(dst string) []string { return []string{src, filepath.Join(dst, "copy")} })
}

const pythonListName = "Python, `json.loads` of each"

// pythonList lists snapshots as a plain Python module would.
func (b *bench) pythonList(backups string) candidate {
	return b.pythonScript(pythonListName, `
result = []
for d in sorted(Path(sys.argv[1], "snapshots").iterdir()):
    if d.is_dir():
        f = d / "backup-metadata.json"
        entry = {"stamp": d.name, "path": str(d), "has_metadata": f.exists()}
        if entry["has_metadata"]:
            entry["metadata"] = json.loads(f.read_text(encoding="utf-8"))
        result.append(entry)
`, func(string) []string { return []string{backups} })
}

const shellCheckName = "`sqlite3`: `PRAGMA integrity_check`"

// shell runs a statement or dot command in the sqlite3 shell. %s in it stands for
// the path of the copy.
func (b *bench) shell(name, db, statement string) candidate {
	return b.tool(b.tools.sqlite3, name, func(dst string) []string {
		quoted := strings.ReplaceAll(filepath.Join(dst, "copy.db"), "'", "''")
		return []string{db, strings.ReplaceAll(statement, "%s", quoted)}
	})
}

// sha256sum checks a snapshot's manifest. The names in it are relative, so it runs
// in the snapshot's directory.
func (b *bench) sha256sum(snapshot string) candidate {
	if b.tools.sha256sum == "" {
		return candidate{}
	}
	return b.commands("`sha256sum -c`", func(string) [][]string {
		return [][]string{{"sh", "-c", `cd "$1" && "$0" --quiet -c SHA256SUMS`, b.tools.sha256sum, snapshot}}
	})
}
