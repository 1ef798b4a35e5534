package s3server

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// attribute is where Swift's object server keeps the metadata of an object: a
// pickle of protocol 2 (swift/obj/diskfile.py), in which each text follows its
// length, 4 bytes little-endian.
const attribute = "user.swift.metadata"

// haveAttributes returns an error if files in dir can have no extended attributes.
func haveAttributes(dir string) error { return syscall.Setxattr(dir, "user.s3server", []byte("1"), 0) }

// Objects returns the files in which the server keeps the objects of a bucket, by
// key. Their content is that of the objects, so a test can damage or lose these.
func (s *Server) Objects(bucket string) (map[string]string, error) {
	objects := make(map[string]string)
	prefix := []byte("/AUTH_test/" + bucket + "/")
	err := filepath.WalkDir(filepath.Join(s.dir, "devices"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".data" {
			return err
		}
		value := make([]byte, 64<<10) // the most that Linux allows
		n, err := syscall.Getxattr(path, attribute, value)
		if err != nil {
			return fmt.Errorf("read attribute of %s: %w", path, err)
		}
		value = value[:n]
		at := bytes.Index(value, prefix)
		if at < 4 {
			return nil
		}
		size := binary.LittleEndian.Uint32(value[at-4:])
		if uint64(size) > uint64(len(value)-at) || int(size) < len(prefix) {
			return fmt.Errorf("attribute of %s: unknown form", path)
		}
		objects[string(value[at+len(prefix):at+int(size)])] = path
		return nil
	})
	return objects, err
}
