package offsite

import (
	"encoding/json"
	"io/fs"
	"os"
)

// indexName is the file in the state that remembers what was hashed.
const indexName = "index.json"

// A fileState is what changes whenever the content of a file does: its size, the
// seconds and nanoseconds of mtime and ctime, and its inode number. Device
// numbers are left out, because they change when a machine starts again.
type fileState [6]int64

// sameContent compares all but ctime, which a link or a rename changes as well.
func (s fileState) sameContent(t fileState) bool {
	s[3], s[4], t[3], t[4] = 0, 0, 0, 0
	return s == t
}

// An index maps paths in the tree to what was there when it was hashed. It is
// advice: an entry counts only while the file is exactly as it was. Losing it
// costs hashing everything again.
type index map[string]indexEntry

// An indexEntry is that of a file.
type indexEntry struct {
	State fileState `json:"state"`
	// SHA256 is that of the file; of a delta, and of a base, that of the file which
	// results. It is empty for a part that was only hashed together with later ones.
	SHA256 string `json:"sha256,omitempty"`
	// Size is the size of what results of a part.
	Size int64 `json:"size,omitempty"`
}

// readIndex returns the index of the state, which is empty if there is none that
// can be read.
func readIndex(root *os.Root) index {
	x := make(index)
	f, err := root.Open(indexName)
	if err != nil {
		return x
	}
	defer f.Close()
	if err := json.NewDecoder(f).Decode(&x); err != nil || x == nil {
		return make(index)
	}
	return x
}

// holds reports whether the file that info describes is as it was hashed, with
// the hash s.
func (x index) holds(path string, info fs.FileInfo, s sum) bool {
	e, ok := x[path]
	return ok && e.SHA256 == s.String() && x.same(path, info)
}

// same reports whether the file that info describes is as it was.
func (x index) same(path string, info fs.FileInfo) bool {
	e, ok := x[path]
	now, known := stateOf(info)
	return ok && known && info.Mode().IsRegular() && e.State == now
}
