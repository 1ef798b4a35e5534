// Package pyjson writes and reads JSON as the Python module does that shares
// the files of this library: in ASCII only, with bytes that are not UTF-8 as
// lone surrogates (PEP 383, "surrogateescape"), and with times in the form of
// datetime.isoformat. What it writes, Python's json module reads as the same
// values, and the reverse.
//
// It reads untrusted text. Names are matched exactly, none may occur twice, and
// the depth of nesting is limited. The package knows no file and no field by
// name.
package pyjson

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// A String is a string whose JSON is that of [Quote].
//
// An encoder of encoding/json escapes "<", ">" and "&" on top of that, unless
// SetEscapeHTML(false) was called.
type String string

// MarshalJSON returns the string as [Quote] writes it. It never fails.
func (s String) MarshalJSON() ([]byte, error) { return []byte(Quote(string(s))), nil }

// UnmarshalJSON reads a JSON string as [Unquote] does. It refuses null.
func (s *String) UnmarshalJSON(data []byte) error {
	value, err := Unquote(string(data))
	if err != nil {
		return err
	}
	*s = String(value)
	return nil
}

// Quote returns s as a JSON string in ASCII. A byte that is not part of valid
// UTF-8 becomes the lone surrogate U+DC00 plus the byte.
func Quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\udc%02x`, s[i])
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteByte(byte(r))
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x20 || r >= 0x7f:
			writeEscape(&b, r)
		default:
			b.WriteByte(byte(r))
		}
		i += size
	}
	b.WriteByte('"')
	return b.String()
}

// writeEscape writes r as one \u escape, or two for a surrogate pair.
func writeEscape(b *strings.Builder, r rune) {
	if r > 0xffff {
		high, low := utf16.EncodeRune(r)
		fmt.Fprintf(b, `\u%04x\u%04x`, high, low)
		return
	}
	fmt.Fprintf(b, `\u%04x`, r)
}

// Unquote returns the value of raw, which must be a valid JSON value. It is the
// inverse of [Quote]: the lone surrogates U+DC80 to U+DCFF become bytes again.
// Other lone surrogates have no value, and are an error, as is anything but a
// string.
func Unquote(raw string) (string, error) {
	if len(raw) < 2 || raw[0] != '"' {
		return "", errors.New("not a string")
	}
	in := raw[1 : len(raw)-1]
	if !strings.Contains(in, `\`) {
		return in, nil
	}
	var out strings.Builder
	for i := 0; i < len(in); {
		if in[i] != '\\' {
			out.WriteByte(in[i])
			i++
			continue
		}
		if i+1 >= len(in) {
			return "", errors.New("cut off in an escape")
		}
		switch c := in[i+1]; c {
		case 'u':
			n, err := unescape(&out, in[i:])
			if err != nil {
				return "", err
			}
			i += n
			continue
		case 'n':
			out.WriteByte('\n')
		case 'r':
			out.WriteByte('\r')
		case 't':
			out.WriteByte('\t')
		case 'b':
			out.WriteByte('\b')
		case 'f':
			out.WriteByte('\f')
		case '"', '\\', '/':
			out.WriteByte(c)
		default:
			return "", errors.New("unknown escape")
		}
		i += 2
	}
	return out.String(), nil
}

// unescape writes the character or byte that the \u escape at the start of in
// stands for, together with the next escape if the two are a surrogate pair,
// and returns the length of what it read.
func unescape(out *strings.Builder, in string) (n int, err error) {
	r, ok := hex4(in)
	if !ok {
		return 0, errors.New("malformed \\u escape")
	}
	if !utf16.IsSurrogate(r) {
		out.WriteRune(r)
		return 6, nil
	}
	if low, ok := hex4(in[6:]); ok {
		if pair := utf16.DecodeRune(r, low); pair != utf8.RuneError {
			out.WriteRune(pair)
			return 12, nil
		}
	}
	if r < 0xdc80 || r > 0xdcff {
		return 0, fmt.Errorf("lone surrogate \\u%04x", r)
	}
	out.WriteByte(byte(r - 0xdc00))
	return 6, nil
}

// hex4 reads the escape \uXXXX at the start of s.
func hex4(s string) (rune, bool) {
	if len(s) < 6 || s[0] != '\\' || s[1] != 'u' {
		return 0, false
	}
	var r rune
	for _, c := range []byte(s[2:6]) {
		switch {
		case '0' <= c && c <= '9':
			r = r<<4 | rune(c-'0')
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			r = r<<4 | rune(c|0x20-'a'+10)
		default:
			return 0, false
		}
	}
	return r, true
}

// ToASCII returns text, which must be JSON in valid UTF-8, with DEL and every
// character outside ASCII escaped. Text without any is returned as it is, and
// not copied.
func ToASCII(text string) string {
	if isASCII(text) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if r < 0x7f {
			b.WriteByte(byte(r))
		} else {
			writeEscape(&b, r)
		}
	}
	return b.String()
}

// isASCII reports whether text has only ASCII characters other than DEL, which
// some terminals act on.
func isASCII(text string) bool {
	for i := range len(text) {
		if text[i] >= 0x7f {
			return false
		}
	}
	return true
}
