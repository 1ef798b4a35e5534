package offsite

import (
	"cmp"
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite/internal/restic"
)

// A copy is a restic snapshot with the host and the tags that its store, its
// stamp and its hash have:
//
//	atocore, stamp=20260102T030405Z, sums=<64 hexadecimal digits>, db=<path>
//
// Others in the same repository are not ours.
const (
	ownTag   = "atocore"
	stampTag = "stamp="
	sumsTag  = "sums="
	dbTag    = "db="
)

// unknownHost is restic's host for a snapshot that names none: restic would use
// the name of this machine.
const unknownHost = "unknown"

// tags returns the tags of the restic snapshot for c.
func (c *Copy) tags() []string {
	return []string{ownTag, stampTag + c.Stamp, sumsTag + c.ManifestSHA256, c.store().dbTag()}
}

// copyOf returns the copy that a restic snapshot is. It may have more tags, but
// these four once each and as a push writes them.
func copyOf(s restic.Snapshot) (Copy, bool) {
	c := Copy{ID: s.ID, CreatedAt: s.Time.UTC()}
	values := make(map[string]string)
	own := false
	for _, tag := range s.Tags {
		own = own || tag == ownTag
		for _, name := range []string{stampTag, sumsTag, dbTag} {
			value, ok := strings.CutPrefix(tag, name)
			if _, twice := values[name]; ok && twice {
				return c, false
			} else if ok {
				values[name] = value
			}
		}
	}
	c.Stamp, c.ManifestSHA256 = values[stampTag], values[sumsTag]
	db, hasDB := values[dbTag]
	var ok bool
	if c.Host, ok = hostOf(s.Host); !ok || !own || !hasDB || !isStamp(c.Stamp) || !isHash(c.ManifestSHA256) {
		return c, false
	}
	c.DatabasePath, ok = decode(db)
	return c, ok
}

func isHash(text string) bool {
	return len(text) == 64 && strings.Trim(text, "0123456789abcdef") == ""
}

// A store is where snapshots are made: a database of a machine. Both are empty
// if the snapshot's metadata do not say.
type store struct{ host, path string }

func (c *Copy) store() store { return store{c.Host, c.DatabasePath} }

func (s store) String() string {
	if s.path == "" {
		return "one that its snapshots do not name"
	}
	return s.host + ":" + s.path
}

func (s store) dbTag() string { return dbTag + encode(s.path) }

// resticHost returns the host of the store's restic snapshots.
func (s store) resticHost() string {
	switch s.host {
	case "":
		return unknownHost
	case unknownHost:
		return "%75nknown"
	}
	return encode(s.host)
}

// hostOf is the inverse of resticHost.
func hostOf(host string) (string, bool) {
	switch host {
	case unknownHost:
		return "", true
	case "%75nknown":
		return unknownHost, true
	}
	name, ok := decode(host)
	return name, ok && name != ""
}

// encode writes text so that restic keeps it as it is in a tag, and decode gets
// it back: %, the comma, at which restic splits tags, and bytes that are not of
// printable text become %XX. Restic cuts off space at the ends of a tag.
func encode(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); {
		r, n := utf8.DecodeRuneInString(text[i:])
		atEnd := i == 0 || i+n == len(text)
		if r == utf8.RuneError && n == 1 || !unicode.IsPrint(r) || r == '%' || r == ',' || r == ' ' && atEnd {
			for _, c := range []byte(text[i : i+n]) {
				fmt.Fprintf(&b, "%%%02X", c)
			}
		} else {
			b.WriteString(text[i : i+n])
		}
		i += n
	}
	return b.String()
}

// decode returns the text that encode wrote in that way.
func decode(encoded string) (string, bool) {
	text, err := url.PathUnescape(encoded)
	return text, err == nil && encode(text) == encoded
}

// program returns the restic that works on the repository.
func (r *Repository) program() *restic.Program {
	return &restic.Program{
		Path: r.Program, Location: r.Location, PasswordFile: r.PasswordFile,
		Args: r.Args, Env: r.Env, Patience: r.Patience,
	}
}

// copiesIn returns the copies in the repository, oldest first.
func copiesIn(ctx context.Context, p *restic.Program) ([]Copy, error) {
	snapshots, err := p.Snapshots(ctx, ownTag)
	if err != nil {
		return nil, err
	}
	return copiesAmong(snapshots), nil
}

// copiesAmong returns the copies among snapshots, oldest first.
func copiesAmong(snapshots []restic.Snapshot) []Copy {
	copies := make([]Copy, 0, len(snapshots))
	for _, s := range snapshots {
		if c, ok := copyOf(s); ok {
			copies = append(copies, c)
		}
	}
	slices.SortFunc(copies, compareCopies)
	return copies
}

// compareCopies orders copies by age. Restic keeps the second of a creation; the
// number in the stamp decides between those of the same one.
func compareCopies(a, b Copy) int {
	return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), cmp.Compare(len(a.Stamp), len(b.Stamp)),
		strings.Compare(a.Stamp, b.Stamp), strings.Compare(a.ID, b.ID))
}

// ofStore returns the copies of the store that opts name, and the store. If they
// name none, all copies must be of one, else the error is ErrOtherStore.
func ofStore(opts backup.Options, copies []Copy) ([]Copy, store, error) {
	if opts.DatabasePath != "" {
		s, err := storeOf(opts)
		if err != nil {
			return nil, s, err
		}
		return slices.DeleteFunc(slices.Clone(copies), func(c Copy) bool { return c.store() != s }), s, nil
	}
	if len(copies) == 0 {
		return nil, store{}, nil
	}
	s := copies[0].store()
	if slices.ContainsFunc(copies, func(c Copy) bool { return c.store() != s }) {
		return nil, s, fmt.Errorf("%w (%s): say which by the path of its database and its host", ErrOtherStore, joinStores(copies))
	}
	return copies, s, nil
}

// storeOf returns the store that opts name, as the metadata of its snapshots
// record it: with links resolved.
func storeOf(opts backup.Options) (store, error) {
	s := store{host: opts.Host}
	if s.host == "" {
		s.host, _ = os.Hostname() // empty if the system has none, as in the metadata
	}
	abs, err := filepath.Abs(opts.DatabasePath)
	if err != nil {
		return s, fmt.Errorf("find the path of the database: %w", err)
	}
	s.path = realPath(abs)
	return s, nil
}

// realPath resolves the links in an absolute path as far as it exists: on an
// empty machine, the database does not.
func realPath(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	if dir := filepath.Dir(path); dir != path {
		return filepath.Join(realPath(dir), filepath.Base(path))
	}
	return path
}

// maxStores bounds how many stores a message lists.
const maxStores = 20

func joinStores(copies []Copy) string {
	var names []string
	for _, c := range copies {
		if name := fmt.Sprintf("%+q", c.store().String()); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if more := len(names) - maxStores; more > 0 {
		names = append(names[:maxStores], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(names, ", ")
}
