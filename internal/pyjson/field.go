package pyjson

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Field connects a name in a JSON object with the variable that holds its
// value.
type Field struct {
	Name string
	// At points to the variable: a *string, *bool or *time.Time, an *int64 for
	// a number that is not negative, a *Signed for any number, or an *int for
	// the version of a format, which is at least 1. Other types panic.
	At any
	// Ours is set for a field that the Python module does not have.
	Ours bool
	// Optional is set for a field that is left out if it is an empty string.
	Optional bool
	// Raw is the JSON value that was read; empty if there was none.
	Raw string
}

// Signed is a number that may be negative.
type Signed int64

// ReadFields sets Raw of the fields that occur in the JSON object text. It
// returns the errors of [Members]; a name that occurs twice is one even if no
// field has it. After an error, Raw has no meaning.
func ReadFields(fields []Field, text string) error {
	var unknown map[string]bool
	return Members(text, func(name, value string) (first bool) {
		if f := Find(fields, name); f != nil {
			first, f.Raw = f.Raw == "", value
			return first
		}
		if unknown == nil {
			unknown = make(map[string]bool)
		}
		first, unknown[name] = !unknown[name], true
		return first
	})
}

// Find returns the field with this name, or nil.
func Find(fields []Field, name string) *Field {
	for i := range fields {
		if fields[i].Name == name {
			return &fields[i]
		}
	}
	return nil
}

// EncodeObject returns the JSON object of the fields, in their order. Those for
// which skip, which may be nil, reports true are left out; skip gets the JSON
// of the value.
func EncodeObject(fields []Field, skip func(f *Field, value string) bool) string {
	var b strings.Builder
	separator := "{"
	for i := range fields {
		f := &fields[i]
		value := f.Encode()
		if skip != nil && skip(f, value) {
			continue
		}
		b.WriteString(separator)
		b.WriteString(Quote(f.Name))
		b.WriteByte(':')
		b.WriteString(value)
		separator = ","
	}
	if b.Len() == 0 {
		return "{}"
	}
	b.WriteByte('}')
	return b.String()
}

// Encode returns the JSON of the field's variable.
func (f *Field) Encode() string {
	switch at := f.At.(type) {
	case *string:
		return Quote(*at)
	case *bool:
		return strconv.FormatBool(*at)
	case *int64:
		return strconv.FormatInt(*at, 10)
	case *Signed:
		return strconv.FormatInt(int64(*at), 10)
	case *int:
		return strconv.Itoa(*at)
	case *time.Time:
		return encodeTime(*at)
	}
	panic(f.badType())
}

// Decode sets the field's variable to the value of Raw, which must be valid
// JSON. If it returns an error, because the value has another type or is out of
// range, the content of the variable has no meaning.
func (f *Field) Decode() (err error) {
	switch at := f.At.(type) {
	case *string:
		*at, err = Unquote(f.Raw)
	case *bool:
		*at, err = decodeBool(f.Raw)
	case *int64:
		*at, err = decodeCount(f.Raw)
	case *Signed:
		*at, err = decodeSigned(f.Raw)
	case *int:
		*at, err = decodeVersion(f.Raw)
	case *time.Time:
		*at, err = decodeTime(f.Raw)
	default:
		panic(f.badType())
	}
	return err
}

func (f *Field) badType() string {
	return fmt.Sprintf("pyjson: field %s has a variable of type %T", f.Name, f.At)
}

var errNotWhole = errors.New("not a whole number")

func decodeBool(raw string) (bool, error) {
	if raw != "true" && raw != "false" {
		return false, errors.New("neither true nor false")
	}
	return raw == "true", nil
}

func decodeCount(raw string) (int64, error) {
	if raw == "null" {
		return 0, errors.New("null is not a number")
	}
	n, err := strconv.ParseInt(raw, 10, 64)
	if err != nil {
		return 0, errNotWhole
	}
	if n < 0 {
		return 0, fmt.Errorf("%d is negative", n)
	}
	return n, nil
}

func decodeSigned(raw string) (Signed, error) {
	n, err := strconv.ParseInt(raw, 10, 64)
	if err != nil {
		return 0, errNotWhole
	}
	return Signed(n), nil
}

func decodeVersion(raw string) (int, error) {
	n, err := strconv.Atoi(raw)
	if err != nil {
		return 0, errNotWhole
	}
	if n < 1 {
		return 0, fmt.Errorf("there is no version %d", n)
	}
	return n, nil
}

// CheckTime returns an error if t in UTC is not in the years 1 to 9999. Neither
// Python's datetime nor a year of four digits can represent other years.
func CheckTime(t time.Time) error {
	if year := t.UTC().Year(); year < 1 || year > 9999 {
		return fmt.Errorf("the year %d is not in the range 1 to 9999", year)
	}
	return nil
}

// encodeTime returns what Python's datetime.isoformat writes for UTC.
func encodeTime(t time.Time) string {
	t = t.UTC()
	if t.Nanosecond() < 1000 {
		return `"` + t.Format("2006-01-02T15:04:05") + `+00:00"`
	}
	return `"` + t.Format("2006-01-02T15:04:05.000000") + `+00:00"`
}

// decodeTime reads what datetime.isoformat writes for any zone, or without one,
// which means UTC.
func decodeTime(raw string) (time.Time, error) {
	s, err := Unquote(raw)
	if err != nil {
		return time.Time{}, err
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05"} {
		if t, err := time.Parse(layout, s); err == nil && CheckTime(t) == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not an ISO 8601 time", s)
}

// A Time is a time in JSON in the form that Python's datetime.isoformat has for
// UTC.
type Time time.Time

// MarshalJSON returns the time in UTC.
func (t Time) MarshalJSON() ([]byte, error) {
	if err := CheckTime(time.Time(t)); err != nil {
		return nil, err
	}
	return []byte(encodeTime(time.Time(t))), nil
}

// UnmarshalJSON accepts any zone, and none, which is UTC.
func (t *Time) UnmarshalJSON(data []byte) error {
	at, err := decodeTime(string(data))
	*t = Time(at)
	return err
}
