package sqlitedb

import (
	"sync"

	"github.com/atocore/backup/internal/fsat"
)

// sources counts the Sources of this process by the file that they have open, so
// that their descriptors are not taken for the host's.
var sources struct {
	sync.Mutex
	of map[fsat.ID]int
}

func countSource(id fsat.ID, by int) {
	sources.Lock()
	defer sources.Unlock()
	if sources.of == nil {
		sources.of = make(map[fsat.ID]int)
	}
	if sources.of[id] += by; sources.of[id] == 0 {
		delete(sources.of, id)
	}
}

// hasSource reports whether there is a Source of the file.
func hasSource(id fsat.ID) bool {
	sources.Lock()
	defer sources.Unlock()
	return sources.of[id] > 0
}
