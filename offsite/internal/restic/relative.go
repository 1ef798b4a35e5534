package restic

import (
	"path/filepath"
	"slices"
	"strings"
)

// A backup runs in the directory that it stores, so relative paths in the
// environment and the arguments would be looked for there.

// remoteSchemes are the backends whose locations are no paths (restic,
// internal/backend/location). Anything else is a directory.
var remoteSchemes = []string{"azure", "b2", "gs", "rclone", "rest", "s3", "sftp", "swift"}

// pathFlags are the flags of restic's that name files.
var pathFlags = []string{"--cacert", "--tls-client-cert", "--cache-dir", "--password-file", "-p", "--repository-file"}

// AbsoluteLocation returns a location that is the same in any directory.
func AbsoluteLocation(location string) string {
	scheme, rest, found := strings.Cut(location, ":")
	switch {
	case location == "", found && slices.Contains(remoteSchemes, scheme):
		return location
	case found && scheme == "local":
		return "local:" + absolutePath(rest)
	}
	return absolutePath(location)
}

// absolutePath returns path itself if it cannot be made absolute.
func absolutePath(path string) string {
	abs, err := filepath.Abs(path)
	if path == "" || err != nil {
		return path
	}
	return abs
}

// absoluteEnv makes the paths in the variables of restic's own absolute.
func absoluteEnv(env []string) []string {
	for i, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		switch name {
		case "RESTIC_REPOSITORY":
			env[i] = name + "=" + AbsoluteLocation(value)
		case "RESTIC_REPOSITORY_FILE", "RESTIC_PASSWORD_FILE", "RESTIC_CACHE_DIR", "RESTIC_CACERT", "RESTIC_TLS_CLIENT_CERT":
			env[i] = name + "=" + absolutePath(value)
		}
	}
	return env
}

// absoluteArgs does the same in flags, whose values are after a = or the next
// argument.
func absoluteArgs(args []string) []string {
	args = slices.Clone(args)
	for i, arg := range args {
		name, value, inline := strings.Cut(arg, "=")
		convert := absolutePath
		switch {
		case name == "-r" || name == "--repo":
			convert = AbsoluteLocation
		case !slices.Contains(pathFlags, name):
			continue
		}
		if inline {
			args[i] = name + "=" + convert(value)
		} else if i+1 < len(args) {
			args[i+1] = convert(args[i+1])
		}
	}
	return args
}
