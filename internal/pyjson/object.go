package backup

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// These tell apart why eachMember refuses text.
var (
	errNotJSON = errors.New("not JSON")
	errTooDeep = fmt.Errorf("nested more than %d deep", maxMetadataNesting)
)

// eachMember calls member for each name and raw value of the JSON object that
// text is; member tells whether the name is a new one. What is wrong with text
// is known only at its end. Strings are not asked to be UTF-8.
//
// This is one pass without garbage: encoding/json would take four times as
// long.
func eachMember(text string, member func(name, value string) (first bool)) error {
	var twice error
	r := jsonReader{text: text}
	r.space()
	isObject := r.next() == '{'
	ok := r.value(maxMetadataNesting, func(quoted, value string) {
		if name := memberName(quoted); !member(name, value) && twice == nil {
			twice = fmt.Errorf("%q is there twice", name)
		}
	})
	r.space()
	switch {
	case !ok || r.pos < len(text):
		if err := json.Unmarshal([]byte(text), new(json.RawMessage)); err != nil {
			return fmt.Errorf("%w: %w", errNotJSON, err)
		}
		return errTooDeep
	case !isObject:
		return errors.New("not an object")
	}
	return twice
}

func memberName(quoted string) string {
	if !strings.Contains(quoted, `\`) {
		return quoted[1 : len(quoted)-1]
	}
	var name string
	_ = json.Unmarshal([]byte(quoted), &name) // it is a JSON string
	return name
}

// A jsonReader reads JSON (RFC 8259) from pos. Each method that returns a bool
// moves pos behind what it is named for, or returns false if that is not there.
type jsonReader struct {
	text string
	pos  int
}

// value reads a value that is nested at most depth deep. If it is an object,
// member, which may be nil, gets its quoted names and its values.
func (r *jsonReader) value(depth int, member func(name, value string)) bool {
	switch r.next() {
	case '{':
		return depth > 0 && r.object(depth-1, member)
	case '[':
		return depth > 0 && r.array(depth-1)
	case '"':
		return r.string()
	case 't':
		return r.literal("true")
	case 'f':
		return r.literal("false")
	case 'n':
		return r.literal("null")
	}
	return r.number()
}

func (r *jsonReader) object(depth int, member func(name, value string)) bool {
	if !r.take('{') {
		return false
	}
	if r.space(); r.take('}') {
		return true
	}
	for {
		start := r.pos
		if !r.string() {
			return false
		}
		name := r.text[start:r.pos]
		if r.space(); !r.take(':') {
			return false
		}
		r.space()
		start = r.pos
		if !r.value(depth, nil) {
			return false
		}
		if member != nil {
			member(name, r.text[start:r.pos])
		}
		if r.space(); r.take('}') {
			return true
		}
		if !r.take(',') {
			return false
		}
		r.space()
	}
}

func (r *jsonReader) array(depth int) bool {
	if !r.take('[') {
		return false
	}
	if r.space(); r.take(']') {
		return true
	}
	for {
		if !r.value(depth, nil) {
			return false
		}
		if r.space(); r.take(']') {
			return true
		}
		if !r.take(',') {
			return false
		}
		r.space()
	}
}

func (r *jsonReader) string() bool {
	if !r.take('"') {
		return false
	}
	for r.pos < len(r.text) {
		c := r.text[r.pos]
		r.pos++
		switch {
		case c == '"':
			return true
		case c < 0x20:
			return false
		case c == '\\' && !r.escape():
			return false
		}
	}
	return false
}

// escape reads what follows a backslash.
func (r *jsonReader) escape() bool {
	if !r.take('u') {
		return r.takeAny(`"\/bfnrt`)
	}
	for range 4 {
		if !r.takeAny("0123456789abcdefABCDEF") {
			return false
		}
	}
	return true
}

func (r *jsonReader) number() bool {
	r.take('-')
	if !r.take('0') && !r.digits() {
		return false
	}
	if r.take('.') && !r.digits() {
		return false
	}
	if r.takeAny("eE") {
		r.takeAny("+-")
		return r.digits()
	}
	return true
}

func (r *jsonReader) digits() bool {
	start := r.pos
	for c := r.next(); '0' <= c && c <= '9'; c = r.next() {
		r.pos++
	}
	return r.pos > start
}

func (r *jsonReader) literal(word string) bool {
	if !strings.HasPrefix(r.text[r.pos:], word) {
		return false
	}
	r.pos += len(word)
	return true
}

func (r *jsonReader) space() {
	for c := r.next(); c == ' ' || c == '\n' || c == '\r' || c == '\t'; c = r.next() {
		r.pos++
	}
}

// next gives the byte at pos, or 0 at the end.
func (r *jsonReader) next() byte {
	if r.pos == len(r.text) {
		return 0
	}
	return r.text[r.pos]
}

func (r *jsonReader) take(c byte) bool {
	if c != r.next() {
		return false
	}
	r.pos++
	return true
}

func (r *jsonReader) takeAny(set string) bool {
	if r.pos == len(r.text) || strings.IndexByte(set, r.text[r.pos]) < 0 {
		return false
	}
	r.pos++
	return true
}
