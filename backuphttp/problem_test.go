package backuphttp_test

import (
	"context"
	"errors"
	"go/parser"
	"go/token"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
)

// named are the errors of package backup, by their names in its documentation.
var named = map[string]error{
	"ErrPanic": backup.ErrPanic, "ErrInvalidOptions": backup.ErrInvalidOptions, "ErrRestoreUnfinished": backup.ErrRestoreUnfinished,
	"ErrBusy": backup.ErrBusy, "ErrNoSnapshot": backup.ErrNoSnapshot, "ErrSnapshotExists": backup.ErrSnapshotExists,
	"ErrInvalidArchive": backup.ErrInvalidArchive, "ErrInvalidBackup": backup.ErrInvalidBackup, "ErrProtected": backup.ErrProtected,
	"ErrOtherStore": backup.ErrOtherStore, "ErrDatabaseInUse": backup.ErrDatabaseInUse, "ErrCannotReplace": backup.ErrCannotReplace,
	"ErrSourceChanged": backup.ErrSourceChanged, "ErrSourceInvalid": backup.ErrSourceInvalid, "ErrUnsupportedFile": backup.ErrUnsupportedFile,
	"ErrNoSpace": backup.ErrNoSpace, "ErrCrossDevice": backup.ErrCrossDevice,
	"context.Canceled": context.Canceled, "context.DeadlineExceeded": context.DeadlineExceeded,
}

// The status of every error is the one in the documentation of package backup, and
// its code is its name.
func TestStatusesAreThoseOfTheLibrary(t *testing.T) {
	parsed, err := parser.ParseFile(token.NewFileSet(), "../doc.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	require.NoError(t, err)
	row := regexp.MustCompile(`(?m)^\t((?:Err|context\.)\w+) .* (\d{3})$`)
	rows := row.FindAllStringSubmatch(parsed.Doc.Text(), -1)
	require.Len(t, rows, len(named))
	var fails error
	s := newSite(t, everything, func(o *backup.Options) {
		o.InitDB = func(context.Context) error { return fails }
	})
	for _, row := range rows {
		name := row[1]
		require.Contains(t, named, name)
		status, err := strconv.Atoi(row[2])
		require.NoError(t, err)
		fails = named[name]
		p := s.fails(status, codeOf(name), asked{method: "POST", path: "/"})
		require.Equal(t, fails.Error(), p.Title)
		require.Contains(t, p.Type, "https://pkg.go.dev/github.com/atocore/backup#")
	}
	// An error that matches several is the first of them.
	fails = errors.Join(named["ErrNoSpace"], named["ErrBusy"])
	s.fails(409, "busy", asked{method: "POST", path: "/"})
	fails = errors.New("something else")
	p := s.fails(500, "internal", asked{method: "POST", path: "/"})
	require.Contains(t, p.Detail, "something else")
}

// codeOf returns the code of an error's name: ErrNoSnapshot is no_snapshot.
func codeOf(name string) string {
	name = strings.TrimPrefix(strings.TrimPrefix(name, "context."), "Err")
	words := regexp.MustCompile(`[A-Z][a-z]+`).FindAllString(name, -1)
	return strings.ToLower(strings.Join(words, "_"))
}

// Every code that is in this package is in its documentation, with its status.
func TestOwnCodesAreDocumented(t *testing.T) {
	parsed, err := parser.ParseFile(token.NewFileSet(), "doc.go", nil, parser.ParseComments|parser.PackageClauseOnly)
	require.NoError(t, err)
	documented := map[string]string{}
	for _, row := range regexp.MustCompile(`(?m)^\t([a-z_]+) +(\d{3})( |$)`).FindAllStringSubmatch(parsed.Doc.Text(), -1) {
		documented[row[1]] = row[2]
	}
	code, err := os.ReadFile("problem.go")
	require.NoError(t, err)
	found := regexp.MustCompile(`case "([a-z_]+)":\n\t\treturn`).FindAllStringSubmatch(string(code), -1)
	require.NotEmpty(t, found)
	for _, f := range found {
		require.Contains(t, documented, f[1])
	}
	require.Len(t, documented, len(found)+1, "and internal")
}

// What New does not know is reported by the requests.
func TestFaultyOptions(t *testing.T) {
	s := newSite(t, backuphttp.Config{}, func(o *backup.Options) { o.DatabasePath = "" })
	s.fails(400, "invalid_options", asked{method: "POST", path: "/"})
	s.must(200, "GET", "/", "", nil)
}
