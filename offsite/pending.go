package offsite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/atocore/backup/offsite/internal/restic"
)

// A pending is what the state has of a push from before it is sent until its copy is
// known to be whole. restic stores a snapshot although it lacks what could not be
// read, and a push forgets that one; so only a push that was killed can leave it.
type pending struct {
	Stamp    string `json:"stamp"`
	Manifest string `json:"manifest_sha256"`
}

// begin notes that the push is pending.
func (p *push) begin() error {
	return p.state.write(pendingName, func(w io.Writer) error {
		return json.NewEncoder(w).Encode(pending{p.result.Stamp, p.result.ManifestSHA256})
	})
}

// settle forgets the copy of a push that was killed, if there is one and it is not
// whole, and returns the snapshots that remain.
func (p *push) settle(ctx context.Context, known []restic.Snapshot) (remain []restic.Snapshot, err error) {
	data, err := p.state.root.ReadFile(pendingName)
	if errors.Is(err, fs.ErrNotExist) {
		return known, nil
	}
	if err != nil {
		return nil, err
	}
	var killed pending
	unclear := json.Unmarshal(data, &killed) != nil // it may be any copy
	for _, s := range known {
		c, ok := copyOf(s)
		if ok && c.store() == p.result.store() && (unclear || killed == pending{c.Stamp, c.ManifestSHA256}) {
			whole, err := p.isWhole(ctx, c)
			if err != nil {
				return nil, fmt.Errorf("look at the copy of %s, whose push was killed: %w", c.Stamp, err)
			}
			if !whole {
				p.log.Warn("offsite_incomplete_copy", "stamp", c.Stamp, "id", c.ID, "action", "it is forgotten")
				if err := p.program.Forget(ctx, c.ID); err != nil {
					return nil, fmt.Errorf("forget an incomplete copy: %w", err)
				}
				continue
			}
		}
		remain = append(remain, s)
	}
	return remain, p.state.root.Remove(pendingName)
}

// isWhole reports whether a copy has all that its recipe says.
func (p *push) isWhole(ctx context.Context, c Copy) (bool, error) {
	recipe, err := readRecipe(ctx, p.program, c)
	if errors.Is(err, errRecipe) || errors.Is(err, errNoRecipe) {
		return false, nil
	}
	if err != nil {
		return false, err // of a repository that is damaged, too
	}
	problems, err := differences(ctx, p.program, c.ID, recipe, 1)
	return len(problems) == 0, err
}
