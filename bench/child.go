package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"github.com/atocore/backup"
	"github.com/atocore/backup/offsite"
)

// runChild runs this program as one of its own child processes, which measure the
// library or create data. Each prints its sample.
//
//	bench child create -db FILE [-chroma DIR] [-registry FILE] -backups DIR [-online]
//	bench child validate -backups DIR -stamp NAME
//	bench child list -backups DIR
//	bench child stall -db FILE -backups DIR -idle TIME [-- COMMAND...]
//	bench child nothing
//	bench child fill -data NAME -to PATH -n N
//	bench child change -data NAME -to PATH
//	bench child push -backups DIR -stamp NAME -repository DIR -password-file FILE -restic PROGRAM
//
// All of them accept -cpuprofile FILE, too.
func runChild(ctx context.Context, args []string, out io.Writer) (err error) {
	if len(args) == 0 {
		return errUsage
	}
	var opts backup.Options
	flags := flag.NewFlagSet("bench child "+args[0], flag.ContinueOnError)
	flags.StringVar(&opts.DatabasePath, "db", "", "the database")
	flags.StringVar(&opts.RegistryPath, "registry", "", "the registry")
	flags.StringVar(&opts.ChromaPath, "chroma", "", "the Chroma directory")
	flags.StringVar(&opts.BackupDir, "backups", "", "the backup directory")
	flags.BoolVar(&opts.OnlineBackup, "online", false, "use the online backup API")
	stamp := flags.String("stamp", "", "the snapshot to validate or push")
	var repository offsite.Repository
	flags.StringVar(&repository.Location, "repository", "", "the repository to push to")
	flags.StringVar(&repository.PasswordFile, "password-file", "", "the file with its password")
	flags.StringVar(&repository.Program, "restic", "", "the restic to run")
	data := flags.String("data", "", "the kind of data to create")
	to := flags.String("to", "", "the path to create it at")
	n := flags.Int64("n", 0, "the size or number of the data to create")
	idle := flags.Duration("idle", 0, "how long to write before the capture")
	profile := flags.String("cpuprofile", "", "write a profile for go tool pprof to `FILE`")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	opts.IncludeChroma = opts.ChromaPath != ""
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	var s sample
	switch args[0] {
	case "create":
		s, err = timeCreate(ctx, opts)
	case "validate":
		s, err = timed(func() error {
			_, err := backup.ValidateBackup(ctx, opts, *stamp)
			return err
		})
	case "list":
		s, err = timed(func() error {
			_, err := backup.ListRuntimeBackups(ctx, opts)
			return err
		})
	case "stall":
		s, err = timeStall(ctx, opts, *idle, flags.Args())
	case "nothing":
	case "fill":
		err = fill(ctx, *data, *to, *n)
	case "change":
		err = change(ctx, *data, *to)
	case "push":
		s, err = timePush(ctx, opts, *stamp, repository)
	default:
		err = fmt.Errorf("no child %q", args[0])
	}
	if err != nil {
		return err
	}
	s.Peak = max(ownPeakMemory(), childrenPeakMemory())
	return json.NewEncoder(out).Encode(s)
}

func timed(do func() error) (s sample, err error) {
	start := time.Now()
	err = do()
	s.Seconds = time.Since(start).Seconds()
	return s, err
}

func timeCreate(ctx context.Context, opts backup.Options) (s sample, err error) {
	var held time.Duration
	opts.Locker = backup.LockerFunc(func(context.Context) (func(), error) {
		locked := time.Now()
		return func() { held = time.Since(locked) }, nil
	})
	s, err = timed(func() error {
		_, err := backup.CreateRuntimeBackup(ctx, opts)
		return err
	})
	s.Guard = held.Seconds()
	return s, err
}

// A store is a machine store to measure.
type store struct {
	name                 string
	db, registry, chroma string // empty if the store does not have the part
	manyFiles            bool   // see comparison
}

// paths returns the paths that a plain copy of the store has to include.
func (s store) paths() (paths []string) {
	for _, path := range []string{s.db, s.registry, s.chroma} {
		if path != "" {
			paths = append(paths, path)
		}
	}
	return paths
}

// create is the library's candidate.
func (b *bench) create(s store, more ...string) candidate {
	name := ours
	if len(more) > 0 {
		name += " (OnlineBackup)"
	}
	return b.commands(name, func(dst string) [][]string {
		argv := []string{b.self, "child", "create", "-db", s.db, "-registry", s.registry, "-chroma", s.chroma,
			"-backups", filepath.Join(dst, "backups")}
		return [][]string{append(argv, more...)}
	})
}
