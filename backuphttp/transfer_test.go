package backuphttp_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

const tarType = "application/x-tar"

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

// An export is the library's archive, with its length, or with its digest for those
// who read trailers.
func TestExport(t *testing.T) {
	s := newSite(t, everything)
	for i, name := range backuptest.AwkwardNames(t) {
		require.NoError(t, os.WriteFile(s.InChroma(name), make([]byte, i*300), 0o600))
	}
	long := filepath.Join(s.ChromaPath, strings.Repeat("d", 200), strings.Repeat("e", 200))
	require.NoError(t, os.MkdirAll(filepath.Join(long, "empty"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(long, strings.Repeat("ü", 100)), []byte("x"), 0o600))
	require.NoError(t, os.Chtimes(filepath.Join(long, "empty"), time.Time{}, time.Unix(-5, 17)))
	stamp := s.create()
	want := s.archive(stamp)

	answer := s.ask(asked{method: "GET", path: "/" + stamp + "/export"})
	require.Equal(t, 200, answer.StatusCode, answer.body)
	require.Equal(t, string(want), answer.body)
	require.EqualValues(t, len(want), answer.ContentLength)
	require.Equal(t, tarType, answer.Header.Get("Content-Type"))
	require.Equal(t, "attachment; filename="+stamp+".tar", answer.Header.Get("Content-Disposition"))
	head := s.ask(asked{method: "HEAD", path: "/" + stamp + "/export"})
	require.EqualValues(t, len(want), head.ContentLength)

	answer = s.ask(asked{method: "GET", path: "/" + stamp + "/export", header: map[string]string{"TE": "trailers"}})
	require.Equal(t, string(want), answer.body)
	require.EqualValues(t, -1, answer.ContentLength)
	require.Equal(t, digestOf(want), answer.Trailer.Get("Repr-Digest"))

	// A range is ignored, as RFC 9110 allows.
	answer = s.ask(asked{method: "GET", path: "/" + stamp + "/export", header: map[string]string{"Range": "bytes=0-99"}})
	require.Equal(t, 200, answer.StatusCode)
	require.Equal(t, string(want), answer.body)

	// A snapshot that was renamed, to a name that a header must quote.
	renamed := `before "the" müde;one`
	require.NoError(t, os.Rename(s.SnapshotPath(stamp), s.SnapshotPath(renamed)))
	answer = s.ask(asked{method: "GET", path: "/before%20%22the%22%20m%C3%BCde;one/export"})
	require.Equal(t, 200, answer.StatusCode, answer.body)
	require.Equal(t, string(want), answer.body)
	require.Equal(t, "attachment; filename*=utf-8''before%20%22the%22%20m%C3%BCde%3Bone.tar", answer.Header.Get("Content-Disposition"))

	s.fails(404, "no_snapshot", asked{method: "GET", path: "/nothing/export"})
}

// HTTP/2 has trailers after a body with a length.
func TestExportByHTTP2(t *testing.T) {
	s := newSite(t, everything)
	stamp := s.create()
	s.server.Close()
	s.server = httptest.NewUnstartedServer(http.StripPrefix(mountedAt, s.h))
	s.server.EnableHTTP2 = true
	s.server.StartTLS()
	request, err := http.NewRequest("GET", s.server.URL+mountedAt+"/"+stamp+"/export", nil)
	require.NoError(t, err)
	request.Header.Set("TE", "trailers")
	response, err := s.server.Client().Do(request)
	require.NoError(t, err)
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	require.Equal(t, 2, response.ProtoMajor)
	require.EqualValues(t, len(data), response.ContentLength)
	require.Equal(t, digestOf(data), response.Trailer.Get("Repr-Digest"))
	require.Equal(t, s.archive(stamp), data)
}

// An export that fails is a problem, or if something was sent already, an answer
// that is cut off, so that nobody takes it for the whole.
func TestExportOfADamagedSnapshot(t *testing.T) {
	for name, header := range map[string]map[string]string{"with its length": nil, "chunked": {"TE": "trailers"}} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, everything)
			snapshot := s.CreateSnapshot()
			snapshot.Flip("db/atocore.db", 5000)
			response := s.open(asked{method: "GET", path: "/" + snapshot.Stamp + "/export", header: header})
			require.Equal(t, 200, response.StatusCode)
			_, err := io.Copy(io.Discard, response.Body)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			require.NoError(t, response.Body.Close())
			require.Empty(t, response.Trailer.Get("Repr-Digest"))
			var operations []operation
			s.must(200, "GET", "/operations", "", &operations)
			require.Equal(t, "failed", operations[0].State)
			require.Equal(t, "invalid_backup", operations[0].Problem.Code)

			snapshot.Remove("config/project-registry.json") // which is found before anything is sent
			answer := s.ask(asked{method: "GET", path: "/" + snapshot.Stamp + "/export", header: header})
			p := requireProblem(t, answer, 422, "invalid_backup")
			require.Contains(t, p.Detail, "project-registry.json")
			require.Empty(t, answer.Header.Get("Content-Disposition"))
			require.NotNil(t, p.Report)
		})
	}
}

