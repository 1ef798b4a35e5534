package offsite

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/offsite/internal/restic"
)

// restic splits tags at commas and trims each (data.SplitTagList).
func throughRestic(tags []string) []string {
	kept := strings.Split(strings.Join(tags, ","), ",")
	for i := range kept {
		kept[i] = strings.TrimSpace(kept[i])
	}
	return kept
}

func TestTags(t *testing.T) {
	for name, s := range map[string]store{
		"usual":                 {"srv1.example.org", "/srv/atocore/atocore.db"},
		"not named":             {},
		"no host":               {"", "/srv/atocore.db"},
		"a host called unknown": {"unknown", "/srv/atocore.db"},
		"already encoded":       {"%75nknown", "/srv/%2C,%.db"},
		"spaces":                {" a b ", " /my data/ä\u00a0b\u2003 "},
		"control bytes":         {"a\nb", "/a\x1b[2J\tb\x00\x7f"},
		"no UTF-8":              {"\xff", "/a/\xc3/\xef\xbf\xbd/\xed\xa0\x80"},
	} {
		t.Run(name, func(t *testing.T) {
			made := Copy{
				ID: strings.Repeat("1", 64), Stamp: "20260102T030405Z-002", ManifestSHA256: strings.Repeat("a", 64),
				CreatedAt: time.Unix(1e9, 0).UTC(), Host: s.host, DatabasePath: s.path,
			}
			require.NotEmpty(t, s.resticHost(), "restic would use the name of this machine")
			got, ok := copyOf(restic.Snapshot{ID: made.ID, Time: made.CreatedAt, Host: s.resticHost(), Tags: throughRestic(made.tags())})
			require.True(t, ok)
			require.Equal(t, made, got)
		})
	}
}

func TestForeignTags(t *testing.T) {
	sums := "sums=" + strings.Repeat("a", 64)
	for name, test := range map[string]struct {
		host string
		tags []string
	}{
		"none":             {"h", nil},
		"only ours":        {"h", []string{"atocore"}},
		"not ours":         {"h", []string{"stamp=20260102T030405Z", sums, "db=/a"}},
		"no stamp":         {"h", []string{"atocore", sums, "db=/a"}},
		"no database":      {"h", []string{"atocore", "stamp=20260102T030405Z", sums}},
		"no hash":          {"h", []string{"atocore", "stamp=20260102T030405Z", "db=/a"}},
		"a path for stamp": {"h", []string{"atocore", "stamp=../x", sums, "db=/a"}},
		"two stamps":       {"h", []string{"atocore", "stamp=20260102T030405Z", "stamp=20260102T030406Z", sums, "db=/a"}},
		"a short hash":     {"h", []string{"atocore", "stamp=20260102T030405Z", "sums=aa", "db=/a"}},
		"a hash of others": {"h", []string{"atocore", "stamp=20260102T030405Z", "sums=" + strings.Repeat("A", 64), "db=/a"}},
		"bad encoding":     {"h", []string{"atocore", "stamp=20260102T030405Z", sums, "db=/a%zz"}},
		"needless escape":  {"h", []string{"atocore", "stamp=20260102T030405Z", sums, "db=/%61"}},
		"no host":          {"", []string{"atocore", "stamp=20260102T030405Z", sums, "db=/a"}},
	} {
		t.Run(name, func(t *testing.T) {
			_, ok := copyOf(restic.Snapshot{ID: strings.Repeat("1", 64), Host: test.host, Tags: test.tags})
			require.False(t, ok)
		})
	}
}
