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

// describeMachine prints the properties of the machine that the figures depend on.
func (b *bench) describeMachine() {
	row := func(what, value string) {
		if value = strings.TrimSpace(value); value != "" {
			fmt.Fprintf(b.out, "- %s: %s\n", what, value)
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
	for _, t := range []struct{ what, path, flag string }{
		{"cp", b.tools.cp, "--version"},
		{"rsync", b.tools.rsync, "--version"},
		{"sqlite3", b.tools.sqlite3, "--version"},
		{"python", b.tools.python, "--version"},
		{"restic", b.tools.restic, "version"},
	} {
		if t.path == "" {
			continue
		}
		if version, err := output(context.Background(), t.path, t.flag); err == nil {
			version, _, _ = strings.Cut(version, "\n")
			row(t.what, version)
		}
	}
	row("peak memory", fmt.Sprintf("%.0f MiB for a child process that does nothing; figures of other programs are never below the benchmark's own",
		b.floor/float64(mib)))
}

// ownPeakMemory returns the peak resident memory of this process in bytes. It
// returns 0 on systems other than Linux.
func ownPeakMemory() int64 {
	var kilobytes int64
	_, _ = fmt.Sscan(after(readText("/proc/self/status"), "VmHWM"), &kilobytes)
	return kilobytes * kib
}

func readText(path string) string {
	text, _ := os.ReadFile(path) // exists on Linux only
	return strings.TrimSpace(string(text))
}

// after returns the value of the first line "key: value".
func after(text, key string) string {
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == key {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// fileSystem describes the file system that contains dir. It returns "" on systems
// other than Linux.
func fileSystem(dir string) string {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return ""
	}
	best, description := "", ""
	for line := range strings.Lines(readText("/proc/self/mounts")) {
		fields := strings.Fields(line) // device, mount point, type, options
		if len(fields) < 4 {
			continue
		}
		rel, err := filepath.Rel(fields[1], dir)
		if err == nil && filepath.IsLocal(rel) && len(fields[1]) >= len(best) {
			best, description = fields[1], fields[2]+" ("+fields[3]+")"
		}
	}
	return description
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
