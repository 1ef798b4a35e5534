package restic

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// maxLocation bounds what is read of a RESTIC_REPOSITORY_FILE.
const maxLocation = 64 << 10

// environment returns restic's environment, and where the repository is as far
// as that is known.
func (p *Program) environment(dir string) (env []string, location string) {
	env = absoluteEnv(append(os.Environ(), p.Env...))
	set := func(name, value string) { env = append(env, name+"="+value) }
	unset := func(names ...string) {
		env = slices.DeleteFunc(env, func(entry string) bool {
			name, _, _ := strings.Cut(entry, "=")
			return slices.Contains(names, name)
		})
	}
	if p.Location != "" {
		unset("RESTIC_REPOSITORY", "RESTIC_REPOSITORY_FILE") // restic refuses both
		set("RESTIC_REPOSITORY", AbsoluteLocation(p.Location))
	}
	if p.PasswordFile != "" {
		unset("RESTIC_PASSWORD", "RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND")
		set("RESTIC_PASSWORD_FILE", absolutePath(p.PasswordFile))
	}
	if p.Cache != "" {
		set("RESTIC_CACHE_DIR", absolutePath(p.Cache))
	}
	if dir != "" {
		set("PWD", dir) // os.Getwd believes it, so that links on the way keep their names
	}
	set("TZ", "UTC") // restic reads and writes local times
	set("RESTIC_PROGRESS_FPS", "4")
	// Without a terminal, ssh would ask in a window if there is a display.
	set("SSH_ASKPASS_REQUIRE", "never")
	set("RCLONE_ASK_PASSWORD", "false")
	location = lookup(env, "RESTIC_REPOSITORY")
	if file := lookup(env, "RESTIC_REPOSITORY_FILE"); location == "" && file != "" {
		location = firstLine(file)
	}
	return env, location
}

// lookup returns the value of a variable; the last one counts, as for exec.Cmd.
func lookup(env []string, name string) string {
	for _, entry := range slices.Backward(env) {
		if key, value, _ := strings.Cut(entry, "="); key == name {
			return value
		}
	}
	return ""
}

// hasFlag reports whether args have one of the flags, with or without a value.
func hasFlag(args []string, flags ...string) bool {
	for _, arg := range args {
		name, _, _ := strings.Cut(arg, "=")
		if slices.Contains(flags, name) {
			return true
		}
	}
	return false
}

// firstLine returns the first line of a file, or "" if it cannot be read: restic
// says why.
func firstLine(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, _ := io.ReadAll(io.LimitReader(f, maxLocation))
	line, _, _ := strings.Cut(string(text), "\n")
	return strings.TrimSpace(line)
}

// complete returns an error if the environment and the arguments name no
// repository or no password. Restic would ask for the latter.
func (p *Program) complete(env []string) error {
	if lookup(env, "RESTIC_REPOSITORY") == "" && lookup(env, "RESTIC_REPOSITORY_FILE") == "" &&
		!hasFlag(p.Args, "-r", "--repo", "--repository-file") {
		return fmt.Errorf("%w: none is named; RESTIC_REPOSITORY is not set either", ErrNoRepository)
	}
	for _, name := range []string{"RESTIC_PASSWORD", "RESTIC_PASSWORD_FILE", "RESTIC_PASSWORD_COMMAND"} {
		if lookup(env, name) != "" {
			return nil
		}
	}
	if hasFlag(p.Args, "-p", "--password-file", "--password-command", "--insecure-no-password") {
		return nil
	}
	return fmt.Errorf("%w: no password file is named, and none of RESTIC_PASSWORD_FILE, RESTIC_PASSWORD_COMMAND and RESTIC_PASSWORD is set", ErrPassword)
}
