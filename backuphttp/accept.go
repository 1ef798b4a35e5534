package backuphttp

import (
	"mime"
	"strconv"
	"strings"
)

// prefersHTML reports whether a client prefers text/html to application/json, by
// its Accept (RFC 9110, section 12.5.1). One that does not say gets JSON.
func prefersHTML(accept []string) bool {
	return quality(accept, "text", "html") > quality(accept, "application", "json")
}

// quality returns the quality value of a media type, that of the most specific
// range that matches it.
func quality(accept []string, kind, subtype string) float64 {
	best, specific := 0.0, -1
	for _, value := range accept {
		for part := range strings.SplitSeq(value, ",") {
			name, params, err := mime.ParseMediaType(part)
			if err != nil {
				continue
			}
			rank := map[string]int{"*/*": 0, kind + "/*": 1, kind + "/" + subtype: 2}
			at, ok := rank[name]
			if !ok || at < specific {
				continue
			}
			q := 1.0
			if text, given := params["q"]; given {
				if q, err = strconv.ParseFloat(text, 64); err != nil {
					continue
				}
			}
			best, specific = q, at
		}
	}
	return best
}
