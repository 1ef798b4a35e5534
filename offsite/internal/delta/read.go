package delta

// A reader reads the content of a version from beginning to end.
type reader struct {
	v       *Version
	at      int64
	run     int      // the one that contains at
	windows []window // of each source
}

// A window is what was read of a source for a short piece. The next one is
// mostly just behind it, so it saves a call for each.
type window struct {
	data []byte
	at   int64
}

func (v *Version) reader() *reader {
	return &reader{v: v, windows: make([]window, len(v.sources))}
}

// read fills buf, or as much of it as is left of the content, and returns how much.
func (r *reader) read(buf []byte) (n int, err error) {
	buf = buf[:min(int64(len(buf)), r.v.size-r.at)]
	for n < len(buf) {
		run := r.v.runs.at(r.run)
		piece := buf[n:min(int64(len(buf)), int64(n)+r.v.end(r.run)-r.at)]
		if err := r.fill(piece, run.source(), run.offset()+r.at-run.at); err != nil {
			return n, err
		}
		n += len(piece)
		if r.at += int64(len(piece)); r.at == r.v.end(r.run) {
			r.run++
		}
	}
	return n, nil
}

// fill fills piece from a source.
func (r *reader) fill(piece []byte, index int, offset int64) error {
	source, w := r.v.sources[index], &r.windows[index]
	if inside := offset - w.at; inside >= 0 && inside <= int64(len(w.data)-len(piece)) {
		copy(piece, w.data[inside:])
		return nil
	}
	if len(piece) >= windowSize {
		return readAt(source.file, piece, offset)
	}
	if w.data == nil {
		w.data = make([]byte, windowSize)
	}
	w.at, w.data = offset, w.data[:min(windowSize, source.size-offset)]
	if err := readAt(source.file, w.data, offset); err != nil {
		w.data = w.data[:0]
		return err
	}
	copy(piece, w.data)
	return nil
}