// An export to a client that does not read can be cancelled, and ends by itself.
func TestExportToASlowClient(t *testing.T) {
	for name, timeout := range map[string]time.Duration{"cancelled": time.Hour, "by itself": 100 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			cfg := everything
			cfg.BodyTimeout = timeout
			s := newSite(t, cfg)
			require.NoError(t, os.WriteFile(s.InChroma("large"), make([]byte, 8<<20), 0o600))
			stamp := s.create()
			s.smallBuffers()
			s.dial("GET " + mountedAt + "/" + stamp + "/export HTTP/1.1\r\nHost: x\r\n\r\n")
			events := s.follow("")
			op := events.operation()
			require.Equal(t, "export", op.Kind)
			if name == "cancelled" {
				s.must(202, "DELETE", "/operations/"+op.ID, "", nil)
			}
			for op.State == "running" {
				op = events.operation()
			}
			require.Equal(t, map[string]string{"cancelled": "canceled", "by itself": "too_slow"}[name], op.Problem.Code)
		})
	}
}

// upload imports an archive.
func (s *site) upload(data []byte, header map[string]string) got {
	s.t.Helper()
	all := map[string]string{"Content-Type": tarType}
	for name, value := range header {
		all[name] = value
	}
	return s.ask(asked{method: "POST", path: "/import", body: string(data), header: all})
}

// A snapshot that was exported is imported elsewhere, with its digest.
func TestImport(t *testing.T) {
	from := newSite(t, everything)
	stamp := from.create()
	archive := from.archive(stamp)
	for name, header := range map[string]map[string]string{
		"plain":               nil,
		"octets":              {"Content-Type": "application/octet-stream"},
		"digest":              {"Repr-Digest": digestOf(archive)},
		"another digest, too": {"Content-Digest": "sha-512=:AAAA:, " + digestOf(archive) + ";q=1"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSiteOf(t, backuptest.NewBareStore(t), everything)
			answer := s.upload(archive, header)
			require.Equal(t, 201, answer.StatusCode, answer.body)
			var meta backup.Metadata
			require.NoError(t, json.Unmarshal([]byte(answer.body), &meta))
			require.Equal(t, stamp, meta.Stamp)
			require.Equal(t, mountedAt+"/"+stamp, answer.Header.Get("Location"))
			require.Equal(t, archive, s.archive(stamp))

			answer = s.upload(archive, header)
			p := requireProblem(t, answer, 409, "snapshot_exists")
			require.NoError(t, json.Unmarshal(p.Result, &meta), "it is the same one")
			require.Equal(t, mountedAt+"/"+stamp, answer.Header.Get("Location"))
		})
	}
}

// The digest may be in a trailer.
func TestImportWithATrailer(t *testing.T) {
	from := newSite(t, everything)
	archive := from.archive(from.create())
	for digest, status := range map[string]int{digestOf(archive): 201, digestOf(nil): 422} {
		s := newSite(t, everything)
		request, err := http.NewRequest("POST", s.url+"/import", io.MultiReader(bytes.NewReader(archive)))
		require.NoError(t, err)
		request.Header.Set("Content-Type", tarType)
		request.Trailer = http.Header{"Repr-Digest": {digest}}
		response, err := http.DefaultClient.Do(request)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		require.Equal(t, status, response.StatusCode)
	}
}

// edit returns an archive with changed headers.
func edit(t *testing.T, archive []byte, change func(h *tar.Header) (drop bool), more ...*tar.Header) []byte {
	t.Helper()
	var out bytes.Buffer
	r, w := tar.NewReader(bytes.NewReader(archive)), tar.NewWriter(&out)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		data, err := io.ReadAll(r)
		require.NoError(t, err)
		if change(h) {
			continue
		}
		if h.Typeflag != tar.TypeReg {
			data, h.Size = nil, 0
		}
		require.NoError(t, w.WriteHeader(h))
		_, err = w.Write(data)
		require.NoError(t, err)
	}
	for _, h := range more {
		require.NoError(t, w.WriteHeader(h))
	}
	require.NoError(t, w.Close())
	return out.Bytes()
}

