package format_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/internal/format"
)

func TestStagingNames(t *testing.T) {
	a, b := format.NewStagingName(), format.NewStagingName()
	require.NotEqual(t, a, b)
	require.True(t, format.IsStagingName(a), a)
	require.True(t, format.IsStamp(a), "it is a single name")
	require.True(t, format.IsStagingName(".atocore-staging-0123456789abcdef"))
	for _, name := range []string{
		"", ".", "0123456789abcdef", ".atocore-staging-", ".atocore-staging-0123456789abcde", ".atocore-staging-0123456789abcdef0",
		".atocore-staging-0123456789abcdeF", ".atocore-staging-0123456789abcdeg", ".atocore-staging-../../../../../..", "x.atocore-staging-0123456789abcdef",
		".atocore-restore-0123456789abcdef", ".atocore-staging-0123456789abcdef\n", ".atocore-staging-01234567 9abcdef",
	} {
		require.False(t, format.IsStagingName(name), name)
	}
}

func TestHexIDs(t *testing.T) {
	require.True(t, format.IsHexID(format.RandomHex()))
	require.NotEqual(t, format.RandomHex(), format.RandomHex())
	require.True(t, format.IsHexID("0123456789abcdef"))
	for _, s := range []string{"", "0", "0123456789abcde", "0123456789abcdef0", "0123456789ABCDEF", "0123456789abcde/", "01234567..abcdef"} {
		require.False(t, format.IsHexID(s), s)
	}
}
