package main

import (
	"bytes"
	"encoding/json"
	"io"
)

// document returns a function that writes v as a JSON document.
func document(v any) func(io.Writer) error {
	return func(w io.Writer) error { return encoder(w, "").Encode(v) }
}

// array returns a function that writes items as a JSON array. It encodes one
// item at a time, so that a long list is not held in memory a second time as
// text.
func array[T any](items []T) func(io.Writer) error {
	return func(w io.Writer) error {
		if len(items) == 0 {
			_, err := io.WriteString(w, "[]\n")
			return err
		}
		var text bytes.Buffer
		enc := encoder(&text, "  ")
		separator := "[\n  "
		for _, item := range items {
			text.Reset()
			text.WriteString(separator)
			if err := enc.Encode(item); err != nil {
				return err
			}
			text.Truncate(text.Len() - len("\n"))
			if _, err := w.Write(text.Bytes()); err != nil {
				return err
			}
			separator = ",\n  "
		}
		_, err := io.WriteString(w, "\n]\n")
		return err
	}
}

func encoder(w io.Writer, prefix string) *json.Encoder {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent(prefix, "  ")
	return enc
}