// What is no archive is refused, nothing of it is left, and nothing outside of the
// backup directory is touched.
func TestImportOfHostileArchives(t *testing.T) {
	from := newSite(t, everything)
	stamp := from.create()
	archive := from.archive(stamp)
	var bomb bytes.Buffer
	z, err := gzip.NewWriterLevel(&bomb, gzip.BestCompression)
	require.NoError(t, err)
	for range 64 {
		_, err = z.Write(make([]byte, 1<<20))
		require.NoError(t, err)
	}
	require.NoError(t, z.Close())
	none := func(*tar.Header) bool { return false }
	file := func(name string) func(*tar.Header) bool {
		return func(h *tar.Header) bool {
			if strings.HasSuffix(h.Name, "project-registry.json") {
				h.Name = name
			}
			return false
		}
	}
	kind := func(flag byte) func(*tar.Header) bool {
		return func(h *tar.Header) bool {
			if strings.HasSuffix(h.Name, "project-registry.json") {
				h.Typeflag, h.Linkname = flag, "/etc/passwd"
			}
			return false
		}
	}
	type hostile struct {
		data   []byte
		header map[string]string
		status int
		code   string
	}
	cases := map[string]hostile{
		"nothing":                 {nil, nil, 422, "invalid_archive"},
		"text":                    {[]byte("hello"), nil, 422, "invalid_archive"},
		"JSON":                    {[]byte("{}"), map[string]string{"Content-Type": "application/json"}, 415, "media_type"},
		"a form":                  {[]byte("a=b"), map[string]string{"Content-Type": "application/x-www-form-urlencoded"}, 415, "media_type"},
		"a bad type":              {archive, map[string]string{"Content-Type": "/;"}, 415, "media_type"},
		"gzip bomb":               {bomb.Bytes(), nil, 422, "invalid_archive"},
		"gzip bomb, by type":      {bomb.Bytes(), map[string]string{"Content-Type": "application/gzip"}, 415, "media_type"},
		"gzip bomb, by encoding":  {bomb.Bytes(), map[string]string{"Content-Encoding": "gzip"}, 415, "media_type"},
		"encoded twice":           {archive, map[string]string{"Content-Encoding": "gzip, br"}, 415, "media_type"},
		"cut off":                 {archive[:len(archive)/2], nil, 422, "invalid_archive"},
		"without its end":         {archive[:len(archive)-1024], nil, 422, "invalid_archive"},
		"with more":               {append(bytes.Clone(archive), "more"...), nil, 422, "invalid_archive"},
		"another digest":          {archive, map[string]string{"Repr-Digest": digestOf(nil)}, 422, "digest_mismatch"},
		"another digest of it":    {archive, map[string]string{"Content-Digest": digestOf(nil)}, 422, "digest_mismatch"},
		"a digest that is none":   {archive, map[string]string{"Repr-Digest": "sha-256=:AAAA:"}, 400, "bad_request"},
		"a digest without colons": {archive, map[string]string{"Repr-Digest": "sha-256=x"}, 400, "bad_request"},
		"a digest of nothing":     {archive, map[string]string{"Repr-Digest": "nonsense"}, 400, "bad_request"},
		"path out":                {edit(t, archive, file("../../../evil")), nil, 422, "invalid_archive"},
		"path out of the top":     {edit(t, archive, file(stamp+"/../../evil")), nil, 422, "invalid_archive"},
		"absolute path":           {edit(t, archive, file("/tmp/evil")), nil, 422, "invalid_archive"},
		"symbolic link":           {edit(t, archive, kind(tar.TypeSymlink)), nil, 422, "invalid_archive"},
		"hard link":               {edit(t, archive, kind(tar.TypeLink)), nil, 422, "invalid_archive"},
		"FIFO":                    {edit(t, archive, kind(tar.TypeFifo)), nil, 422, "invalid_archive"},
		"device":                  {edit(t, archive, kind(tar.TypeChar)), nil, 422, "invalid_archive"},
		"another file at the end": {edit(t, archive, none, &tar.Header{Typeflag: tar.TypeReg, Name: stamp + "/more"}), nil, 422, "invalid_archive"},
		"another stamp": {edit(t, archive, func(h *tar.Header) bool {
			h.Name = strings.Replace(h.Name, stamp, "20010101T000000Z", 1)
			return false
		}), nil, 422, "invalid_archive"},
		"changed": {bytes.Replace(archive, []byte("projects"), []byte("projectz"), 1), nil, 422, "invalid_archive"},
	}
	s := newSiteOf(t, backuptest.NewBareStore(t), everything, func(o *backup.Options) { o.Clock = backuptest.Noon })
	s.create()
	everythingElse := func() map[string]backuptest.File {
		tree := backuptest.ReadTree(t, s.Dir)
		delete(tree, "backups") // its time changes with each staging directory
		return tree
	}
	s.upload([]byte("x"), nil) // so that everything is there that any import makes
	before := everythingElse()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			for _, chunked := range []bool{false, true} {
				var answer got
				if chunked {
					answer = s.uploadChunked(c.data, c.header)
				} else {
					answer = s.upload(c.data, c.header)
				}
				requireProblem(t, answer, c.status, c.code)
				s.RequireNoStaging()
				require.Len(t, s.Stamps(), 1)
			}
			require.NoFileExists(t, "/tmp/evil")
		})
	}
	require.Equal(t, before, everythingElse())
}

