package offsite

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// errRecipe is matched by the errors of parseRecipe.
var (
	errRecipe   = fmt.Errorf("%w: its recipe cannot be used", ErrDamaged)
	errNoRecipe = fmt.Errorf("%w: it has no recipe", ErrDamaged)
)

func badRecipe(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{errRecipe}, args...)...)
}

// parseRecipe reads an untrusted recipe. The result is consistent: every path is
// one inside a snapshot, and occurs once; every file and directory is in a
// directory of the recipe; the parts of a large file are a base and at most
// maxDeltas deltas which make it. It is bounded by the size of data.
func parseRecipe(data []byte) (*recipe, error) {
	if len(data) > maxRecipe {
		return nil, badRecipe("it has more than %d bytes", maxRecipe)
	}
	p := &recipeParser{in: json.NewDecoder(bytes.NewReader(data)), out: new(recipe)}
	if err := p.object(); err != nil {
		if errors.Is(err, errRecipe) {
			return nil, err
		}
		return nil, badRecipe("%w", err)
	}
	if _, err := p.in.Token(); !errors.Is(err, io.EOF) {
		return nil, badRecipe("something follows its end")
	}
	if err := p.out.check(); err != nil {
		return nil, err
	}
	return p.out, nil
}

// A recipeParser reads entry by entry, so that no short text becomes a long list.
type recipeParser struct {
	in      *json.Decoder
	out     *recipe
	version int
}

func (p *recipeParser) expect(want json.Delim) error {
	token, err := p.in.Token()
	if err == nil && token != want {
		err = badRecipe("there is %v instead of %v", token, want)
	}
	return err
}

// object reads the whole. Names that are not known are skipped, so that later
// writers may add some.
func (p *recipeParser) object() error {
	if err := p.expect('{'); err != nil {
		return err
	}
	seen := make(map[string]bool)
	for p.in.More() {
		token, err := p.in.Token()
		if err != nil {
			return err
		}
		name, _ := token.(string)
		if seen[name] || len(seen) > 100 {
			return badRecipe("%.100q comes twice, or there is too much", name)
		}
		seen[name] = true
		if err := p.value(name); err != nil {
			return err
		}
	}
	if p.version != recipeVersion {
		return badRecipe("its version is %d, and this program knows %d: use a newer one", p.version, recipeVersion)
	}
	return p.expect('}')
}

func (p *recipeParser) value(name string) error {
	switch name {
	case "version":
		return p.in.Decode(&p.version)
	case "stamp":
		return p.in.Decode(&p.out.stamp)
	case "manifest_sha256":
		var text string
		if err := p.in.Decode(&text); err != nil {
			return err
		}
		var ok bool
		if p.out.manifest, ok = parseSum(text); !ok {
			return badRecipe("%.100q is no hash", text)
		}
		return nil
	case "directories":
		return p.list(&p.out.dirs, nil)
	case "files":
		return p.list(nil, &p.out.files)
	}
	var skipped json.RawMessage
	return p.in.Decode(&skipped)
}

// list reads the entries of one of the two lists.
func (p *recipeParser) list(dirs *[]folder, files *[]file) error {
	if err := p.expect('['); err != nil {
		return err
	}
	for n := 0; p.in.More(); n++ {
		if n == maxEntries {
			return badRecipe("it has more than %d files or directories", maxEntries)
		}
		if dirs != nil {
			var e folderJSON
			if err := p.in.Decode(&e); err != nil {
				return err
			}
			d, err := e.folder()
			if err != nil {
				return err
			}
			*dirs = append(*dirs, d)
			continue
		}
		var e fileJSON
		if err := p.in.Decode(&e); err != nil {
			return err
		}
		f, err := e.file()
		if err != nil {
			return err
		}
		*files = append(*files, f)
	}
	return p.expect(']')
}

func (e *folderJSON) folder() (d folder, err error) {
	if d.path, err = parsePath(e.Path, e.Base64); err != nil {
		return d, err
	}
	if d.path != "" && !isPath(d.path) {
		return d, badRecipe("%.200q is not a path inside a snapshot", d.path)
	}
	d.mode, d.mtime, err = parseAttributes(e.Mode, e.MTime)
	return d, err
}

