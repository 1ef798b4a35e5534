package restic

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// Bounds of what is read of restic's output into memory.
const (
	maxSnapshots = 64 << 20 // bytes of JSON: some 50,000 snapshots
	maxConfig    = 64 << 10
	maxIDs       = 200 // in one command line
)

// fullID is the ID of a snapshot or a repository.
var fullID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Init makes a new repository. If there is one already, that is an *ExitError.
func (p *Program) Init(ctx context.Context) error {
	_, err := p.do(ctx, run{args: []string{"init"}, out: &textLines{}})
	return err
}

// ID returns the ID of the repository, 64 hexadecimal digits, and thereby shows
// that the repository is there and that the password opens it.
func (p *Program) ID(ctx context.Context) (string, error) {
	out := &collector{limit: maxConfig}
	if _, err := p.do(ctx, run{args: []string{"cat", "config"}, out: out}); err != nil {
		return "", err
	}
	var config struct {
		ID string `json:"id"`
	}
	if err := json.Unmarshal(out.Bytes(), &config); err != nil {
		return "", fmt.Errorf("restic cat config: %w: %w", ErrOutput, err)
	}
	if !fullID.MatchString(config.ID) {
		return "", fmt.Errorf("restic cat config: %w: the ID is %q", ErrOutput, shorten(config.ID))
	}
	return config.ID, nil
}

// Snapshots returns the snapshots that have all of the tags, in restic's order,
// oldest first.
func (p *Program) Snapshots(ctx context.Context, tags ...string) ([]Snapshot, error) {
	args := []string{"snapshots", "--json"}
	if len(tags) > 0 {
		args = append(args, "--tag", strings.Join(tags, ","))
	}
	return p.snapshots(ctx, args...)
}

func (p *Program) snapshots(ctx context.Context, args ...string) ([]Snapshot, error) {
	out := &collector{limit: maxSnapshots}
	if _, err := p.do(ctx, run{args: args, out: out}); err != nil {
		return nil, err
	}
	var list []Snapshot
	if err := json.Unmarshal(out.Bytes(), &list); err != nil {
		return nil, fmt.Errorf("restic snapshots: %w: %w", ErrOutput, err)
	}
	for _, s := range list {
		if !fullID.MatchString(s.ID) {
			return nil, fmt.Errorf("restic snapshots: %w: an ID is %q", ErrOutput, shorten(s.ID))
		}
	}
	return list, nil
}

// Backup stores a snapshot of a directory. If some of it could not be read, the
// error matches ErrIncomplete, and Summary.ID is that of what was stored
// nevertheless. Restic reads a file again if its size, times or inode number are
// not those of the last snapshot of the same host and directory.
func (p *Program) Backup(ctx context.Context, b BackupArgs) (Summary, error) {
	dir, err := absolute(b.Dir)
	if err != nil {
		return Summary{}, err
	}
	args := []string{"backup", "--json", "--host", b.Host}
	if len(b.Tags) > 0 {
		args = append(args, "--tag", strings.Join(b.Tags, ","))
	}
	if !b.Time.IsZero() {
		args = append(args, "--time", b.Time.In(zone()).Format("2006-01-02 15:04:05"))
	}
	out := newReporter(p.Progress)
	_, err = p.do(ctx, run{args: append(args, "."), dir: dir, out: out})
	if err != nil && !errors.Is(err, ErrIncomplete) {
		return Summary{}, err
	}
	s := Summary{ID: out.summary.ID, Added: out.summary.Added, Files: out.summary.Files, Bytes: out.summary.Bytes}
	if out.summary.Packed != nil {
		s.Added = *out.summary.Packed
	}
	if !fullID.MatchString(s.ID) {
		id, lookupErr := p.resolve(ctx, s.ID)
		if lookupErr != nil {
			return s, errors.Join(err, lookupErr)
		}
		s.ID = id
	}
	return s, err
}

// shortID is what restic prints of an ID before 0.15.
var shortID = regexp.MustCompile(`^[0-9a-f]{8,64}$`)

// resolve returns the ID of the snapshot with a short one.
func (p *Program) resolve(ctx context.Context, short string) (string, error) {
	if !shortID.MatchString(short) {
		return "", fmt.Errorf("restic backup: %w: the snapshot's ID is %q", ErrOutput, shorten(short))
	}
	if id := p.cachedID(short); id != "" {
		return id, nil
	}
	list, err := p.snapshots(ctx, "snapshots", "--json", short)
	if err != nil {
		return "", err
	}
	if len(list) != 1 || !strings.HasPrefix(list[0].ID, short) {
		return "", fmt.Errorf("restic snapshots: %w: %d snapshots are called %s", ErrOutput, len(list), short)
	}
	return list[0].ID, nil
}

// cachedID returns the ID of the snapshot with a short one if Cache has that and no
// other, else "". Restic has cached what it has just stored, and asking it instead
// costs most of a second (restic, doc/cache.rst: <repository>/snapshots/f0/f08a…).
func (p *Program) cachedID(short string) (id string) {
	repositories, err := os.ReadDir(p.Cache)
	if p.Cache == "" || err != nil {
		return ""
	}
	for _, r := range repositories {
		found, _ := os.ReadDir(filepath.Join(p.Cache, r.Name(), "snapshots", short[:2])) // none if it cannot be read
		for _, e := range found {
			if !strings.HasPrefix(e.Name(), short) {
				continue
			}
			if id != "" || !fullID.MatchString(e.Name()) {
				return ""
			}
			id = e.Name()
		}
	}
	return id
}

