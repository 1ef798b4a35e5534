package errdefs

import (
	"errors"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRecover(t *testing.T) {
	call := func(panics any, cleanup error) (err error) {
		defer Recover(&err)
		defer func() { err = errors.Join(err, cleanup) }()
		if panics != nil {
			panic(panics)
		}
		return nil
	}
	remove := &fs.PathError{Op: "remove", Path: "staging", Err: fs.ErrPermission}

	require.NoError(t, call(nil, nil))
	require.EqualError(t, call(nil, remove), remove.Error())

	err := call("oops", nil)
	require.ErrorIs(t, err, ErrPanic)
	require.ErrorContains(t, err, "oops")
	require.ErrorContains(t, err, "errdefs_test.go", "the stack is missing")

	err = call(fs.ErrClosed, nil)
	require.ErrorIs(t, err, ErrPanic)
	require.ErrorIs(t, err, fs.ErrClosed)
}

// A panic does not hide an error of the cleanup after it.
func TestRecoverKeepsAnEarlierError(t *testing.T) {
	for _, value := range []any{"oops", fs.ErrClosed} {
		err := func() (err error) {
			defer Recover(&err)
			defer func() { err = errors.Join(err, ErrRestoreUnfinished, fs.ErrPermission) }()
			panic(value)
		}()
		require.ErrorIs(t, err, ErrPanic)
		require.ErrorIs(t, err, ErrRestoreUnfinished)
		require.ErrorIs(t, err, fs.ErrPermission)
		require.ErrorContains(t, err, "errdefs_test.go")
		if cause, ok := value.(error); ok {
			require.ErrorIs(t, err, cause)
		}
	}
}

// Some sentinels match one of package io/fs, too, and only that.
func TestFileErrors(t *testing.T) {
	require.ErrorIs(t, ErrNoSnapshot, fs.ErrNotExist)
	require.NotErrorIs(t, ErrNoSnapshot, fs.ErrExist)
	require.ErrorIs(t, ErrSnapshotExists, fs.ErrExist)
	require.NotErrorIs(t, ErrSnapshotExists, ErrNoSnapshot)
	require.NotErrorIs(t, fs.ErrNotExist, ErrNoSnapshot)
}
