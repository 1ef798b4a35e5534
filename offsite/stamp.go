package offsite

import (
	"strings"
	"time"
)

// stampLayout is the layout of a stamp without its suffix (docs/format.md).
const stampLayout = "20060102T150405Z"

// isStamp reports whether stamp is one that a create makes: the second, and from
// the second snapshot of the same second on its number, of three digits or more.
func isStamp(stamp string) bool {
	second, number, suffixed := strings.Cut(stamp, "-")
	if _, err := time.Parse(stampLayout, second); err != nil || len(second) != len(stampLayout) {
		return false
	}
	return !suffixed || len(number) >= 3 && len(number) <= 10 && strings.Trim(number, "0123456789") == "" &&
		(len(number) == 3 || number[0] != '0') && number != "000" && number != "001"
}
