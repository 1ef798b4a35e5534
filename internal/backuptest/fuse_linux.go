package backuptest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// FuseRole is the role of the server of [MountFuse]. A test binary that mounts
// has it in its Roles, with [ServeFuse].
const FuseRole = "fuse"

// MountFuse shows the directory source at target by a FUSE file system of the
// tests' own, until the test ends. Without faults it behaves as any. Each fault
// makes it worse:
//
//	CALL=ERRNO     the call fails: "chmod=ENOSYS", "utimens=EPERM", "link=EPERM", "statfs=ENOSYS", "fsync=EIO" (of a file)
//	statfs=zeros   it reports no sizes at all
//	statfs=nofree  it reports many inodes and none of them free
//	statfs=nobytes it reports no blocks, and none free
//	hide           a file that is removed while it is open stays under another
//	               name until it is closed, as with libfuse
//
// The server is a process of its own: the garbage collector of a process that
// waits for a page of its own file system would wait for itself.
func MountFuse(t *testing.T, source, target string, faults ...string) {
	t.Helper()
	server := Start(t, FuseRole, append([]string{source, target}, faults...)...)
	if answer := server.Hear(); answer != "mounted" {
		t.Skip(answer)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != unix.EINVAL && err != unix.ENOENT {
			require.NoError(t, err)
		}
	})
}

// ServeFuse is the server of [MountFuse]. It ends when its file system is
// unmounted.
func ServeFuse(p *Parent, args []string) error {
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		p.Say(fmt.Sprintf("no FUSE: %v", err))
		return nil
	}
	s := &fuseServer{fd: fd, nodes: map[uint64]*fuseNode{1: {path: args[0]}}, next: 1, errs: map[string]unix.Errno{}}
	for _, fault := range args[2:] {
		call, what, _ := strings.Cut(fault, "=")
		switch {
		case call == "hide":
			s.hide = true
		case call == "statfs" && !strings.HasPrefix(what, "E"):
			s.statfs = what
		default:
			s.errs[call] = errnoOf(what)
		}
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions", fd)
	if err := unix.Mount("backuptest", args[1], "fuse.backuptest", 0, options); err != nil {
		p.Say(fmt.Sprintf("cannot mount here: %v", err))
		return nil
	}
	p.Say("mounted")
	return s.serve()
}

func errnoOf(name string) unix.Errno {
	for _, errno := range []unix.Errno{unix.EPERM, unix.ENOSYS, unix.EINVAL, unix.EIO} {
		if unix.ErrnoName(errno) == name {
			return errno
		}
	}
	if name == "EOPNOTSUPP" { // ErrnoName knows its other name
		return unix.EOPNOTSUPP
	}
	panic("no error is called " + name)
}

// A fuseServer passes the calls of a FUSE file system on to a directory
// (Documentation/filesystems/fuse, include/uapi/linux/fuse.h). It works by
// paths, like the most common servers, and handles one request at a time.
type fuseServer struct {
	fd     int
	nodes  map[uint64]*fuseNode
	next   uint64
	errs   map[string]unix.Errno
	statfs string
	hide   bool
	hidden int
}

type fuseNode struct {
	path    string // empty when removed
	open    []int  // descriptors
	removed bool   // it goes when it is closed
}

// The structures of the protocol.
type (
	fuseIn struct {
		Len, Op          uint32
		Unique, Node     uint64
		UID, GID, PID, _ uint32
	}
	fuseOut struct {
		Len    uint32
		Error  int32
		Unique uint64
	}
	fuseAttr struct {
		Ino, Size, Blocks, Atime, Mtime, Ctime                                    uint64
		AtimeN, MtimeN, CtimeN, Mode, Links, UID, GID, Rdev, BlockSize, AttrFlags uint32
	}
	fuseEntry struct {
		Node, Generation, EntryValid, AttrValid uint64
		EntryValidN, AttrValidN                 uint32
		Attr                                    fuseAttr
	}
	fuseAttrOut struct {
		Valid     uint64
		ValidN, _ uint32
		Attr      fuseAttr
	}
	fuseSetattr struct {
		Valid, _                                     uint32
		File, Size, LockOwner, Atime, Mtime, Ctime   uint64
		AtimeN, MtimeN, CtimeN, Mode, _, UID, GID, _ uint32
	}
	fuseOpened struct {
		File     uint64
		Flags, _ uint32
	}
	fuseIO struct {
		File, Offset uint64
		Size, _      uint32
		LockOwner    uint64
		Flags, _     uint32
	}
	fuseStatfs struct {
		Blocks, Bfree, Bavail, Files, Ffree uint64
		Bsize, NameLen, Frsize, _           uint32
		_                                   [6]uint32
	}
	fuseInit struct {
		Major, Minor, Readahead, Flags uint32
		Background, Congestion         uint16
		MaxWrite, Gran                 uint32
		_                              [9]uint32
	}
)

