package backup_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
)

// No error names a field of Options: a user of the command knows flags only.
// Fields that are also ordinary words are left out.
func TestErrorsNameNoFields(t *testing.T) {
	var fields []string
	for field := range reflect.TypeFor[backup.Options]().Fields() {
		if regexp.MustCompile(`^[A-Z].*[A-Z]`).MatchString(field.Name) {
			fields = append(fields, field.Name)
		}
	}
	require.Contains(t, fields, "DatabasePath")
	require.Contains(t, fields, "DB")
	named := regexp.MustCompile(`\b(` + strings.Join(fields, "|") + `)\b`)
	dirs, err := filepath.Glob("internal/*")
	require.NoError(t, err)
	for _, dir := range append(dirs, ".", "cmd/atocore-backup") {
		if name := filepath.Base(dir); name == "tests" || name == "backuptest" {
			continue
		}
		for _, file := range sourcesOf(t, dir) {
			fset := token.NewFileSet()
			parsed, err := parser.ParseFile(fset, file, nil, 0)
			require.NoError(t, err)
			ast.Inspect(parsed, func(node ast.Node) bool {
				call, ok := node.(*ast.CallExpr)
				if !ok || len(call.Args) == 0 || !makesError(call) {
					return true
				}
				for _, arg := range call.Args {
					if text, ok := arg.(*ast.BasicLit); ok && text.Kind == token.STRING {
						require.NotRegexp(t, named, text.Value, fset.Position(text.Pos()).String())
					}
				}
				return true
			})
		}
	}
}

// makesError reports whether a call makes an error or a part of one.
func makesError(call *ast.CallExpr) bool {
	switch f := call.Fun.(type) {
	case *ast.SelectorExpr:
		return f.Sel.Name == "Errorf" || f.Sel.Name == "New"
	case *ast.Ident:
		return f.Name == "fault"
	}
	return false
}
