package faults

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestGuaranteesNameTests checks that every test which docs/guarantees.md names
// exists.
func TestGuaranteesNameTests(t *testing.T) {
	text, err := os.ReadFile("../../../docs/guarantees.md")
	require.NoError(t, err)
	var tests strings.Builder
	require.NoError(t, filepath.WalkDir("../../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		tests.Write(data)
		return err
	}))
	names := regexp.MustCompile(`Test[A-Z]\w+`).FindAllString(string(text), -1)
	require.NotEmpty(t, names)
	for _, name := range names {
		require.Contains(t, tests.String(), "\nfunc "+name+"(t *testing.T)", "docs/guarantees.md names a test that does not exist")
	}
}