func (s *fuseServer) serve() error {
	buf := make([]byte, 1<<20+4096)
	for {
		n, err := unix.Read(s.fd, buf)
		switch err {
		case nil:
		case unix.EINTR, unix.EAGAIN, unix.ENOENT:
			continue
		case unix.ENODEV: // unmounted
			return nil
		default:
			return err
		}
		in := bytes.NewReader(buf[:n])
		var head fuseIn
		if err := binary.Read(in, binary.NativeEndian, &head); err != nil {
			return err
		}
		if head.Op == 2 || head.Op == 42 || head.Op == 36 { // FORGET, BATCH_FORGET, INTERRUPT
			continue
		}
		answer, err := s.handle(&head, in)
		if err := s.answer(head.Unique, answer, err); err != nil {
			return err
		}
	}
}

func (s *fuseServer) answer(unique uint64, answer any, failed error) error {
	var body bytes.Buffer
	out := fuseOut{Unique: unique}
	if failed != nil {
		number := unix.EIO
		errors.As(failed, &number)
		out.Error = -int32(number)
	} else if raw, ok := answer.([]byte); ok {
		body.Write(raw)
	} else if answer != nil {
		if err := binary.Write(&body, binary.NativeEndian, answer); err != nil {
			return err
		}
	}
	out.Len = uint32(16 + body.Len())
	var all bytes.Buffer
	if err := binary.Write(&all, binary.NativeEndian, out); err != nil {
		return err
	}
	all.Write(body.Bytes())
	if _, err := unix.Write(s.fd, all.Bytes()); err != nil && err != unix.ENOENT { // ENOENT: it was interrupted
		return err
	}
	return nil
}

func (s *fuseServer) handle(head *fuseIn, in io.Reader) (any, error) {
	node := s.nodes[head.Node]
	read := func(into any) { _ = binary.Read(in, binary.NativeEndian, into) }
	names := func() []string {
		rest, _ := io.ReadAll(in)
		return strings.Split(string(rest), "\x00")
	}
	var skip [8]byte
	switch head.Op {
	case 26: // INIT: 0xd is ASYNC_READ, ATOMIC_O_TRUNC, BIG_WRITES; no locks, so the kernel has them
		return fuseInit{Major: 7, Minor: 31, Readahead: 1 << 17, Flags: 1 | 1<<3 | 1<<5, MaxWrite: 1 << 17, Gran: 1}, nil
	case 1: // LOOKUP
		return s.entry(node, names()[0])
	case 3: // GETATTR
		attr, err := node.attr()
		return fuseAttrOut{Attr: attr}, err
	case 4: // SETATTR
		var set fuseSetattr
		read(&set)
		if err := s.setattr(node, &set); err != nil {
			return nil, err
		}
		attr, err := node.attr()
		return fuseAttrOut{Attr: attr}, err
	case 9: // MKDIR
		var mode [2]uint32
		read(&mode)
		name := names()[0]
		if err := unix.Mkdir(node.at(name), mode[0]); err != nil {
			return nil, err
		}
		return s.entry(node, name)
	case 10: // UNLINK
		return nil, s.unlink(node.at(names()[0]))
	case 11: // RMDIR
		return nil, unix.Rmdir(node.at(names()[0]))
	case 12, 45: // RENAME, RENAME2
		var parent uint64
		var flags [2]uint32
		read(&parent)
		if head.Op == 45 {
			read(&flags)
		}
		two := names()
		return nil, s.rename(node.at(two[0]), s.nodes[parent].at(two[1]), flags[0])
	case 13: // LINK
		var old uint64
		read(&old)
		name := names()[0]
		if err := s.errs["link"]; err != 0 {
			return nil, err
		}
		if err := unix.Link(s.nodes[old].path, node.at(name)); err != nil {
			return nil, err
		}
		return s.entry(node, name)
	case 14, 27: // OPEN, OPENDIR
		var flags [2]uint32
		read(&flags)
		return node.opened(int(flags[0]) &^ unix.O_NOFOLLOW)
	case 35: // CREATE
		var flags [4]uint32
		read(&flags)
		return s.create(node, names()[0], flags[0], flags[1])
	case 15, 16, 28, 20, 18, 29, 30: // READ, WRITE, READDIR, FSYNC, RELEASE, RELEASEDIR, FSYNCDIR
		return s.useOpen(head, node, in)
	case 17: // STATFS
		return s.statfsOf(node)
	case 25: // FLUSH
		read(&skip)
		return nil, nil
	}
	return nil, unix.ENOSYS
}

