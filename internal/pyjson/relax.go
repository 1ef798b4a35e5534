package pyjson

import "strings"

// Relax returns text with the constants NaN, Infinity and -Infinity, which
// Python's json module writes and reads although they are not JSON, replaced by
// null. Text without them is returned unchanged. Where they are not values, as
// in strings, they stay.
func Relax(text string) string {
	if !strings.Contains(text, "NaN") && !strings.Contains(text, "Infinity") {
		return text
	}
	var out strings.Builder
	valueMayBegin := true // at the beginning and after "[", ":" and ","
	for i := 0; i < len(text); {
		switch c := text[i]; {
		case c == '"':
			end := endOfString(text, i)
			out.WriteString(text[i:end])
			i, valueMayBegin = end, false
			continue
		case valueMayBegin:
			if n := constant(text[i:]); n > 0 {
				out.WriteString("null")
				i, valueMayBegin = i+n, false
				continue
			}
			valueMayBegin = strings.IndexByte(" \t\r\n[:,", c) >= 0
		default:
			valueMayBegin = strings.IndexByte("[:,", c) >= 0
		}
		out.WriteByte(text[i])
		i++
	}
	return out.String()
}

// constant returns the length of the constant that text begins with, or 0.
func constant(text string) int {
	for _, name := range []string{"NaN", "Infinity", "-Infinity"} {
		if strings.HasPrefix(text, name) {
			return len(name)
		}
	}
	return 0
}

// endOfString returns the index behind the string that begins at text[start].
func endOfString(text string, start int) int {
	for i := start + 1; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(text)
}
