package offsite

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/internal/backuptest/s3server"
	"github.com/atocore/backup/offsite"
)

var kills = flag.Int("kills", 6, "how often to kill a push, and a pull")

// swift is the store of all tests, in which each has buckets of its own.
var swift s3server.Shared

func TestMain(m *testing.M) {
	backuptest.Play(backuptest.Roles{"call": playCall})
	// restic waits most of the time: 0.2 seconds for each lock, and for servers.
	if err := flag.Set("test.parallel", "8"); err != nil {
		panic(err)
	}
	status := m.Run()
	if err := swift.Close(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// A call is one that another process makes.
type call struct {
	Name                                       string // "push" or "pull"
	Location, PasswordFile                     string
	Args, Env                                  []string
	Patience                                   time.Duration
	BackupDir, DatabasePath, Host, Stamp, Root string
}

// playCall makes a call, and says when it begins and what came of it.
func playCall(p *backuptest.Parent, args []string) error {
	var c call
	if err := json.Unmarshal([]byte(args[0]), &c); err != nil {
		return err
	}
	r := &offsite.Repository{Location: c.Location, PasswordFile: c.PasswordFile, Args: c.Args, Env: c.Env, Patience: c.Patience}
	opts := backup.Options{BackupDir: c.BackupDir, DatabasePath: c.DatabasePath, Host: c.Host}
	p.Say("began")
	var err error
	switch c.Name {
	case "push":
		_, err = r.Push(context.Background(), opts, c.Stamp)
	case "pull":
		_, err = r.Pull(context.Background(), opts, c.Stamp)
	default:
		err = fmt.Errorf("no such call: %s", c.Name)
	}
	memory, memoryErr := peakMemory()
	p.Say(strconv.FormatInt(memory, 10))
	return errors.Join(err, memoryErr)
}

// peakMemory returns the most memory that this process has had, or one of those
// that it has started, in bytes. What the parent has, of which getrusage(2) counts
// what was shared before exec(2), is no part of it.
func peakMemory() (int64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, line, _ := strings.Cut(string(text), "VmHWM:")
	var own int64
	if _, err := fmt.Sscan(line, &own); err != nil {
		return 0, fmt.Errorf("read VmHWM: %w", err)
	}
	var usage unix.Rusage
	err = unix.Getrusage(unix.RUSAGE_CHILDREN, &usage)
	return max(own, int64(usage.Maxrss)) << 10, err
}
