package offsite

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// victims are the processes that are killed, by turns.
var victims = []string{"ours", "restic", "both"}

// kill kills the child, its restic, or both, and waits for the child.
func kill(t *testing.T, child *backuptest.Child, victim string) {
	t.Helper()
	of := resticsOf(t, child.Cmd.Process.Pid)
	if victim != "restic" {
		require.NoError(t, ignore(child.Cmd.Process.Kill(), os.ErrProcessDone))
	}
	if victim != "ours" {
		for _, pid := range of {
			require.NoError(t, ignore(unix.Kill(pid, unix.SIGKILL), unix.ESRCH))
		}
	}
	_ = child.Cmd.Wait() // it was killed, or it failed, or it was done before
}

func ignore(err, harmless error) error {
	if errors.Is(err, harmless) {
		return nil
	}
	return err
}

// resticsOf returns the processes called restic that the process has started.
func resticsOf(t *testing.T, parent int) (pids []int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	require.NoError(t, err)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		// pid (name) state parent …
		head, tail, _ := strings.Cut(string(text), ") ")
		pid, name, _ := strings.Cut(head, " (")
		if fields := strings.Fields(tail); name == "restic" && len(fields) > 1 && fields[1] == strconv.Itoa(parent) {
			n, err := strconv.Atoi(pid)
			require.NoError(t, err)
			pids = append(pids, n)
		}
	}
	return pids
}

// requireWhole checks, after something went wrong in a push, that every copy which
// is listed is one of stamps, and that all of the repository is sound; and that the
// next push works, is listed, and comes back as it was.
func (p *place) requireWhole(s *store, stamps []string, stamp string) {
	p.t.Helper()
	for _, listed := range p.stamps() {
		require.Contains(p.t, stamps, listed)
	}
	p.push(s, stamp)
	require.Contains(p.t, p.stamps(), stamp)
	s.RequireClean()
	p.requirePulled(s, stamp)
}

// TestKilledPush kills our process, restic, or both at random moments of a push.
func TestKilledPush(t *testing.T) {
	t.Parallel()
	p := newDirectory(t)
	s := newStore(t, 8)
	stamps := []string{s.Create().Stamp}
	began := time.Duration(0)
	clock := backup.SystemClock()
	measure := func(stamp string) {
		start := clock.Now()
		p.push(s, stamp)
		began = clock.Now().Sub(start)
	}
	measure(stamps[0])
	took := began
	outcomes := map[string]int{}
	for i := range *kills {
		victim := victims[i%len(victims)]
		s.changePages(0.2)
		stamps = append(stamps, s.next())
		stamp := stamps[len(stamps)-1]
		if i%4 == 3 {
			// A first push: the whole store is sent.
			require.NoError(t, os.RemoveAll(p.state(s)))
		}
		child := p.start("push", s, stamp)
		moment := time.NewTimer(time.Duration(s.random.Int64N(int64(took))))
		<-moment.C
		kill(t, child, victim)
		there := "without a copy"
		for _, listed := range p.stamps() {
			if listed == stamp {
				there = "with a copy"
			}
		}
		outcomes[victim+" "+there]++

		p.requireWhole(s, stamps, stamp)
		// What is gone locally must not be needed.
		for _, old := range s.Stamps() {
			if old != stamp && s.random.IntN(2) == 0 {
				s.remove(old)
			}
		}
	}
	p.check("--read-data")
	t.Logf("killed within %v: %v", took, outcomes)
}

// TestKilledPull kills our process, restic, or both at random moments of a pull.
// What is left is removed by the next one.
func TestKilledPull(t *testing.T) {
	t.Parallel()
	p := newDirectory(t)
	s := newStore(t, 8)
	p.push(s, s.Create().Stamp)
	stamp := s.next()
	p.push(s, stamp)
	clock := backup.SystemClock()
	start := clock.Now()
	p.requirePulled(s, stamp)
	took := clock.Now().Sub(start)
	outcomes := map[string]int{}
	for i := range *kills {
		victim := victims[i%len(victims)]
		twin := s.elsewhere()
		child := p.start("pull", twin, stamp)
		moment := time.NewTimer(time.Duration(s.random.Int64N(int64(took))))
		<-moment.C
		kill(t, child, victim)
		visible := len(twin.RequireValid())
		outcomes[victim+" "+[]string{"without", "with"}[visible]+" a snapshot"]++
		if visible == 0 {
			_, err := p.Pull(p.context(), twin.Options, stamp)
			require.NoError(t, err)
		}
		require.Equal(t, backuptest.ReadTree(t, s.SnapshotPath(stamp)), backuptest.ReadTree(t, twin.SnapshotPath(stamp)))
		twin.RequireClean()
		require.NoError(t, os.RemoveAll(twin.Dir))
	}
	t.Logf("killed within %v: %v", took, outcomes)
}

// TestKilledAtRequest kills a push to Swift when its n-th request arrives.
func TestKilledAtRequest(t *testing.T) {
	t.Parallel()
	p := newBucket(t)
	s := newStore(t, 8)
	stamps := []string{s.Create().Stamp}
	before := p.proxy.Traffic()
	p.push(s, stamps[0])
	requests := int(p.proxy.Since(before).Requests)
	for i := range *kills {
		stamps = append(stamps, s.next())
		stamp := stamps[len(stamps)-1]
		if i%2 == 1 {
			require.NoError(t, os.RemoveAll(p.state(s)))
		}
		at := 1 + i*requests / *kills + s.random.IntN(requests / *kills + 1)
		arrived, killed := make(chan bool), make(chan bool)
		var once atomic.Bool
		p.proxy.Watch(func(n int, _ *http.Request) {
			if n >= at && once.CompareAndSwap(false, true) {
				close(arrived)
			}
			if n >= at {
				<-killed
			}
		})
		child := p.start("push", s, stamp)
		ended := make(chan bool)
		go func() {
			var info unix.Siginfo
			_ = unix.Waitid(unix.P_PID, child.Cmd.Process.Pid, &info, unix.WEXITED|unix.WNOWAIT, nil) // kill reaps it
			close(ended)
		}()
		select {
		case <-arrived:
		case <-ended: // it made fewer requests
		}
		kill(t, child, victims[i%len(victims)])
		p.proxy.Watch(nil)
		close(killed)
		p.requireWhole(s, stamps, stamp)
	}
	p.check()
}
