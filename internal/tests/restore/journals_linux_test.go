package restore

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// A journal that names other paths than the options is not acted on: files are
// moved only where the caller wants them moved. The pointer in the backup
// directory leads to it all the same.
func TestJournalOfOtherPaths(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	cutOff(t, s, stamp, "verify")
	for name, change := range map[string]func(opts *backup.Options){
		"a database elsewhere":             func(opts *backup.Options) { opts.DatabasePath = filepath.Join(s.Dir, "other.db") },
		"a database in the same directory": func(opts *backup.Options) { opts.DatabasePath = filepath.Join(s.Dir, "live", "other.db") },
		"another registry":                 func(opts *backup.Options) { opts.RegistryPath = filepath.Join(s.Dir, "other.json") },
		"no registry":                      func(opts *backup.Options) { opts.RegistryPath = "" },
		"another Chroma directory":         func(opts *backup.Options) { opts.ChromaPath = filepath.Join(s.Dir, "other") },
		"nothing there": func(opts *backup.Options) {
			opts.DatabasePath = filepath.Join(s.Dir, "new", "other.db")
			opts.RegistryPath = filepath.Join(s.Dir, "new", "other.json")
			opts.ChromaPath = filepath.Join(s.Dir, "new", "chroma")
		},
	} {
		other := s.Options
		change(&other)
		if other.DatabasePath != s.DatabasePath && name != "nothing there" {
			backuptest.MakeDatabase(t, other.DatabasePath)
		}
		before := backuptest.ReadTree(t, s.Dir)
		_, err := backup.RestoreRuntimeBackup(context.Background(), other, stamp)
		require.ErrorIs(t, err, backup.ErrRestoreUnfinished, name)
		require.ErrorContains(t, err, s.Dir, name)
		require.NotContains(t, err.Error(), "finished (", name)
		require.Equal(t, before, backuptest.ReadTree(t, s.Dir), name)
	}

	r := s.Restore(stamp)
	require.Equal(t, "finished", r.Recovered)
	require.Equal(t, "new", generationOf(t, s.Options))
}

// Every single bit of a journal is flipped, wherever the restore was cut off. Then
// it is no journal any more, nothing is inferred from it, and nothing is touched.
func TestEveryBitOfAJournal(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := newTemplate(t)
	bits := 0
	for _, line := range journalLines {
		call := "pwrite64"
		if line == "cleaned db" { // no line follows
			call = "unlinkat"
		}
		s := tracer.cutAfter(t, call, line, stamp, fresh)
		for _, file := range []string{journalOf(s), pointerOf(s)} {
			whole, err := os.ReadFile(file)
			require.NoError(t, err)
			before := backuptest.ReadTree(t, s.Dir)
			delete(before, relative(t, s, file))
			first := 0
			if *killStride > 1 && line != "{" { // the lines before were flipped already
				first = 1 + bytes.LastIndexByte(bytes.TrimSuffix(whole, []byte("\n")), '\n')
				if first == 0 {
					first = len(whole) - 1
				}
			}
			for bit := 8 * first; bit < 8*len(whole); bit++ {
				if *killStride > 1 && bit%5 != 0 && bit/8 < len(whole)-1 {
					continue
				}
				bits++
				flipped := bytes.Clone(whole)
				flipped[bit/8] ^= 1 << (bit % 8)
				require.NoError(t, os.WriteFile(file, flipped, 0o600))
				other := *s
				if file == pointerOf(s) { // the journal beside the database is found without it
					other.Options = optionsIn(filepath.Join(s.Dir, "elsewhere"))
					other.BackupDir = s.BackupDir
				}
				r, err := recovery(&other)
				require.ErrorIs(t, err, backup.ErrRestoreUnfinished, "bit %d of byte %d after %q", bit%8, bit/8, line)
				require.ErrorContains(t, err, file)
				require.Nil(t, r)
				if bit%101 == 0 || bit/8 == len(whole)-1 {
					require.ErrorIs(t, callByName(other.Options, "create", ""), backup.ErrRestoreUnfinished)
					require.ErrorIs(t, callByName(other.Options, "list", ""), backup.ErrRestoreUnfinished)
				}
				data, err := os.ReadFile(file)
				require.NoError(t, err)
				require.Equal(t, flipped, data)
			}
			after := backuptest.ReadTree(t, s.Dir)
			delete(after, relative(t, s, file))
			require.Equal(t, before, after, "after %q", line)
			require.NoError(t, os.WriteFile(file, whole, 0o600))
		}
		recovered(s)
		s.RequireClean()
	}
	t.Logf("%d bits", bits)
}

func relative(t *testing.T, s *backuptest.Store, path string) string {
	t.Helper()
	name, err := filepath.Rel(s.Dir, path)
	require.NoError(t, err)
	return filepath.ToSlash(name)
}

// A journal that the disk cannot read is not one in which nothing was begun.
func TestJournalThatTheDiskCannotRead(t *testing.T) {
	t.Parallel()
	tracer := needStrace(t)
	stamp, fresh := newTemplate(t)
	s := tracer.cutAfter(t, "pwrite64", "out db", stamp, fresh)
	before := backuptest.ReadTree(t, s.Dir)
	tracer.path = journalOf(s)
	text, hit, err := tracer.run(t, "pread64", "error=EIO", s.Dir, "none")
	require.True(t, hit)
	require.Error(t, err)
	require.Contains(t, text, backup.ErrRestoreUnfinished.Error())
	require.Contains(t, text, "input/output error")
	require.Equal(t, before, backuptest.ReadTree(t, s.Dir))
	require.Equal(t, "old", recovered(s))
}