func (e *fileJSON) file() (f file, err error) {
	if f.path, err = parsePath(e.Path, e.Base64); err != nil {
		return f, err
	}
	var ok bool
	f.sum, ok = parseSum(e.SHA256)
	switch {
	case !isPath(f.path):
		return f, badRecipe("%.200q is not a path inside a snapshot", f.path)
	case !ok:
		return f, badRecipe("%.200q has the hash %.100q", f.path, e.SHA256)
	case e.Size < 0 || e.Size > maxSize:
		return f, badRecipe("%.200q has %d bytes", f.path, e.Size)
	case len(e.Large) > 1+maxDeltas || len(e.Large) > 0 && (f.path == metadataName || f.path == manifestName):
		return f, badRecipe("%.200q is made of %d deltas", f.path, len(e.Large)-1)
	}
	f.size = e.Size
	if f.mode, f.mtime, err = parseAttributes(e.Mode, e.MTime); err != nil {
		return f, err
	}
	for i, p := range e.Large {
		text := strings.TrimSuffix(p.Name, deltaSuffix)
		s, ok := parseSum(text[strings.LastIndexByte(text, '-')+1:])
		if !ok || p.Name != partName(i, s) || p.Size < 0 || p.Size > maxSize || p.Bytes < 0 || p.Bytes > maxSize || i == 0 && p.Bytes != p.Size {
			return f, badRecipe("%.200q has the part %.100q of %d bytes for %d", f.path, p.Name, p.Bytes, p.Size)
		}
		f.parts = append(f.parts, part{s, p.Size, p.Bytes})
	}
	if n := len(f.parts); n > 0 && (f.parts[n-1].sum != f.sum || f.parts[n-1].size != f.size) {
		return f, badRecipe("the parts of %.200q make another file", f.path)
	}
	return f, nil
}

func parsePath(text *string, encoded []byte) (string, error) {
	switch {
	case text != nil && encoded == nil:
		return *text, nil
	case text == nil && encoded != nil && !utf8.Valid(encoded): // so that a path has one form
		return string(encoded), nil
	}
	return "", badRecipe("an entry has no path, or two")
}

func parseAttributes(mode, mtime string) (fs.FileMode, time.Time, error) {
	bits, err := strconv.ParseUint(mode, 8, 32)
	if err != nil || bits&^0o3777 != 0 {
		return 0, time.Time{}, badRecipe("%.100q is no mode", mode)
	}
	m := fs.FileMode(bits) & fs.ModePerm
	if bits&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if bits&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	t, err := time.Parse(time.RFC3339Nano, mtime)
	if err != nil || !isYear(t) {
		return 0, time.Time{}, badRecipe("%.100q is no time", mtime)
	}
	return m, t.UTC(), nil
}

// isYear reports whether an archive of package backup can have the time.
func isYear(t time.Time) bool { return t.UTC().Year() >= 1 && t.UTC().Year() <= 9999 }

// check checks what concerns several entries.
func (r *recipe) check() error {
	if len(r.dirs) == 0 || r.dirs[0].path != "" {
		return badRecipe("it lacks the snapshot's directory")
	}
	known := make(map[string]bool, len(r.dirs))
	for i, d := range r.dirs {
		switch {
		case i > 0 && d.path <= r.dirs[i-1].path:
			return badRecipe("%.200q comes after %.200q", d.path, r.dirs[i-1].path)
		case i > 0 && !known[parentOf(d.path)]:
			return badRecipe("%.200q is in no directory", d.path)
		}
		known[d.path] = true
	}
	total := int64(0)
	for i, f := range r.files {
		switch {
		case i > 0 && f.path <= r.files[i-1].path:
			return badRecipe("%.200q comes after %.200q", f.path, r.files[i-1].path)
		case !known[parentOf(f.path)] || known[f.path]:
			return badRecipe("%.200q is in no directory, or is one", f.path)
		}
		for _, n := range append([]int64{f.size}, stored(f)...) {
			if total += n; n > math.MaxInt64/2-total {
				return badRecipe("its files are too large")
			}
		}
	}
	return nil
}
