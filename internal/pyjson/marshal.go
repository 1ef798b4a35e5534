package pyjson

import (
	"bytes"
	"encoding/json"
)

// Marshal returns the JSON of v like json.Marshal, but leaves "<", ">" and "&"
// as they are, as Python does.
func Marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}