// uploadChunked imports an archive whose length is not known before.
func (s *site) uploadChunked(data []byte, header map[string]string) got {
	s.t.Helper()
	request, err := http.NewRequest("POST", s.url+"/import", io.MultiReader(bytes.NewReader(data)))
	require.NoError(s.t, err)
	request.Header.Set("Content-Type", tarType)
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	require.NoError(s.t, err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	require.NoError(s.t, err)
	return got{response, string(body)}
}

// An import is bounded, whether its length is known before or not.
func TestImportIsBounded(t *testing.T) {
	cfg := everything
	cfg.MaxImport = 10 << 10
	s := newSite(t, cfg)
	other := backuptest.NewSmallStore(t)
	var archive bytes.Buffer
	require.NoError(t, backup.ExportRuntimeBackup(t.Context(), other.Options, other.Create().Stamp, &archive))
	requireProblem(t, s.upload(archive.Bytes(), nil), 413, "body_too_large")
	requireProblem(t, s.uploadChunked(archive.Bytes(), nil), 413, "body_too_large")
	require.Empty(t, s.Stamps())
}

// A client that sends an import too slowly is refused, and one that goes away, or
// whose import is cancelled, leaves nothing.
func TestImportOfASlowClient(t *testing.T) {
	from := newSite(t, everything)
	archive := from.archive(from.create())
	for name, c := range map[string]struct {
		timeout time.Duration
		end     func(s *site, op operation, cut func())
		state   string
		code    string
	}{
		"too slow":   {100 * time.Millisecond, func(*site, operation, func()) {}, "failed", "too_slow"},
		"goes away":  {time.Hour, func(_ *site, _ operation, cut func()) { cut() }, "canceled", "canceled"},
		"cancelled":  {time.Hour, func(s *site, op operation, _ func()) { s.must(202, "DELETE", "/operations/"+op.ID, "", nil) }, "canceled", "canceled"},
		"shuts down": {time.Hour, func(s *site, _ operation, _ func()) { s.shutdownNow() }, "canceled", "canceled"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := everything
			cfg.BodyTimeout = c.timeout
			s := newSite(t, cfg, func(o *backup.Options) { o.Clock = backuptest.Noon }) // so that all progress is reported
			events := s.follow("")
			conn := s.dial(fmt.Sprintf("POST %s/import HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", mountedAt, len(archive), archive[:len(archive)/2]))
			op := events.operation()
			require.Equal(t, "import", op.Kind)
			require.Equal(t, "running", op.State)
			events.await(`"files":3`) // then it waits for the rest of a file
			c.end(s, op, func() { require.NoError(t, conn.Close()) })
			op = events.operation()
			require.Equal(t, c.state, op.State, op.Problem)
			require.Equal(t, c.code, op.Problem.Code, op.Problem.Detail)
			if name != "goes away" {
				response, err := http.ReadResponse(bufio.NewReader(conn), nil)
				require.NoError(t, err)
				require.Equal(t, op.Status, response.StatusCode)
				require.True(t, response.Close, "the rest of the body is not read")
				require.NoError(t, response.Body.Close())
			}
			s.RequireNoStaging()
			require.Empty(t, s.Stamps())
		})
	}
}

func (s *site) shutdownNow() {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = s.h.Shutdown(ctx)
}
