package filetree

import (
	"context"
	"os"

	"github.com/atocore/backup/internal/fsat"
)

// ChownLike sets the owner and group of the entry name in dir to those of old.
// It does nothing if this process is not root, because others may not change
// owners, or if the system has none.
func ChownLike(dir *fsat.Dir, name string, old fsat.Info) error {
	if os.Geteuid() != 0 || old.UID == -1 {
		return nil
	}
	info, err := dir.Lstat(name)
	if err != nil || info.UID == old.UID && info.GID == old.GID {
		return err
	}
	return dir.Chown(name, old.UID, old.GID)
}

// ChownTreeLike does the same as ChownLike, for everything below dir but not
// for dir itself. It stops at the first error.
func ChownTreeLike(ctx context.Context, dir *fsat.Dir, old fsat.Info) error {
	if os.Geteuid() != 0 || old.UID == -1 {
		return nil
	}
	fail := func(err error) error { return err }
	return eachEntry(ctx, dir, fail, func(dir *fsat.Dir, entry fsat.Entry) error {
		return ChownLike(dir, entry.Name, old)
	})
}