func (n *fuseNode) at(name string) string { return filepath.Join(n.path, name) }

func (n *fuseNode) attr() (a fuseAttr, err error) {
	var st unix.Stat_t
	switch {
	case n.path != "":
		err = unix.Lstat(n.path, &st)
	case len(n.open) > 0:
		err = unix.Fstat(n.open[0], &st)
	default:
		err = unix.ENOENT
	}
	return fuseAttr{
		Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks), Mode: st.Mode, Links: uint32(st.Nlink),
		Atime: uint64(st.Atim.Sec), Mtime: uint64(st.Mtim.Sec), Ctime: uint64(st.Ctim.Sec),
		AtimeN: uint32(st.Atim.Nsec), MtimeN: uint32(st.Mtim.Nsec), CtimeN: uint32(st.Ctim.Nsec),
		UID: st.Uid, GID: st.Gid, BlockSize: uint32(st.Blksize),
	}, err
}

// entry looks up a name, which makes it a node.
func (s *fuseServer) entry(parent *fuseNode, name string) (fuseEntry, error) {
	path := parent.at(name)
	found := &fuseNode{path: path}
	attr, err := found.attr()
	if err != nil {
		return fuseEntry{}, err
	}
	id := s.find(path)
	if id == 0 {
		s.next++
		id = s.next
		s.nodes[id] = found
	}
	return fuseEntry{Node: id, Attr: attr}, nil
}

func (s *fuseServer) find(path string) uint64 {
	for id, node := range s.nodes {
		if node.path == path {
			return id
		}
	}
	return 0
}

func (n *fuseNode) opened(flags int) (fuseOpened, error) {
	fd, err := unix.Open(n.path, flags|unix.O_CLOEXEC, 0)
	if err == nil {
		n.open = append(n.open, fd)
	}
	return fuseOpened{File: uint64(fd)}, err
}

func (s *fuseServer) create(parent *fuseNode, name string, flags, mode uint32) (any, error) {
	fd, err := unix.Open(parent.at(name), int(flags)|unix.O_CREAT|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, err
	}
	entry, err := s.entry(parent, name)
	if err != nil {
		return nil, err
	}
	node := s.nodes[entry.Node]
	node.open = append(node.open, fd)
	return struct {
		fuseEntry
		fuseOpened
	}{entry, fuseOpened{File: uint64(fd)}}, nil
}

func (s *fuseServer) setattr(node *fuseNode, set *fuseSetattr) error {
	path := node.path
	if path == "" && len(node.open) > 0 {
		path = fmt.Sprint("/proc/self/fd/", node.open[0])
	}
	if set.Valid&1 != 0 { // FATTR_MODE
		if err := s.errs["chmod"]; err != 0 {
			return err
		}
		if err := unix.Chmod(path, set.Mode&0o7777); err != nil {
			return err
		}
	}
	if set.Valid&6 != 0 { // FATTR_UID, FATTR_GID
		if err := s.errs["chown"]; err != 0 {
			return err
		}
		uid, gid := -1, -1
		if set.Valid&2 != 0 {
			uid = int(set.UID)
		}
		if set.Valid&4 != 0 {
			gid = int(set.GID)
		}
		if err := unix.Lchown(path, uid, gid); err != nil {
			return err
		}
	}
	if set.Valid&8 != 0 { // FATTR_SIZE
		if err := unix.Truncate(path, int64(set.Size)); err != nil {
			return err
		}
	}
	if set.Valid&0x30 == 0 { // FATTR_ATIME, FATTR_MTIME
		return nil
	}
	if err := s.errs["utimens"]; err != 0 {
		return err
	}
	times := []unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
	for i, t := range []struct {
		bit, now uint32
		at       unix.Timespec
	}{{0x10, 0x80, timespec(set.Atime, set.AtimeN)}, {0x20, 0x100, timespec(set.Mtime, set.MtimeN)}} {
		switch {
		case set.Valid&t.now != 0:
			times[i] = unix.Timespec{Nsec: unix.UTIME_NOW}
		case set.Valid&t.bit != 0:
			times[i] = t.at
		}
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, times, 0)
}

func timespec(sec uint64, nsec uint32) unix.Timespec {
	ts, _ := unix.TimeToTimespec(time.Unix(int64(sec), int64(nsec))) // it fails beyond 2038 on a 32-bit system
	return ts
}

