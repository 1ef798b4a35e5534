package backup_test

import (
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func readText(t *testing.T, elem ...string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(elem...))
	require.NoError(t, err)
	return string(text)
}

// sourcesOf returns the files of the package in dir, without tests.
func sourcesOf(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	require.NoError(t, err)
	files = slices.DeleteFunc(files, func(file string) bool { return strings.HasSuffix(file, "_test.go") })
	require.NotEmpty(t, files, dir)
	return files
}

// importsOf returns the last elements of the packages of this module that the
// package in dir imports on any system.
func importsOf(t *testing.T, dir string) []string {
	t.Helper()
	var imports []string
	for _, file := range sourcesOf(t, dir) {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		require.NoError(t, err)
		for _, spec := range parsed.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			require.NoError(t, err)
			if strings.HasPrefix(name+"/", "github.com/atocore/backup/") {
				imports = append(imports, path.Base(name))
			}
		}
	}
	slices.Sort(imports)
	return slices.Compact(imports)
}

// TestArchitectureShowsImports: the graph in docs/architecture.md has exactly
// the imports of the library and the command.
func TestArchitectureShowsImports(t *testing.T) {
	shown := make(map[string][]string)
	for _, line := range regexp.MustCompile(`(?m)^    (\w+) --> (.*)$`).FindAllStringSubmatch(readText(t, "docs", "architecture.md"), -1) {
		imports := strings.Split(line[2], " & ")
		slices.Sort(imports)
		shown[line[1]] = imports
	}
	actual := map[string][]string{"cmd": importsOf(t, filepath.Join("cmd", "atocore-backup")), "backup": importsOf(t, ".")}
	var dirs []string
	for _, pattern := range []string{"*", "internal/*", "*/internal/*"} {
		found, err := filepath.Glob(filepath.FromSlash(pattern))
		require.NoError(t, err)
		dirs = append(dirs, found...)
	}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		require.NoError(t, err)
		switch name := filepath.Base(dir); {
		case name == "backuptest", name == "tests", name == "bench", len(files) == 0:
		default:
			if imports := importsOf(t, dir); len(imports) > 0 {
				actual[name] = imports
			}
		}
	}
	require.Equal(t, actual, shown)
}

// TestDocsNameFiles: each Go file that the documents name exists, and contains
// the identifiers that follow its name.
func TestDocsNameFiles(t *testing.T) {
	reference := regexp.MustCompile("`([a-z/_-]+\\.go)`(?:: ((?:`[A-Za-z.]+`(?:, | and )?)+))?")
	for _, doc := range []string{"architecture.md", "guarantees.md", "rationale.md"} {
		references := reference.FindAllStringSubmatch(readText(t, "docs", doc), -1)
		require.NotEmpty(t, references)
		for _, named := range references {
			source := readText(t, filepath.FromSlash(named[1]))
			for _, name := range regexp.MustCompile("`([A-Za-z.]+)`").FindAllStringSubmatch(named[2], -1) {
				identifier := name[1][strings.LastIndex(name[1], ".")+1:]
				if identifier != "go" { // the name of the next file
					require.True(t, strings.Contains(source, identifier), "%s names %s in %s", doc, name[1], named[1])
				}
			}
		}
	}
	for _, file := range sourcesOf(t, ".") {
		require.Regexp(t, `(?m)^  `+regexp.QuoteMeta(file)+` `, readText(t, "docs", "architecture.md"), "the tree lacks it")
	}
}