// A store that shares its backup directory with another one is restored, while a
// restore of the other one is unfinished. The pointer to the other's journal must
// not be replaced.
func TestPointersOfTwoStores(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	empty := &backuptest.Store{T: t, Dir: t.TempDir()}
	empty.Options = optionsIn(empty.Dir)
	empty.BackupDir = s.BackupDir
	cutOff(t, empty, stamp, "verify") // which leaves no pointer
	cutOff(t, s, stamp, "verify")
	pointer, err := os.ReadFile(pointerOf(s))
	require.NoError(t, err)
	r, err := backup.RestoreRuntimeBackup(context.Background(), empty.Options, stamp)
	require.ErrorIs(t, err, backup.ErrRestoreUnfinished)
	require.ErrorContains(t, err, s.DatabasePath)
	require.Equal(t, "finished", r.Recovered, "its own")
	now, err := os.ReadFile(pointerOf(s))
	require.NoError(t, err)
	require.Equal(t, pointer, now)
	require.Equal(t, "new", recovered(s))
	empty.Restore(stamp)
}

// A journal that cannot be read as one is reported by every call and left alone,
// beside the database as well as in the backup directory, where a pointer should
// be.
func TestUnreadableJournals(t *testing.T) {
	t.Parallel()
	texts := map[string]string{
		"rubbish":     "rubbish\n",
		"no object":   "[]\n",
		"no fields":   "{}\n",
		"binary":      "\x00\x01\n",
		"large":       string(make([]byte, 1<<20)),
		"first form":  `{"version":1,"id":"0123456789abcdef","stamp":"x","db_path":"/x","registry_path":"","chroma_path":"","had_db":true,"had_registry":false,"had_chroma":false,"set_aside":false,"chroma_mode":0,"chroma_mtime_ns":0}` + "\n",
		"a directory": "",
		"a link":      "",
	}
	for _, place := range []func(*backuptest.Store) string{journalOf, pointerOf} {
		for name, text := range texts {
			s, stamp := newStore(t)
			journal := place(s)
			switch name {
			case "a directory":
				require.NoError(t, os.Mkdir(journal, 0o700))
			case "a link":
				require.NoError(t, os.Symlink("/dev/null", journal))
			default:
				backuptest.Write(t, journal, text)
			}
			before := backuptest.ReadTree(t, s.Dir)
			for _, call := range []string{"create", "list", "validate", "restore", "prune"} {
				err := callByName(s.Options, call, stamp)
				require.ErrorIs(t, err, backup.ErrRestoreUnfinished, "%s: %s", name, call)
				require.ErrorContains(t, err, journal, "%s: %s", name, call)
			}
			require.Equal(t, before, backuptest.ReadTree(t, s.Dir))
			require.NoError(t, os.Remove(journal))
		}
	}
	// Nothing is begun before the first line is whole.
	for _, place := range []func(*backuptest.Store) string{journalOf, pointerOf} {
		for _, text := range []string{"", `{"version":2,"id":`} {
			s, stamp := newStore(t)
			backuptest.Write(t, place(s), text)
			r := s.Restore(stamp)
			require.Empty(t, r.Recovered)
			require.Equal(t, "new", generationOf(t, s.Options))
		}
	}
}

// A journal that somebody has written says of a restore that it is done, and
// names a backup directory whose snapshot has a Chroma directory that anybody may
// write to. The live one does not become like that.
func TestForgedJournalChangesNoMode(t *testing.T) {
	t.Parallel()
	s, stamp := newStore(t)
	require.NoError(t, os.Chmod(s.ChromaPath, 0o700))
	forged := filepath.Join(s.Dir, "forged")
	require.NoError(t, os.MkdirAll(filepath.Join(forged, "snapshots", stamp, "chroma"), 0o755))
	require.NoError(t, os.Chmod(filepath.Join(forged, "snapshots", stamp, "chroma"), 0o777|fs.ModeSticky))
	header := fmt.Sprintf(`{"version":2,"id":"0123456789abcdef","started_at":"2026-11-24T12:00:00+00:00","stamp":%q,"backup_dir":%q,"db_path":%q,`+
		`"registry_path":%q,"chroma_path":%q,"had_db":true,"had_registry":true,"had_chroma":true,"db_in_place":false,"registry_in_place":false}`,
		stamp, forged, s.DatabasePath, s.RegistryPath, s.ChromaPath)
	var text, summed string
	for _, line := range append([]string{header, "keep-old"}, journalLines[2:]...) {
		summed += line + "\n"
		text += fmt.Sprintf("%s %08x\n", line, crc32.Checksum([]byte(summed), crc32.MakeTable(crc32.Castagnoli)))
	}
	backuptest.Write(t, journalOf(s), text)
	r, err := recovery(s)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.Equal(t, "finished", r.Recovered)
	info, err := os.Stat(s.ChromaPath)
	require.NoError(t, err)
	require.Equal(t, fs.ModeDir|0o700, info.Mode())
	require.Equal(t, "old", generationOf(t, s.Options))
}
