// Service is a whole host of package backup: an HTTP service with its store, its
// endpoints for backups, and its timer.
//
//	go run ./examples/service -dir /tmp/service
//
// The store in -dir is a SQLite database in WAL mode behind a pool of connections,
// a registry, and a directory that plays the role of Chroma's:
//
//	PUT  /notes/NAME              writes the body into the database; GET reads it
//	POST /projects/NAME/documents ingests the body into all three, under the ingestion guard
//	GET  /documents/ID            reads it from all three
//
// Its calls of the library are in backup.go: the handler of package backuphttp at
// /admin/backup/, which docs/server.md describes, with a page for a browser; and
// package schedule, which creates a snapshot and prunes every -every. While a
// snapshot is restored, the service goes on; requests wait for the swap.
//
// There is no authentication, so the service listens on a loopback address only.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// grace is how long requests may take after the service was told to end, and how
// long a backup waits for the guard or for another one.
const grace = 30 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

// run runs the service until ctx ends. It prints its address to out.
func run(ctx context.Context, args []string, out, logs io.Writer) (err error) {
	flags := flag.NewFlagSet("service", flag.ContinueOnError)
	flags.SetOutput(logs)
	addr := flags.String("addr", "127.0.0.1:8080", "listen on `HOST:PORT`, which must be a loopback address")
	dir := flags.String("dir", "service-data", "keep the store and its backups in `DIR`")
	every := flags.Duration("every", time.Hour, "create a snapshot and prune every `DURATION`")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *every <= 0 {
		return fmt.Errorf("-every is %s", *every)
	}
	h, err := newHost(ctx, *dir, *every, slog.New(slog.NewTextHandler(logs, nil)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.store.close()) }()
	listener, err := listen(*addr)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "listening on http://%s\n", listener.Addr())
	return h.serve(ctx, listener)
}

// A host is the service without its listener.
type host struct {
	store *store
	log   *slog.Logger
	every time.Duration // from one snapshot to the next

	// backups answers requests about backups, and schedule makes them until its
	// context ends.
	backups interface {
		http.Handler
		Shutdown(context.Context) error
	}
	schedule func(context.Context) error
}

// newHost opens the store in dir. If a restore of it was interrupted, it stays
// closed until another one, and requests that need it get 503.
func newHost(ctx context.Context, dir string, every time.Duration, log *slog.Logger) (*host, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	h := &host{store: newStore(dir), log: log, every: every}
	interrupted, err := h.openBackups(ctx, filepath.Join(dir, "backups"))
	switch {
	case interrupted:
		log.Error("restore_unfinished", "do", "restore a snapshot")
		return h, nil
	case err != nil:
		return nil, err
	}
	return h, h.store.open(ctx)
}

// listen listens on addr if that is a loopback address.
func listen(addr string) (net.Listener, error) {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, err
	}
	if !tcp.IP.IsLoopback() {
		return nil, fmt.Errorf("%s is not a loopback address", addr)
	}
	return net.ListenTCP("tcp", tcp)
}

// serve answers requests, and creates snapshots, until ctx ends. Then it waits for
// the requests and operations that have begun, at most for grace.
func (h *host) serve(ctx context.Context, listener net.Listener) error {
	server := &http.Server{
		Handler:           h.handler(),
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          slog.NewLogLogger(h.log.Handler(), slog.LevelWarn),
	}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		if err := h.schedule(ctx); ctx.Err() == nil {
			return err
		}
		return nil
	})
	group.Go(func() error {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	group.Go(func() error {
		<-ctx.Done()
		h.log.Info("stopping")
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		// First the backups: the server would wait for those that follow the events.
		return errors.Join(h.backups.Shutdown(ctx), server.Shutdown(ctx))
	})
	return group.Wait()
}