// unlink removes a file, or hides it while it is open.
func (s *fuseServer) unlink(path string) error {
	node := s.nodes[s.find(path)]
	if node == nil {
		return unix.Unlink(path)
	}
	if s.hide && len(node.open) > 0 {
		s.hidden++
		hidden := filepath.Join(filepath.Dir(path), fmt.Sprintf(".fuse_hidden%08x", s.hidden))
		if err := unix.Rename(path, hidden); err != nil {
			return err
		}
		node.path, node.removed = hidden, true
		return nil
	}
	if err := unix.Unlink(path); err != nil {
		return err
	}
	node.path = ""
	return nil
}

func (s *fuseServer) rename(from, to string, flags uint32) error {
	if replaced := s.nodes[s.find(to)]; replaced != nil && flags == 0 {
		if s.hide && len(replaced.open) > 0 {
			if err := s.unlink(to); err != nil {
				return err
			}
		} else {
			defer func() {
				if replaced.path == to {
					replaced.path = ""
				}
			}()
		}
	}
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, uint(flags)); err != nil {
		return err
	}
	for id, node := range s.nodes {
		if node.path == to && id != s.find(from) {
			node.path = ""
		}
	}
	for _, node := range s.nodes {
		if rest, below := strings.CutPrefix(node.path, from+"/"); below {
			node.path = to + "/" + rest
		} else if node.path == from {
			node.path = to
		}
	}
	return nil
}

// useOpen does what needs an open file or directory.
func (s *fuseServer) useOpen(head *fuseIn, node *fuseNode, in io.Reader) (any, error) {
	var request fuseIO
	whole, _ := io.ReadAll(in)
	fixed := make([]byte, binary.Size(request)) // the shorter requests begin alike
	data := whole[copy(fixed, whole):]
	_, _ = binary.Decode(fixed, binary.NativeEndian, &request)
	fd := int(request.File)
	switch head.Op {
	case 15: // READ
		buf := make([]byte, request.Size)
		n, err := unix.Pread(fd, buf, int64(request.Offset))
		return buf[:max(n, 0)], err
	case 16: // WRITE
		n, err := unix.Pwrite(fd, data[:min(len(data), int(request.Size))], int64(request.Offset))
		return [2]uint32{uint32(max(n, 0))}, err
	case 28: // READDIR
		return readFuseDir(node.path, request.Offset, request.Size)
	case 20, 30: // FSYNC, FSYNCDIR
		if err := s.errs["fsync"]; err != 0 && head.Op == 20 {
			return nil, err
		}
		return nil, unix.Fsync(fd)
	}
	unix.Close(fd) // RELEASE, RELEASEDIR
	for i, open := range node.open {
		if open == fd {
			node.open = append(node.open[:i], node.open[i+1:]...)
			break
		}
	}
	if node.removed && len(node.open) == 0 {
		_ = unix.Unlink(node.path)
		node.path, node.removed = "", false
	}
	return nil, nil
}

// readFuseDir returns the entries of a directory from the given one on, without
// their inode numbers, as servers do that know none.
func readFuseDir(path string, from uint64, most uint32) ([]byte, error) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, unix.EIO
	}
	var out []byte
	for i := from; i < uint64(len(entries)); i++ {
		name := entries[i].Name()
		kind := uint32(unix.DT_REG)
		switch {
		case entries[i].IsDir():
			kind = unix.DT_DIR
		case entries[i].Type()&os.ModeSymlink != 0:
			kind = unix.DT_LNK
		case !entries[i].Type().IsRegular():
			kind = unix.DT_UNKNOWN
		}
		size := (24 + len(name) + 7) / 8 * 8
		if len(out)+size > int(most) {
			break
		}
		entry := binary.NativeEndian.AppendUint64(nil, 0xffffffff) // FUSE_UNKNOWN_INO of libfuse
		entry = binary.NativeEndian.AppendUint64(entry, i+1)
		entry = binary.NativeEndian.AppendUint32(entry, uint32(len(name)))
		entry = binary.NativeEndian.AppendUint32(entry, kind)
		entry = append(entry, name...)
		out = append(out, append(entry, make([]byte, size-len(entry))...)...)
	}
	return out, nil
}

func (s *fuseServer) statfsOf(node *fuseNode) (any, error) {
	if err := s.errs["statfs"]; err != 0 {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(node.path, &st); err != nil {
		return nil, err
	}
	answer := fuseStatfs{
		Blocks: st.Blocks, Bfree: st.Bfree, Bavail: st.Bavail, Files: st.Files, Ffree: st.Ffree,
		Bsize: uint32(st.Bsize), NameLen: 255, Frsize: uint32(st.Frsize),
	}
	switch s.statfs {
	case "zeros":
		answer = fuseStatfs{}
	case "nofree":
		answer.Files, answer.Ffree = 1_000_000_000, 0
	case "nobytes":
		answer.Blocks, answer.Bfree, answer.Bavail = 0, 0, 0
	}
	return answer, nil
}
