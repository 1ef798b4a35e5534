package main

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/atocore/backup/backuphttp"
)

// An access says where requests are answered, and whose.
type access struct {
	address string // for net.Listen
	token   string // empty if none is needed, because only this machine can connect
}

// access returns what the flags say. It refuses an address that others can
// connect to without a token.
func (c *runCommand) access() (a access, err error) {
	switch {
	case c.Listen == nil && c.TokenFile != nil:
		return a, errors.New("--token-file is of use with --listen only")
	case c.Listen == nil && len(c.Allow) > 0:
		return a, errors.New("--allow is of use with --listen only")
	case c.Listen == nil && (c.MaxAge != 0 || c.MaxUnverified != 0):
		return a, errors.New("--max-age and --max-unverified are of use with --listen only")
	case c.Listen == nil:
		return a, nil
	}
	if err := errors.Join(notEmpty(c.Listen, "--listen"), notEmpty(c.TokenFile, "--token-file")); err != nil {
		return a, err
	}
	address, local, err := parseAddress(*c.Listen)
	if err != nil {
		return a, fmt.Errorf("--listen %s: %w", *c.Listen, err)
	}
	a.address = address
	if c.TokenFile != nil {
		a.token, err = readToken(*c.TokenFile)
	} else if !local {
		err = fmt.Errorf("--listen %s: other machines may connect to this address: give --token-file, or a port alone", *c.Listen)
	}
	return a, err
}

// parseAddress returns an address to listen on, and whether only this machine can
// connect to it. A port alone is one of 127.0.0.1.
func parseAddress(text string) (address string, local bool, err error) {
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		if strings.Contains(text, ":") {
			return "", false, err
		}
		host, port = "", text
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", false, fmt.Errorf("%q is not a port", port)
	} else {
		port = strconv.FormatUint(n, 10)
	}
	if host == "" || host == "localhost" { // a name could be anything
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return "", false, fmt.Errorf("%q is not an IP address", host)
	}
	return net.JoinHostPort(host, port), ip.Unmap().IsLoopback(), nil
}

// readToken reads the token, which is the only line of a file.
func readToken(path string) (string, error) {
	const least, most = 16, 4096 // bytes
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return "", err
	}
	token := strings.TrimRight(string(text), "\r\n")
	switch {
	case len(text) > most:
		return "", fmt.Errorf("the token in %s is longer than %d bytes", path, most)
	case len(token) < least:
		return "", fmt.Errorf("the token in %s is shorter than %d bytes: make one with head -c 32 /dev/urandom | base64", path, least)
	case strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return "", fmt.Errorf("the token in %s has bytes that are not printable ASCII", path)
	}
	return token, nil
}

// admit lets the requests through that may be answered. With a token, these are
// the ones that have it. Without one, everybody on this machine may ask, but a
// page from elsewhere must not: the name of its server may have been made to
// resolve to this machine (DNS rebinding), and that name is the Host.
func (a access) admit(next http.Handler) http.Handler {
	want := sha256.Sum256([]byte(a.token))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.token == "" {
			if !isLocalName(r.Host) {
				refuse(w, http.StatusMisdirectedRequest, "host", "the Host of the request is not this machine: use 127.0.0.1 or localhost")
				return
			}
			next.ServeHTTP(w, r)
			return
		}
		// The hashes have one length, so that the time says nothing about the token.
		got := sha256.Sum256([]byte(tokenOf(r)))
		if subtle.ConstantTimeCompare(got[:], want[:]) != 1 {
			w.Header().Add("WWW-Authenticate", `Bearer realm="`+commandName+`"`)
			w.Header().Add("WWW-Authenticate", `Basic realm="`+commandName+`", charset="UTF-8"`)
			refuse(w, http.StatusUnauthorized, "unauthorized", "the token is missing or wrong: send it as Authorization: Bearer TOKEN, or as a password")
			return
		}
		next.ServeHTTP(w, r)
	})
}

// tokenOf returns the token of a request: a bearer token (RFC 6750), or the
// password with which a browser answers (RFC 7617), whatever the user's name.
func tokenOf(r *http.Request) string {
	if _, password, ok := r.BasicAuth(); ok {
		return password
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimLeft(token, " ")
}

// isLocalName reports whether a Host names this machine by an address or name that
// nobody else can have.
func isLocalName(host string) bool {
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && ip.Unmap().IsLoopback()
}

// refuse answers with a problem document (RFC 9457), as backuphttp does.
func refuse(w http.ResponseWriter, status int, code, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"type": "about:blank", "title": http.StatusText(status), "status": status, "detail": detail, "code": code,
	})
}

// A site answers requests until it is stopped.
type site struct {
	handler  *backuphttp.Handler
	listener net.Listener
	server   *http.Server
	failed   chan struct{} // closed when Serve has returned
	served   atomic.Pointer[error]
}

func newSite(listener net.Listener, handler *backuphttp.Handler, a access, say func(string, ...any)) *site {
	s := &site{handler: handler, listener: listener, failed: make(chan struct{})}
	s.server = &http.Server{
		Handler: a.admit(handler), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: log.New(io.Discard, "", 0), // what clients do wrong is no concern of the journal
	}
	go func() {
		defer close(s.failed)
		err := s.server.Serve(listener)
		s.served.Store(&err)
	}()
	say("Listening on http://%s/.", listener.Addr())
	return s
}

// err returns why requests are not answered any more, unless that was wanted.
func (s *site) err() error {
	if err := s.served.Load(); err != nil && !errors.Is(*err, http.ErrServerClosed) {
		return *err
	}
	return nil
}

// stop waits a moment for the operations that run, and then cancels them.
func (s *site) stop() {
	const patience = 5 * time.Second
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_ = s.handler.Shutdown(ctx) // what it cancels has told its client
	_ = s.server.Shutdown(ctx)
	_ = s.server.Close()
	<-s.failed
}
