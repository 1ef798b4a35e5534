package restic

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAbsolute(t *testing.T) {
	abs, err := filepath.Abs("x")
	require.NoError(t, err)
	for location, want := range map[string]string{
		"x": abs, "./x": abs, "local:x": "local:" + abs, abs: abs, "": "",
		"s3:https://host/x": "s3:https://host/x", "sftp:user@host:x": "sftp:user@host:x", "rest:http://host/": "rest:http://host/",
	} {
		require.Equal(t, want, AbsoluteLocation(location))
	}
	require.Equal(t,
		[]string{"--cacert", abs, "--cacert=" + abs, "-r", abs, "--repo=s3:x", "--limit-upload", "x", "--cacert"},
		absoluteArgs([]string{"--cacert", "x", "--cacert=x", "-r", "x", "--repo=s3:x", "--limit-upload", "x", "--cacert"}))
	require.Equal(t,
		[]string{"RESTIC_PASSWORD_FILE=" + abs, "RESTIC_REPOSITORY=" + abs, "OTHER=x", "RESTIC_CACERT="},
		absoluteEnv([]string{"RESTIC_PASSWORD_FILE=x", "RESTIC_REPOSITORY=x", "OTHER=x", "RESTIC_CACERT="}))
}
