// Quickstart demonstrates package backup with a small machine store that it
// creates in a temporary directory:
//
//	go run ./examples/quickstart
//
// It runs a service: one goroutine writes to a SQLite database without pause,
// and another one ingests into a Chroma directory. Meanwhile it takes, lists and
// validates a snapshot, and shows that validation finds damage in copies of the
// snapshot. Then it stops the service, destroys the store, and restores the
// snapshot. With -keep DIR it creates the store in DIR and does not remove it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
)

func main() {
	keep := flag.String("keep", "", "create the store in `DIR`, which must not exist, and keep it")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// run runs the demo and prints to out. It leaves nothing behind, unless keep names
// a directory to keep.
func run(ctx context.Context, out io.Writer, keep string) (err error) {
	dir, remove, err := workDir(keep)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()

	svc, serviceCtx, err := startService(ctx, dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, svc.stop()) }()

	d := demo{out: out, dir: dir, service: svc}
	for _, chapter := range []func(context.Context) error{
		d.introduce,
		d.create,
		d.list,
		d.validate,
		d.damage,
	} {
		if err := chapter(serviceCtx); err != nil {
			return err
		}
	}
	// A database must not be open while it is replaced.
	if err := svc.stop(); err != nil {
		return err
	}
	if err := d.restore(ctx); err != nil {
		return err
	}
	d.farewell(keep != "")
	return nil
}

// workDir creates the directory to work in, and returns a function that removes
// it unless it is to be kept.
func workDir(keep string) (dir string, remove func() error, err error) {
	if keep != "" {
		if dir, err = filepath.Abs(keep); err == nil {
			err = os.Mkdir(dir, 0o755)
		}
		return dir, func() error { return nil }, err
	}
	dir, err = os.MkdirTemp("", "atocore-quickstart-")
	return dir, func() error { return os.RemoveAll(dir) }, err
}
