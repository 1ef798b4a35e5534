// Package s3server runs a real object store with the S3 API for tests and for the
// benchmark: OpenStack Swift, from the Debian packages swift-proxy, swift-account,
// swift-container and swift-object, on free ports of 127.0.0.1 and in a temporary
// directory. In front of it are TLS proxies that count what is sent and break
// requests on demand.
//
//	swift := s3server.New(t)
//	proxy := swift.NewProxy(t)
//	run("restic", append(proxy.Args(), "-r", proxy.Location("bucket"), "init")...)
//
// A Server takes about 4 seconds to start and 250 MB of memory, so the tests of a
// package share one; proxies are cheap, and each test has its own, and its own
// bucket. It works with and without root. Nothing outlives the process that
// started it, even if that is killed.
package s3server
