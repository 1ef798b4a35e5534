package pyjson

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// MaxNesting is how deep the values that [Members] accepts may be nested.
// Indenting text that is nested thousands deep makes it a thousand times as
// large.
const MaxNesting = 32

// [Members] returns errors that match one of these, or another error for text
// that is JSON of an acceptable depth but not an object, or that has a name
// twice.
var (
	ErrNotJSON = errors.New("not JSON")
	ErrTooDeep = fmt.Errorf("nested more than %d deep", MaxNesting)
)

// Members calls member for each name and raw value of a JSON object, in the
// order of text. The value is a piece of text, without the space around it.
// member reports whether it has not seen the name before. Names are compared
// exactly, where decoding into a struct would ignore case, and escapes in them
// are resolved.
//
// Members returns an error that matches ErrNotJSON if text is not one JSON
// value, ErrTooDeep if it is nested too deep, and another error if it is not an
// object; member has not been called then. If a name occurs twice, member is
// called for every name nevertheless, and then Members returns an error.
//
// The constants NaN and Infinity, which Python writes, count as null (see
// [Relax]); then values are pieces of the relaxed text.
//
// Raw values may have invalid UTF-8, which encoding/json accepts in strings
// and replaces in names. Callers that must not accept it check that first.
func Members(text string, member func(name, value string) (first bool)) error {
	text = Relax(text)
	// This also refuses text after the value, which a Decoder would not read.
	// Valid is faster than Unmarshal, but has no error to return.
	if data := []byte(text); !json.Valid(data) {
		return fmt.Errorf("%w: %w", ErrNotJSON, json.Unmarshal(data, new(json.RawMessage)))
	}
	if nesting(text) > MaxNesting {
		return ErrTooDeep
	}
	decoder := json.NewDecoder(strings.NewReader(text))
	if token, err := decoder.Token(); err != nil || token != json.Delim('{') {
		return errors.New("not an object")
	}
	var duplicate error
	var raw json.RawMessage
	for decoder.More() {
		name, err := decoder.Token()
		if err != nil {
			return err
		}
		if err := decoder.Decode(&raw); err != nil {
			return err
		}
		// Callers keep values as long as text, so they get pieces of it: copies
		// would double the memory of a long list of snapshots.
		end := decoder.InputOffset()
		value := text[end-int64(len(raw)) : end]
		if !member(name.(string), value) && duplicate == nil {
			duplicate = fmt.Errorf("the name %q occurs twice", name)
		}
	}
	return duplicate
}

// nesting returns how deep the objects and arrays in text are nested, which
// must be valid JSON.
func nesting(text string) (deepest int) {
	depth, inString := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			inString = !inString
		case inString:
			if c == '\\' {
				i++
			}
		case c == '{', c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}', c == ']':
			depth--
		}
	}
	return deepest
}
