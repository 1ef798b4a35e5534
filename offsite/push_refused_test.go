package offsite_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
	"github.com/atocore/backup/offsite"
)

// A damaged snapshot is refused, and nothing is stored.
func TestPushRefusesDamage(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	for name, c := range map[string]struct {
		damage func(s *backuptest.Snapshot)
		code   backup.Code
		path   string
	}{
		"a changed small file":     {func(s *backuptest.Snapshot) { s.Flip("chroma/small", 3) }, backup.CodeFileChanged, ""},
		"a changed large file":     {func(s *backuptest.Snapshot) { s.Flip("chroma/large", 3) }, backup.CodeFileChanged, ""},
		"a shorter file":           {func(s *backuptest.Snapshot) { s.Write("chroma/small", []byte("x")) }, backup.CodeFileChanged, ""},
		"a missing file":           {func(s *backuptest.Snapshot) { s.Remove("chroma/small") }, backup.CodeFileMissing, "chroma/small"},
		"another file":             {func(s *backuptest.Snapshot) { s.Add("chroma/new", []byte("x")) }, backup.CodeFileUnknown, "chroma/new"},
		"a file in config":         {func(s *backuptest.Snapshot) { s.Add("config/new", []byte("x")) }, backup.CodeFileUnknown, "config/new"},
		"a link":                   {func(s *backuptest.Snapshot) { s.Remove("chroma/small"); s.Link("chroma/small", "large") }, backup.CodeFileNotRegular, ""},
		"no SHA256SUMS":            {func(s *backuptest.Snapshot) { s.Remove("SHA256SUMS") }, backup.CodeManifestMissing, ""},
		"a malformed SHA256SUMS":   {func(s *backuptest.Snapshot) { s.Write("SHA256SUMS", []byte("x\n")) }, backup.CodeManifestMalformed, ""},
		"an empty SHA256SUMS":      {func(s *backuptest.Snapshot) { s.Write("SHA256SUMS", nil) }, backup.CodeManifestMalformed, ""},
		"no metadata":              {func(s *backuptest.Snapshot) { s.Remove("backup-metadata.json") }, backup.CodeMetadataMissing, ""},
		"other metadata":           {func(s *backuptest.Snapshot) { s.Set(map[string]any{"vector_store_note": "x"}) }, backup.CodeFileChanged, ""},
		"one of the Python module": {func(s *backuptest.Snapshot) { s.MakePython() }, backup.CodeMetadataShape, ""},
		"another stamp": {func(s *backuptest.Snapshot) {
			s.Set(map[string]any{"stamp": "20200101T000000Z"})
			s.Reseal()
		}, backup.CodeMetadataShape, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h.writeFile("small", 1000) // what was stored by the push before is not read again
			h.writeFile("large", mib)
			s := h.CreateSnapshot()
			c.damage(s)
			_, err := r.Push(context.Background(), h.Options, s.Stamp)
			require.ErrorIs(t, err, backup.ErrInvalidBackup)
			invalid := new(backup.InvalidBackupError)
			require.ErrorAs(t, err, &invalid)
			require.Equal(t, c.code, invalid.Report.Problems[0].Code, err.Error())
			if c.code == backup.CodeFileUnknown || c.code == backup.CodeFileMissing {
				require.Equal(t, c.path, invalid.Report.Problems[0].Path)
			}
		})
	}
	require.Empty(t, stampsIn(t, r))
}

// A delta is made of a file that is what SHA256SUMS says, or not at all.
func TestPushRefusesDamageOfWhatChanged(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, 2*mib)
	h.push(r, h.Create().Stamp)
	h.change(large, 0, 10)
	s := h.CreateSnapshot()
	s.Flip("chroma/"+large, mib)
	_, err := r.Push(context.Background(), h.Options, s.Stamp)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.Len(t, stampsIn(t, r), 1)
	s.Flip("chroma/"+large, mib)
	h.push(r, s.Stamp)
	h.pull(r, s.Stamp)
}

// A file with the line of the last push is not read. The copy has what the line
// says, whatever became of the file.
func TestPushDoesNotReadWhatIsThere(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	h.writeFile(large, 2*mib)
	h.writeFile("small", 1000)
	intact := h.Create().Stamp
	h.push(r, intact)
	s := h.CreateSnapshot()
	s.Flip("chroma/"+large, mib)
	s.Flip("chroma/small", 1)
	h.push(r, s.Stamp)
	opts := backup.Options{BackupDir: t.TempDir()}
	_, err := r.Pull(context.Background(), opts, s.Stamp) // which validates it
	require.NoError(t, err)
	for _, name := range []string{large, "small"} {
		path := filepath.Join(opts.BackupDir, "snapshots", s.Stamp, "chroma", name)
		require.Equal(t, sumOf(t, h.SnapshotPath(intact, "chroma", name)), sumOf(t, path))
	}
}

func TestPushRefusesOtherThings(t *testing.T) {
	t.Parallel()
	r, h := newRepository(t), newHost(t)
	stamp := h.Create().Stamp
	_, err := r.Push(context.Background(), h.Options, "20200101T000000Z")
	require.ErrorIs(t, err, backup.ErrNoSnapshot)
	for _, odd := range []string{"", "..", "../x", "a,b", "a\nb"} {
		_, err := r.Push(context.Background(), h.Options, odd)
		require.ErrorIs(t, err, backup.ErrNoSnapshot, odd)
	}
	_, err = r.Push(context.Background(), backup.Options{}, stamp)
	require.ErrorIs(t, err, backup.ErrInvalidOptions)
	require.NoFileExists(t, ".atocore-offsite")

	other := *r
	other.Program = filepath.Join(t.TempDir(), "restic")
	_, err = other.Push(context.Background(), h.Options, stamp)
	require.ErrorIs(t, err, offsite.ErrNoProgram)
	require.NotContains(t, err.Error(), "hold backup")

	// Opening and closing the live database would drop the locks of the host.
	s := h.Snapshot(stamp)
	s.Add("chroma/live", nil)
	h.Must(os.Remove(s.Path("chroma/live")), os.Link(h.DatabasePath, s.Path("chroma/live")))
	s.Reseal()
	_, err = r.Push(context.Background(), h.Options, stamp)
	require.ErrorIs(t, err, backup.ErrInvalidBackup)
	require.ErrorContains(t, err, string(backup.CodeFileNotRegular))
	require.Empty(t, stampsIn(t, r))
}
