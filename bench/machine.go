package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"time"
)

// describeMachine prints what the figures depend on.
func (b *bench) describeMachine() {
	row := func(what, is string) {
		if is = strings.TrimSpace(is); is != "" {
			fmt.Fprintf(b.out, "- %s: %s\n", what, is)
		}
	}
	fmt.Fprintln(b.out, "# Benchmark")
	fmt.Fprintln(b.out)
	row("command", fmt.Sprintf("`go run ./bench`, %d rounds, sizes / %d, %s", b.rounds, b.scale, time.Now().UTC().Format("2006-01-02")))
	row("processors", fmt.Sprintf("%d × %s", runtime.NumCPU(), after(readText("/proc/cpuinfo"), "model name")))
	row("memory", after(readText("/proc/meminfo"), "MemTotal"))
	row("system", runtime.GOOS+"/"+runtime.GOARCH+" "+readText("/proc/sys/kernel/osrelease"))
	row("file system", fileSystem(b.dir))
	row("Go", runtime.Version()+", modernc.org/sqlite "+moduleVersion("modernc.org/sqlite"))
	for _, t := range []struct{ what, path string }{
		{"cp", b.tools.cp}, {"rsync", b.tools.rsync}, {"sqlite3", b.tools.sqlite3}, {"python", b.tools.python},
	} {
		if t.path == "" {
			continue
		}
		if version, err := output(context.Background(), t.path, "--version"); err == nil {
			version, _, _ = strings.Cut(version, "\n")
			row(t.what, version)
		}
	}
	row("peak memory", fmt.Sprintf("%.0f MiB for a process of ours that does nothing; of other programs at least what the benchmark takes is counted",
		b.floor/float64(mib)))
}

// ownPeakMemory gives this process's own peak resident memory, in bytes, where
// Linux tells it, else 0.
func ownPeakMemory() int64 {
	var kilobytes int64
	_, _ = fmt.Sscan(after(readText("/proc/self/status"), "VmHWM"), &kilobytes)
	return kilobytes * kib
}

func readText(path string) string {
	text, _ := os.ReadFile(path) // not there on other systems than Linux
	return strings.TrimSpace(string(text))
}

// after gives what the first line "key: value" says.
func after(text, key string) string {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// fileSystem gives the mount that dir is on, as far as Linux tells.
func fileSystem(dir string) string {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return ""
	}
	best, is := "", ""
	for line := range strings.Lines(readText("/proc/self/mounts")) {
		fields := strings.Fields(line) // device, place, type, options
		if len(fields) < 4 {
			continue
		}
		rel, err := filepath.Rel(fields[1], dir)
		if err == nil && filepath.IsLocal(rel) && len(fields[1]) >= len(best) {
			best, is = fields[1], fields[2]+" ("+fields[3]+")"
		}
	}
	return is
}

func moduleVersion(path string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, module := range info.Deps {
			if module.Path == path {
				return module.Version
			}
		}
	}
	return "of unknown version"
}
