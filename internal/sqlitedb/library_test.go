package sqlitedb

import (
	"runtime/debug"
	"testing"

	"github.com/stretchr/testify/require"
)

// Only libraries that bring another copy of SQLite count.
func TestOtherLibrary(t *testing.T) {
	linked := []*debug.Module{
		{Path: "modernc.org/sqlite"}, {Path: "zombiezen.com/go/sqlite"}, {Path: "github.com/glebarez/go-sqlite"},
	}
	require.Empty(t, otherLibrary(linked))
	linked = append(linked, &debug.Module{Path: "github.com/ncruces/go-sqlite3"}, &debug.Module{Path: "golang.org/x/sys"})
	require.Equal(t, "github.com/ncruces/go-sqlite3", otherLibrary(linked))
}
