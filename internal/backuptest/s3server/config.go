package s3server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"

	"golang.org/x/sync/errgroup"
)

// The only account of the server.
const (
	key    = "test:tester"
	secret = "testing"
)

// A role is what one of the daemons does.
type role struct{ name string }

func (r role) program() string { return "swift-" + r.name + "-server" }

// roles are in the order in which they are started and given their ports.
var roles = []role{{"account"}, {"container"}, {"object"}, {"proxy"}}

const roleProxy = 3 // in roles

// storageConf is the configuration of a daemon that stores. Arguments: its port,
// the user, the directory, that of the devices, the name.
const storageConf = `[DEFAULT]
bind_ip = 127.0.0.1
bind_port = %d
user = %s
swift_dir = %s
devices = %s
mount_check = false
fallocate_reserve = 0
workers = 0

[pipeline:main]
pipeline = healthcheck %[5]s-server

[app:%[5]s-server]
use = egg:swift#%[5]s

[filter:healthcheck]
use = egg:swift#healthcheck
`

// proxyConf is the configuration of the proxy server: the S3 API on top of Swift's
// own, for one account whose container and objects appear when they are written.
// There is no memcached, which only costs speed. Arguments: the port, the user, the
// directory.
const proxyConf = `[DEFAULT]
bind_ip = 127.0.0.1
bind_port = %d
user = %s
swift_dir = %s
workers = 0

[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats s3api tempauth slo dlo proxy-server

[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true

[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin

[filter:s3api]
use = egg:swift#s3api
location = us-east-1

[filter:cache]
use = egg:swift#memcache

[filter:catch_errors]
use = egg:swift#catch_errors

[filter:gatekeeper]
use = egg:swift#gatekeeper

[filter:healthcheck]
use = egg:swift#healthcheck

[filter:listing_formats]
use = egg:swift#listing_formats

[filter:slo]
use = egg:swift#slo

[filter:dlo]
use = egg:swift#dlo
`

// configure makes the directory dir of a server with one device, no copies of
// anything, and daemons on the ports.
func configure(ctx context.Context, dir string, ports []int) error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	devices := filepath.Join(dir, "devices")
	if err := os.MkdirAll(filepath.Join(devices, "d1"), 0o700); err != nil {
		return err
	}
	var tasks errgroup.Group
	for i, role := range roles {
		text := fmt.Sprintf(proxyConf, ports[i], me.Username, dir)
		if i != roleProxy {
			text = fmt.Sprintf(storageConf, ports[i], me.Username, dir, devices, role.name)
			tasks.Go(func() error { return buildRing(ctx, dir, role.name, ports[i]) })
		}
		tasks.Go(func() error { return os.WriteFile(filepath.Join(dir, role.name+".conf"), []byte(text), 0o600) })
	}
	return tasks.Wait()
}

// buildRing writes the ring of a storage daemon, which says where things are.
func buildRing(ctx context.Context, dir, name string, port int) error {
	for _, args := range []string{
		"create 4 1 1",
		fmt.Sprintf("add --region 1 --zone 1 --ip 127.0.0.1 --port %d --device d1 --weight 1", port),
		"rebalance",
	} {
		cmd := exec.CommandContext(ctx, "swift-ring-builder", append([]string{name + ".builder"}, strings.Fields(args)...)...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		// Exit status 1 is a warning, here about the balance of a single device.
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) && exit.ExitCode() == 1 {
			err = nil
		}
		if err != nil {
			return fmt.Errorf("swift-ring-builder %s: %w\n%s", args, err, out)
		}
	}
	return nil
}
