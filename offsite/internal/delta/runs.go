package delta

// A run is a piece of a version that is in one place. It ends where the next one
// begins. It has its source in the upper 16 bits of place, and the offset there
// in the others, since there may be millions of runs.
type run struct {
	at    int64
	place uint64
}

const placeBits = 48

func makeRun(at int64, source int, offset int64) run {
	return run{at, uint64(source)<<placeBits | uint64(offset)}
}

func (r run) source() int   { return int(r.place >> placeBits) }
func (r run) offset() int64 { return int64(r.place & (1<<placeBits - 1)) }

// runList is a list of runs. It grows in chunks, because a slice of millions that
// grows takes its memory several times.
type runList struct {
	chunks [][]run
	n      int
}

const chunkRuns = 1 << 12

func (l *runList) at(i int) *run { return &l.chunks[i/chunkRuns][i%chunkRuns] }

func (l *runList) append(r run) {
	if l.n%chunkRuns == 0 {
		l.chunks = append(l.chunks, nil)
	}
	last := &l.chunks[len(l.chunks)-1]
	*last = append(*last, r)
	l.n++
}
