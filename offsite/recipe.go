package offsite

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"
	"unicode/utf8"

	"github.com/atocore/backup"
)

// recipeName is the file in a copy that says how the snapshot is made of it.
const recipeName = "recipe.json"

const (
	recipeVersion = 1
	maxRecipe     = 128 << 20 // bytes: enough for maxEntries files with paths of 90
	maxSize       = 1 << 48   // bytes of a file
)

// A recipe says which files and directories a snapshot has, and of what a large
// file is made.
type recipe struct {
	stamp    string
	manifest sum      // of SHA256SUMS
	dirs     []folder // in ascending byte order; the first one, "", is the snapshot's
	files    []file   // in ascending byte order
}

// A folder is a directory of a snapshot.
type folder struct {
	path  string
	mode  fs.FileMode // permissions, setgid and sticky bit
	mtime time.Time
}

// A file is one of a snapshot.
type file struct {
	path  string
	sum   sum
	size  int64
	mode  fs.FileMode
	mtime time.Time
	parts []part // of a large one: the base, and the deltas in their order
}

// A part is a base or a delta.
type part struct {
	sum   sum   // of the file that results
	size  int64 // of that
	bytes int64 // of the part itself; for a base the same as size
}

// partName returns the name of the i-th part in its directory, where the base is
// the 0-th.
func partName(i int, s sum) string {
	if i == 0 {
		return basePrefix + s.String()
	}
	return fmt.Sprintf("%04d-%s%s", i, s, deltaSuffix)
}

const (
	basePrefix  = "base-"
	deltaSuffix = ".delta"
)

// maxDeltas is the largest number of deltas in a row.
const maxDeltas = 32

// The form of a recipe in JSON. A path that is not UTF-8, which JSON cannot have,
// is in base64.
type (
	fileJSON struct {
		Path   *string    `json:"path,omitempty"`
		Base64 []byte     `json:"path_base64,omitempty"`
		SHA256 string     `json:"sha256"`
		Size   int64      `json:"size"`
		Mode   string     `json:"mode"`
		MTime  string     `json:"mtime"`
		Large  []partJSON `json:"large,omitempty"`
	}
	folderJSON struct {
		Path   *string `json:"path,omitempty"`
		Base64 []byte  `json:"path_base64,omitempty"`
		Mode   string  `json:"mode"`
		MTime  string  `json:"mtime"`
	}
	partJSON struct {
		Name  string `json:"name"`
		Bytes int64  `json:"bytes"`
		Size  int64  `json:"size"`
	}
)

// write writes the recipe, an entry a line. One that is larger than parseRecipe
// takes is backup.ErrUnsupportedFile.
func (r *recipe) write(w io.Writer) error {
	if len(r.files) > maxEntries || len(r.dirs) > maxEntries {
		return tooMany()
	}
	limited := &limitedWriter{w: w, left: maxRecipe}
	out := bufio.NewWriter(limited)
	fmt.Fprintf(out, "{\"version\":%d,\"stamp\":%q,\"manifest_sha256\":%q,\n\"directories\":[", recipeVersion, r.stamp, r.manifest.String())
	var line bytes.Buffer
	encoder := json.NewEncoder(&line)
	encoder.SetEscapeHTML(false)
	entry := func(i int, value any) error {
		line.Reset()
		if err := encoder.Encode(value); err != nil {
			return err
		}
		_, err := fmt.Fprintf(out, "%s%s", []string{"\n", ",\n"}[min(i, 1)], bytes.TrimSuffix(line.Bytes(), []byte("\n")))
		return err
	}
	for i, d := range r.dirs {
		e := folderJSON{Mode: modeText(d.mode), MTime: d.mtime.UTC().Format(time.RFC3339Nano)}
		e.Path, e.Base64 = pathJSON(d.path)
		if err := entry(i, e); err != nil {
			return err
		}
	}
	fmt.Fprint(out, "\n],\n\"files\":[")
	for i, f := range r.files {
		e := fileJSON{SHA256: f.sum.String(), Size: f.size, Mode: modeText(f.mode), MTime: f.mtime.UTC().Format(time.RFC3339Nano)}
		e.Path, e.Base64 = pathJSON(f.path)
		for i, p := range f.parts {
			e.Large = append(e.Large, partJSON{partName(i, p.sum), p.bytes, p.size})
		}
		if err := entry(i, e); err != nil {
			return err
		}
	}
	fmt.Fprint(out, "\n]}\n")
	if err := out.Flush(); err != nil {
		return err
	}
	if limited.left == 0 {
		return tooMany()
	}
	return nil
}

func tooMany() error {
	return fmt.Errorf("%w: a copy has at most %d files and as many directories, and a list of them of %d bytes", backup.ErrUnsupportedFile, maxEntries, maxRecipe)
}

func pathJSON(p string) (*string, []byte) {
	if utf8.ValidString(p) {
		return &p, nil
	}
	return nil, []byte(p)
}

// modeText returns the mode in octal, as chmod(1) takes it.
func modeText(mode fs.FileMode) string {
	bits := uint32(mode.Perm())
	if mode&fs.ModeSetgid != 0 {
		bits |= 0o2000
	}
	if mode&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return fmt.Sprintf("%04o", bits)
}

// stored returns the sizes of the files that f is in a copy.
func stored(f file) (sizes []int64) {
	if len(f.parts) == 0 {
		return []int64{f.size}
	}
	for _, p := range f.parts {
		sizes = append(sizes, p.bytes)
	}
	return sizes
}

// parentOf returns the directory of a path in a snapshot, "" for the snapshot's.
func parentOf(p string) string {
	if dir := path.Dir(p); dir != "." {
		return dir
	}
	return ""
}

// find returns the file of that path, or nil.
func (r *recipe) find(p string) *file {
	for i := range r.files {
		if r.files[i].path == p {
			return &r.files[i]
		}
	}
	return nil
}

// layout returns what a copy consists of: the sizes of its files, where that of the
// recipe is -1, and its directories.
func (r *recipe) layout() (files map[string]int64, dirs map[string]bool) {
	files, dirs = map[string]int64{recipeName: -1}, map[string]bool{".": true, filesName: true, largeName: true}
	for _, d := range r.dirs {
		dirs[path.Join(filesName, d.path)] = true
	}
	for _, f := range r.files {
		if len(f.parts) == 0 {
			files[path.Join(filesName, f.path)] = f.size
		}
		for i, p := range f.parts {
			name := path.Join(largeName, f.path, partName(i, p.sum))
			files[name] = p.bytes
			for name = path.Dir(name); !dirs[name]; name = path.Dir(name) {
				dirs[name] = true
			}
		}
	}
	return files, dirs
}
