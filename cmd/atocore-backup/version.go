package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

func version() string {
	version := "(unknown)"
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		version = info.Main.Version
	}
	return fmt.Sprintf("%s %s %s %s/%s", commandName, version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
