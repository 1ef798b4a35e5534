package backuphttp

import (
	"net/http"
	"time"

	"github.com/atocore/backup"
)

// Config says what a Handler allows and where its limits are. The zero value
// allows what destroys nothing (list, create, validate, drill, export, import), and
// has useful limits.
type Config struct {
	// AllowRestore, AllowRemove, AllowProtect and AllowPrune allow the route of that
	// name. Each is off unless it is set.
	AllowRestore, AllowRemove, AllowProtect, AllowPrune bool

	// Keep is the retention of a prune whose request has no rules. If it has no
	// rules either, such a prune is an error. DryRun is ignored; the request says it.
	Keep backup.Retention

	// MaxAge and MaxUnverified are how old the newest snapshot, and the newest one
	// that was found valid, may be before the page says that something is wrong, for
	// the latter also if there is none. If they are 0, age alone is no fault.
	MaxAge, MaxUnverified time.Duration

	// DrillDir is the directory in which a drill makes its scratch directory, with
	// space for a copy of the snapshot. If it is empty, that is made in the directory
	// for temporary files, which is often in memory.
	DrillDir string

	// MaxImport bounds the bytes of an import. If it is 0, the bound is 1 TiB; if
	// it is negative, imports are not allowed.
	MaxImport int64

	// BodyTimeout bounds how long a client may take to send 64 KiB of a body, or its
	// end, and to take a piece of the answer. If it is 0, it is a minute.
	BodyTimeout time.Duration

	// OperationTimeout bounds each operation. If it is 0, it is a day.
	OperationTimeout time.Duration

	// MaxOperations bounds how many operations run at once. If it is 0, it is 16.
	MaxOperations int

	// MaxEvents bounds how many clients follow the events. If it is 0, it is 256.
	MaxEvents int

	// CrossOrigin decides which requests of browsers come from another site, so that
	// a host can trust other origins. If it is nil, none is trusted.
	CrossOrigin *http.CrossOriginProtection
}

// The limits of a zero Config, and those that cannot be chosen.
const (
	defaultMaxImport        = 1 << 40
	defaultBodyTimeout      = time.Minute
	defaultOperationTimeout = 24 * time.Hour
	defaultMaxOperations    = 16
	defaultMaxEvents        = 256

	maxBody      = 64 << 10 // of JSON
	bodyPiece    = 64 << 10 // must come within BodyTimeout
	maxEnded     = 64       // operations that are remembered
	maxEndedSize = 4 << 20  // of their results
	maxBrief     = 32 << 10 // of a result in an event or in the list of operations
)

// withDefaults returns c with every limit filled in.
func (c Config) withDefaults() Config {
	if c.MaxImport == 0 {
		c.MaxImport = defaultMaxImport
	}
	if c.BodyTimeout <= 0 {
		c.BodyTimeout = defaultBodyTimeout
	}
	if c.OperationTimeout <= 0 {
		c.OperationTimeout = defaultOperationTimeout
	}
	if c.MaxOperations <= 0 {
		c.MaxOperations = defaultMaxOperations
	}
	if c.MaxEvents <= 0 {
		c.MaxEvents = defaultMaxEvents
	}
	if c.CrossOrigin == nil {
		c.CrossOrigin = http.NewCrossOriginProtection()
	}
	return c
}
