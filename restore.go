package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
)

// RestoreResult tells what a restore did.
type RestoreResult struct {
	// Stamp is the snapshot that was restored.
	Stamp string
	// SafetyStamp is the snapshot that was taken of the store before; empty if
	// there was nothing, or if SetAside has it.
	SafetyStamp string
	// SetAside are the directories into which the old parts of a store were
	// moved that could not be snapshotted. They are yours to remove.
	SetAside []string
	// DatabasePath, RegistryPath and ChromaPath are where the parts were put;
	// empty for what the snapshot does not have, which was left alone.
	DatabasePath, RegistryPath, ChromaPath string
	// Files and Bytes count what was restored.
	Files, Bytes int64
	// Recovered tells of an earlier restore that had been cut off: "finished"
	// or "undone" before this one began. It is empty if there was none.
	Recovered string
}

// MarshalJSON gives the result as the command prints it.
func (r RestoreResult) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	fmt.Fprintf(&b, `{"stamp":%s,"safety_stamp":%s,"set_aside":[`, quoteASCII(r.Stamp), quoteASCII(r.SafetyStamp))
	for i, path := range r.SetAside {
		fmt.Fprintf(&b, `%s%s`, comma(i), quoteASCII(path))
	}
	fmt.Fprintf(&b, `],"db_path":%s,"registry_path":%s,"chroma_path":%s,"files":%d,"bytes":%d,"recovered":%s}`,
		quoteASCII(r.DatabasePath), quoteASCII(r.RegistryPath), quoteASCII(r.ChromaPath), r.Files, r.Bytes, quoteASCII(r.Recovered))
	return b.Bytes(), nil
}

// RestoreRuntimeBackup puts the snapshot named stamp back to the paths in opts,
// each part that it has: database, registry and Chroma directory. What it lacks
// is left alone. The store is wholly old or wholly new afterwards.
func RestoreRuntimeBackup(ctx context.Context, opts Options, stamp string) (*RestoreResult, error) {
	return nil, errors.New("not yet")
}
