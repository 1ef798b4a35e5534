package restic

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// A Version is that of a restic. It is 0.0 if the program does not know its own,
// which a build without a release's files does not.
type Version struct {
	Major, Minor, Patch int
	Text                string // the whole line, such as "restic 0.14.0 compiled with …"
}

// oldest is the first version with all that is used here.
var oldest = Version{Major: 0, Minor: 14}

// versionLine matches "restic 0.18.0 compiled with go1.24.4 on linux/amd64" and
// "restic 0.19.2-dev (compiled manually) compiled with …".
var versionLine = regexp.MustCompile(`^restic (?:v?(\d{1,6})\.(\d{1,6})(?:\.(\d{1,6}))?)?`)

// parseVersion parses what "restic version" prints.
func parseVersion(line string) (Version, error) {
	found := versionLine.FindStringSubmatch(line)
	if found == nil {
		return Version{}, fmt.Errorf("%w: the program answers %q to \"version\"", ErrNoProgram, shorten(line))
	}
	v := Version{Text: shorten(line)}
	for i, part := range []*int{&v.Major, &v.Minor, &v.Patch} {
		*part, _ = strconv.Atoi(found[i+1]) // digits, or empty
	}
	if v.known() && v.less(oldest) {
		return v, fmt.Errorf("%w: %q; 0.14 or newer is needed", ErrTooOld, v.Text)
	}
	return v, nil
}

func (v Version) known() bool { return v.Major > 0 || v.Minor > 0 || v.Patch > 0 }

func (v Version) less(w Version) bool {
	if v.Major != w.Major {
		return v.Major < w.Major
	}
	return v.Minor < w.Minor
}

// hasExitCodes reports whether restic may have exit codes for what went wrong. A
// build of unknown version may.
func (v Version) hasExitCodes() bool {
	return !v.known() || !v.less(Version{Major: 0, Minor: 17})
}

// Version returns the version of the program, which it runs once. Errors:
// ErrNoProgram, ErrTooOld, ErrStuck.
func (p *Program) Version(ctx context.Context) (Version, error) {
	p.mu.Lock()
	known := p.version
	p.mu.Unlock()
	if known != nil {
		return *known, nil
	}
	out := &collector{limit: 64 << 10}
	if _, err := p.once(ctx, Version{}, run{args: []string{"version"}, out: out, bare: true}); err != nil {
		return Version{}, err
	}
	line, _, _ := bytes.Cut(out.Bytes(), []byte("\n"))
	v, err := parseVersion(string(line))
	if err != nil {
		return v, err
	}
	p.mu.Lock()
	p.version = &v
	p.mu.Unlock()
	return v, nil
}

// find returns the path of the program.
func (p *Program) find() (string, error) {
	name := p.Path
	if name == "" {
		name = "restic"
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: %w; install restic 0.14 or newer (restic.net), or name the program", ErrNoProgram, err)
	}
	return path, nil
}
