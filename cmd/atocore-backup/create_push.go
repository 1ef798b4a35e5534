package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite"
)

// A pushedSnapshot is the result of create --push. A nil one is that of a create
// without --push.
type pushedSnapshot struct {
	*backup.Metadata
	Pushed *offsite.Pushed // nil if the push failed
	err    error           // why it failed
}

// errNotPushed is the error of a create whose snapshot was made and not pushed,
// whatever the reason.
var errNotPushed = errors.New("not pushed")

// push pushes a snapshot that was just made, unless it was found to be damaged;
// created is the error of its create. Findings are of the store, and the copy of
// such a snapshot may be all that there is of it.
func (c *createCommand) push(s *session, meta *backup.Metadata, created error) *pushedSnapshot {
	result := &pushedSnapshot{Metadata: meta}
	var invalid *backup.InvalidBackupError
	if errors.As(created, &invalid) && !invalid.Report.Intact {
		result.err = errors.New("it is damaged")
		return result
	}
	opts := c.options()
	s.watchCopying(&opts)
	result.Pushed, result.err = c.repository().Push(s.ctx, opts, meta.Stamp)
	result.err = advise(result.err)
	return result
}

// failure returns an error if the push failed.
func (p *pushedSnapshot) failure() error {
	if p == nil || p.err == nil {
		return nil
	}
	return fmt.Errorf("create: snapshot %s is complete, but %w: %w", p.Stamp, errNotPushed, p.err)
}

// MarshalJSON returns the metadata, as a create without --push prints them, with
// what became of the push as further fields.
func (p *pushedSnapshot) MarshalJSON() ([]byte, error) {
	meta, err := json.Marshal(p.Metadata)
	if err != nil {
		return nil, err
	}
	further := struct {
		Pushed *offsite.Pushed `json:"pushed"`
		Error  *string         `json:"push_error"`
	}{Pushed: p.Pushed}
	if p.err != nil {
		text := oneLine(p.err.Error())
		further.Error = &text
	}
	fields, err := json.Marshal(further)
	if err != nil {
		return nil, err
	}
	return append(append(meta[:len(meta)-1], ','), fields[1:]...), nil
}
