package backup_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/atocore/backup"
)

// A drill: restore into a scratch directory, look at it, throw it away. What
// came back was compared with the snapshot, byte by byte.
func ExampleRestoreRuntimeBackup() {
	opts, remove := exampleStore()
	defer remove()
	ctx := context.Background()
	meta, err := backup.CreateRuntimeBackup(ctx, opts)
	if err != nil {
		fmt.Println(err)
		return
	}

	scratch, err := os.MkdirTemp("", "drill")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(scratch)
	opts.DatabasePath = filepath.Join(scratch, "atocore.db")
	opts.ChromaPath = filepath.Join(scratch, "chroma")
	result, err := backup.RestoreRuntimeBackup(ctx, opts, meta.Stamp)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(result.Files, "file of", result.Stamp, "came back")
	// Output:
	// 1 file of 20261124T115419Z came back
}

// Of two snapshots a day, the last of the last two days are kept, and the
// oldest of all.
func ExamplePruneRuntimeBackups() {
	opts, remove := exampleStore()
	defer remove()
	ctx := context.Background()
	for day := 1; day <= 3; day++ {
		for _, hour := range []int{9, 17} {
			opts.Clock = fixedClock{time.Date(2026, 11, day, hour, 0, 0, 0, time.UTC)}
			if _, err := backup.CreateRuntimeBackup(ctx, opts); err != nil {
				fmt.Println(err)
				return
			}
		}
	}

	keep := backup.Retention{KeepDaily: 2, KeepYearly: 2}
	result, err := backup.PruneRuntimeBackups(ctx, opts, keep)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, k := range result.Kept {
		fmt.Println("kept   ", k.Stamp, k.Reasons)
	}
	for _, stamp := range result.Removed {
		fmt.Println("removed", stamp)
	}
	// Output:
	// kept    20261103T170000Z [newest snapshot daily snapshot yearly snapshot]
	// kept    20261102T170000Z [daily snapshot]
	// kept    20261101T090000Z [oldest yearly snapshot]
	// removed 20261103T090000Z
	// removed 20261102T090000Z
	// removed 20261101T170000Z
}
