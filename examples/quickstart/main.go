// Quickstart shows what package backup does, on a small machine store that it
// makes for itself in a temporary directory:
//
//	go run ./examples/quickstart
//
// A service is running: one goroutine moves money in a SQLite database without
// pause, another one ingests into a Chroma directory. Meanwhile a snapshot is
// taken, listed and validated; then copies of it are damaged, and each damage
// is found. In the end the service stops, its store is destroyed, and the
// snapshot is restored. With -keep DIR the store is made in DIR and stays there.
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
	keep := flag.String("keep", "", "make the store in `DIR`, which must not exist, and leave it there")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, os.Stdout, *keep)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

// run tells the whole story to out. Nothing is left of it unless keep names a
// directory to keep.
func run(ctx context.Context, out io.Writer, keep string) (err error) {
	dir, remove, err := workDir(keep)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, remove()) }()

	svc, atWork, err := startService(ctx, dir)
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
		if err := chapter(atWork); err != nil {
			return err
		}
	}
	// Nobody may have a database open that is to be replaced.
	if err := svc.stop(); err != nil {
		return err
	}
	if err := d.restore(ctx); err != nil {
		return err
	}
	d.farewell(keep != "")
	return nil
}

// workDir makes the directory to work in, and tells how to clear it away.
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