// Dump returns the content of the file at path, which begins with "/", in a
// snapshot. If it has more than limit bytes, the error is ErrTooMuch.
func (p *Program) Dump(ctx context.Context, id, path string, limit int64) ([]byte, error) {
	out := &collector{limit: limit}
	if _, err := p.do(ctx, run{args: []string{"dump", "--", id, path}, out: out}); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// List calls each for every file and directory of a snapshot, parents first. It
// ends with the first error of each.
func (p *Program) List(ctx context.Context, id string, each func(Node) error) error {
	out := &textLines{}
	out.each = func(line []byte) error {
		out.n.Add(1)
		var node struct {
			Struct string `json:"struct_type"`
			Node
		}
		if err := json.Unmarshal(line, &node); err != nil {
			return fmt.Errorf("%w: %w", ErrOutput, err)
		}
		if node.Struct != "node" {
			return nil // the snapshot itself
		}
		return each(node.Node)
	}
	_, err := p.do(ctx, run{args: []string{"ls", "--json", id}, out: out})
	return err
}

// Restore writes a snapshot's files below target, which is made if it does not
// exist. Nothing is synced. A file that cannot be restored is an error, but the
// others are written nevertheless.
func (p *Program) Restore(ctx context.Context, id, target string) error {
	_, err := p.do(ctx, run{args: []string{"restore", "--json", "--target", target, id}, out: newReporter(p.Progress)})
	return err
}

// Forget removes snapshots. What only they had stays stored until a Prune.
func (p *Program) Forget(ctx context.Context, ids ...string) error {
	for len(ids) > 0 {
		n := min(len(ids), maxIDs)
		if _, err := p.do(ctx, run{args: append([]string{"forget"}, ids[:n]...), out: &textLines{}}); err != nil {
			return err
		}
		ids = ids[n:]
	}
	return nil
}

// Prune removes what no snapshot needs any more.
func (p *Program) Prune(ctx context.Context) error {
	_, err := p.do(ctx, run{args: []string{"prune"}, out: &textLines{}})
	return err
}

// Unlock removes the locks of processes that are gone: on this machine, those
// that do not run any more, and on others, those that are older than half an hour.
func (p *Program) Unlock(ctx context.Context) error {
	_, err := p.do(ctx, run{args: []string{"unlock"}, out: &textLines{}})
	return err
}

// unlimited stands for -1, which restic knows only since 0.15.
const unlimited = 1 << 30

// flags returns the rules as flags of restic's.
func (r Rules) flags() []string {
	var flags []string
	for _, rule := range []struct {
		name string
		n    int
	}{
		{"last", r.Last}, {"hourly", r.Hourly}, {"daily", r.Daily},
		{"weekly", r.Weekly}, {"monthly", r.Monthly}, {"yearly", r.Yearly},
	} {
		switch {
		case rule.n < 0:
			flags = append(flags, "--keep-"+rule.name, strconv.Itoa(unlimited))
		case rule.n > 0:
			flags = append(flags, "--keep-"+rule.name, strconv.Itoa(rule.n))
		}
	}
	if r.Within != "" {
		flags = append(flags, "--keep-within", r.Within)
	}
	return flags
}

// Plan returns what restic forget would keep and remove of the snapshots that
// have this host and all of the tags, which are one group, whatever their paths.
// It changes nothing. Rules without any rule are an error.
func (p *Program) Plan(ctx context.Context, host string, tags []string, rules Rules) (Plan, error) {
	flags := rules.flags()
	if len(flags) == 0 {
		return Plan{}, errors.New("plan a forget: no rule keeps anything")
	}
	args := []string{"forget", "--dry-run", "--json", "--group-by", "host", "--host", host, "--tag", strings.Join(tags, ",")}
	out := &collector{limit: 4 * maxSnapshots}
	if _, err := p.do(ctx, run{args: append(args, flags...), out: out}); err != nil {
		return Plan{}, err
	}
	return parsePlan(out.Bytes())
}

// parsePlan parses the output of restic forget --json: one object for each group,
// of which there is one at most.
func parsePlan(text []byte) (Plan, error) {
	var groups []struct {
		Keep    []Snapshot `json:"keep"`
		Remove  []Snapshot `json:"remove"`
		Reasons []struct {
			Snapshot Snapshot `json:"snapshot"`
			Matches  []string `json:"matches"`
		} `json:"reasons"`
	}
	// A line in words may follow.
	if err := json.NewDecoder(bytes.NewReader(text)).Decode(&groups); err != nil {
		return Plan{}, fmt.Errorf("restic forget: %w: %w", ErrOutput, err)
	}
	var plan Plan
	for _, group := range groups {
		if len(group.Reasons) != len(group.Keep) {
			return Plan{}, fmt.Errorf("restic forget: %w: %d snapshots are kept for %d reasons", ErrOutput, len(group.Keep), len(group.Reasons))
		}
		for i, snapshot := range group.Keep {
			// Restic 0.14 leaves the ID out of the reasons; their order is the same.
			if of := group.Reasons[i].Snapshot; !of.Time.Equal(snapshot.Time) || of.ID != "" && of.ID != snapshot.ID {
				return Plan{}, fmt.Errorf("restic forget: %w: the reasons are not in order", ErrOutput)
			}
			plan.Keep = append(plan.Keep, Kept{snapshot, group.Reasons[i].Matches})
		}
		plan.Remove = append(plan.Remove, group.Remove...)
	}
	for _, snapshot := range plan.Remove {
		if !fullID.MatchString(snapshot.ID) {
			return Plan{}, fmt.Errorf("restic forget: %w: an ID is %q", ErrOutput, shorten(snapshot.ID))
		}
	}
	return plan, nil
}
