package s3server

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

// A Proxy is an address at which a Server is reached over TLS. It counts what goes
// through it, and breaks requests if it is told to. All methods may be called while
// requests are going on.
type Proxy struct {
	address     string
	certificate tls.Certificate
	file        string // the certificate, in PEM
	pass        *httputil.ReverseProxy

	up, down, requests atomic.Int64

	mu     sync.Mutex
	server *http.Server // nil while the proxy is stopped
	broken *breakage    // never nil
	watch  func(r *http.Request)
}

// Traffic is what went through a proxy: bytes on the network, with all that TLS and
// HTTP add to them, in the direction of the server (Up) and from there (Down).
type Traffic struct{ Up, Down, Requests int64 }

// NewProxy is OpenProxy for a test, at whose end the proxy is closed.
func (s *Server) NewProxy(tb testing.TB) *Proxy {
	tb.Helper()
	p, err := s.OpenProxy(tb.TempDir())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(p.Stop)
	return p
}

// OpenProxy opens a proxy on a free port, with a new certificate that it writes to
// the directory dir. The caller ends it with Stop.
func (s *Server) OpenProxy(dir string) (*Proxy, error) {
	certificate, text, err := newCertificate()
	if err != nil {
		return nil, fmt.Errorf("open proxy: %w", err)
	}
	p := &Proxy{
		address:     localhost(0),
		certificate: certificate,
		file:        filepath.Join(dir, "certificate.pem"),
		broken:      newBreakage(Fault{}),
		pass: &httputil.ReverseProxy{
			// Swift 2.30 sends an end of chunks after answers that have no body, as if
			// it were the beginning of the next one.
			Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true},
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(&url.URL{Scheme: "http", Host: s.address})
				r.Out.Host = r.In.Host // which is signed
			},
			ErrorLog: log.New(io.Discard, "", 0),
		},
	}
	if err := os.WriteFile(p.file, text, 0o600); err != nil {
		return nil, fmt.Errorf("open proxy: %w", err)
	}
	if err := p.Start(); err != nil {
		return nil, fmt.Errorf("open proxy: %w", err)
	}
	return p, nil
}

// Location returns the location of a bucket, and perhaps a directory in it, in
// restic's notation. The bucket need not exist.
func (p *Proxy) Location(bucket string) string { return "s3:https://" + p.address + "/" + bucket }

// Args returns the flags with which restic trusts the proxy.
func (p *Proxy) Args() []string { return []string{"--cacert", p.file} }

// Env returns the variables with which restic logs in.
func (*Proxy) Env() []string {
	return []string{"AWS_ACCESS_KEY_ID=" + key, "AWS_SECRET_ACCESS_KEY=" + secret, "AWS_DEFAULT_REGION=us-east-1"}
}

// Traffic returns what went through the proxy since it was opened.
func (p *Proxy) Traffic() Traffic {
	return Traffic{Up: p.up.Load(), Down: p.down.Load(), Requests: p.requests.Load()}
}

// Since returns what went through the proxy since then.
func (p *Proxy) Since(then Traffic) Traffic {
	now := p.Traffic()
	return Traffic{Up: now.Up - then.Up, Down: now.Down - then.Down, Requests: now.Requests - then.Requests}
}

// Watch calls see with every request from now on, before it is answered, and with
// its number, from 1. nil ends it. Calls are made by several goroutines.
func (p *Proxy) Watch(see func(n int, r *http.Request)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if see == nil {
		p.watch = nil
		return
	}
	count := new(atomic.Int64)
	p.watch = func(r *http.Request) { see(int(count.Add(1)), r) }
}

// Break breaks requests from now on, as f says.
func (p *Proxy) Break(f Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.broken.end()
	p.broken = newBreakage(f)
}

// Mend ends what Break began. Requests that hang are cut.
func (p *Proxy) Mend() { p.Break(Fault{}) }

// Stop closes the port and cuts every connection, as if the server were down.
func (p *Proxy) Stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server != nil {
		_ = p.server.Close() // the listener is closed in any case
		p.server = nil
	}
	p.broken.end()
}

// Start opens the port again that Stop closed.
func (p *Proxy) Start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, err := net.Listen("tcp", p.address)
	if err != nil {
		return err
	}
	p.address = l.Addr().String()
	p.broken = newBreakage(p.broken.Fault)
	p.server = &http.Server{Handler: p, ErrorLog: log.New(io.Discard, "", 0)}
	server := p.server
	go func() {
		// It ends with http.ErrServerClosed.
		_ = server.Serve(tls.NewListener(&counted{l, p}, &tls.Config{Certificates: []tls.Certificate{p.certificate}}))
	}()
	return nil
}

// ServeHTTP answers a request with what the server answers, unless it is broken.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.requests.Add(1)
	p.mu.Lock()
	broken, watch := p.broken, p.watch
	p.mu.Unlock()
	if watch != nil {
		watch(r)
	}
	broken.serve(w, r, p.pass)
}

// counted is a listener whose connections add what they carry to the proxy's sums.
type counted struct {
	net.Listener
	p *Proxy
}

func (l *counted) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &countedConn{c, l.p}, nil
}

type countedConn struct {
	net.Conn
	p *Proxy
}

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.p.up.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.p.down.Add(int64(n))
	return n, err
}
