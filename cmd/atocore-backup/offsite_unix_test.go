//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup/offsite"
)

// A push that is interrupted ends with the status of the signal and leaves nothing
// in the repository. The snapshot stands, and the next push works.
func TestSignalEndsAPush(t *testing.T) {
	if signal.Ignored(syscall.SIGINT) {
		t.Skip("this process was started with the signal ignored, and so is the command")
	}
	for _, name := range []string{"offsite push", "create --push"} {
		t.Run(name, func(t *testing.T) {
			p := newRepository(t)
			noise := make([]byte, 4<<20)
			_, err := rand.Read(noise)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(filepath.Join(p.chroma, "segment", "data.bin"), noise, 0o600))
			args := []string{"create", "--include-chroma", "--push"}
			if name == "offsite push" {
				p.snapshot(t)
				args = []string{"offsite", "push"}
			}
			// At this speed the upload takes an hour.
			cmd := p.prepare(t, append(args, "--limit-upload", "1")...)
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			begun := filepath.Join(t.TempDir(), "begun")
			cmd.Env = append(cmd.Env, "ATOCORE_OFFSITE_RESTIC="+announcing(t, begun))
			require.NoError(t, syscall.Mkfifo(begun, 0o600))
			require.NoError(t, cmd.Start())
			announced := make(chan error, 1)
			go func() {
				_, err := os.ReadFile(begun) // returns when restic's backup begins
				announced <- err
			}()
			select {
			case err := <-announced:
				require.NoError(t, err)
			case <-time.After(time.Minute):
				_ = cmd.Process.Kill()
				t.Fatal("no backup after a minute")
			}
			require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
			require.Error(t, cmd.Wait())
			require.Equal(t, exitSignal+int(syscall.SIGINT), cmd.ProcessState.ExitCode(), stderr.String())
			require.Contains(t, stderr.String(), "cancelled: interrupt")
			if name == "create --push" {
				require.Contains(t, stderr.String(), "is complete, but not pushed")
				require.Contains(t, stdout.String(), `"push_error": "`)
			}
			require.Len(t, p.stamps(t), 1)
			require.Empty(t, decode[[]offsite.Copy](t, p.offsite(t, "list")))
			o := p.offsite(t, "push")
			require.Equal(t, exitDone, o.code, o.stderr)
		})
	}
}

// announcing returns a restic that opens the FIFO before it begins a backup.
func announcing(t *testing.T, fifo string) (path string) {
	t.Helper()
	restic, err := exec.LookPath("restic")
	require.NoError(t, err)
	path = filepath.Join(t.TempDir(), "restic")
	script := fmt.Sprintf("#!/bin/sh\ncase \" $* \" in *' backup '*) : > '%s' ;; esac\nexec '%s' \"$@\"\n", fifo, restic)
	require.NoError(t, os.WriteFile(path, []byte(script), 0o700))
	return path
}
