// Package backuphttp offers the backups of a store over HTTP: to list, create,
// validate, rehearse, export, import, restore, protect, remove and prune them, to
// follow what runs, and for Prometheus. It uses the standard library and the
// public interface of package backup only.
//
//	h := backuphttp.New(opts, backuphttp.Config{AllowRestore: true})
//	mux.Handle("/admin/backup/", requireAdmin(http.StripPrefix("/admin/backup", h)))
//	server.RegisterOnShutdown(func() { _ = h.Shutdown(ctx) })
//
// It works under any prefix, which it finds out from each request (see
// [Handler]). Authentication is the host's, by a handler around it. Whoever may
// use the handler can read the whole store, by an export, and the paths of the
// host's files, which are in metadata and in messages.
//
// # Routes
//
//	GET    /                   the list, oldest first; a page for a browser
//	POST   /                   create: {"include_chroma": true, "verify": true, "note": ""}
//	GET    /latest             the snapshot to restore: {"snapshot": …, "skipped": […], "with_chroma": ""}
//	GET    /{stamp}            one entry of the list
//	DELETE /{stamp}            remove (AllowRemove)
//	GET    /{stamp}/validate   the report, with status 200 whether it is valid or not
//	POST   /{stamp}/drill      rehearse a restore
//	GET    /{stamp}/export     the tar archive of backup.ExportRuntimeBackup
//	POST   /import             the same archive as the body (MaxImport)
//	POST   /{stamp}/restore    {"parts": ["database"], "despite_findings": false, "from_other_store": false} (AllowRestore)
//	POST   /{stamp}/protect    {"protected": true} (AllowProtect)
//	POST   /prune              {"keep_last": 3, "keep_daily": 7, "keep_within": "1y6m", "dry_run": true} (AllowPrune)
//	GET    /operations         the operations that run, and the last that ended, newest first
//	GET    /operations/{id}    one operation
//	DELETE /operations/{id}    cancel it
//	GET    /events             server-sent events
//	GET    /metrics            Prometheus' text format
//	GET    /page/{name}        what the page needs
//
// Every GET can be a HEAD, which does nothing that is expensive. Bodies of
// requests are JSON objects and optional; a field that is not known is an error.
// Without a field for it, Options and Config say what happens. Answers are what
// package backup marshals its results to, with the Python module's names: the list
// is that of backup.ListRuntimeBackups, and a create answers 201 with
// backup.Metadata and a Location.
//
// An export has a Content-Length; by HTTP/1.1, a client that sends "TE: trailers"
// gets the SHA-256 of the archive instead, as a trailer Repr-Digest (RFC 9530). An
// export that fails when a part has been sent cuts the connection. An import has
// the Content-Type application/x-tar, application/octet-stream or none, is not
// compressed, and is compared with Repr-Digest or Content-Digest, in the header or
// a trailer, if it has a sha-256.
//
// A route that is not allowed by Config answers 403. A directory in snapshots/ that
// somebody named like a route ("latest", "operations", …) can't be reached here.
//
// # Operations
//
// Everything that takes long, or changes something, is an operation. A request ends
// with its operation, and a client that goes away cancels it, unless it asked for
// "Prefer: respond-async" (RFC 7240): then the answer is 202 with the operation and
// its Location. Exports and imports can't be asynchronous, because the request is
// what they read or write. In JSON an operation is
//
//	{
//	  "id": "5c1f0a9e-7",                  // the first part is another one in each process
//	  "href": "/admin/backup/operations/5c1f0a9e-7",  // not in events
//	  "kind": "create",                    // validate, drill, export, import, restore, protect, remove, prune;
//	                                       // scheduled, or another one of Handler.Observe
//	  "stamp": "20260721T120000Z",         // the snapshot; "" for a prune, and for a create or import that is running
//	  "async": true,
//	  "state": "running",                  // succeeded, failed, canceled
//	  "started_at": "2026-07-21T12:00:00.5Z",
//	  "ended_at": null,                    // null while it runs
//	  "progress": {"phase": "chroma", "path": "…", "files": 1, "total_files": 4, "bytes": 4096, "total_bytes": 9000, "share": 0.41},
//	                                       // the last report, or null
//	  "status": 0,                         // that of the answer, 201 for example; 0 while it runs
//	  "result": null,                      // the body of the answer, if it succeeded
//	  "problem": null                      // the problem document, if it did not
//	}
//
// A validation of a snapshot that is not valid succeeds; its result says so. The
// last 64 operations that ended are remembered, in memory.
//
// # Events
//
// GET /events answers an event stream (html.spec.whatwg.org, server-sent events).
// The events are, with their data in JSON:
//
//	event: operation   an operation began or ended; data: the operation
//	event: progress    data: {"id": …, "kind": …, "stamp": …, "progress": {…}}; has no event id
//	event: reset       operations were missed; data: {}. Read the list and the operations again
//
// A stream begins with the operations that are running. With Last-Event-ID it
// begins with what was missed since then, or with a reset if that is not known any
// more. A result of more than 32 KiB is null in an event and in the list of
// operations, and "result_omitted" is true; GET /operations/{id} has it. A comment is sent every 15 seconds. A client
// that reads too slowly is cut off; it may connect again.
//
// # Problems
//
// Every error is a problem document (RFC 9457) with these members: "type", the
// address of its documentation; "title"; "status"; "detail", for a person;
// "instance", the path of the request or of the operation; and "code", which never
// changes. The codes of errors of package backup are their names there, "busy" for
// backup.ErrBusy; the statuses are those of the table in that package's
// documentation. "report" is the validation report, if there is one, and "result"
// what the call returned together with its error. The other codes are
//
//	not_found           404  no such route
//	no_operation        404  no such operation, or it is forgotten
//	method_not_allowed  405  see Allow
//	bad_request         400  the body or the query can't be understood
//	not_allowed         403  Config does not allow it
//	cross_origin        403  a browser sent it for another site
//	operation_ended     409  there is nothing to cancel
//	too_slow            408  the body came, or the answer was taken, too slowly
//	body_too_large      413
//	media_type          415  the body has another Content-Type, or a Content-Encoding
//	digest_mismatch     422  the body is not that of its Repr-Digest
//	too_many_operations 503  try again when others have ended
//	too_many_followers  503  of events
//	shutting_down       503
//	internal            500  any other error
//
// What is worth another attempt soon has a Retry-After: busy, database_in_use,
// source_changed, shutting_down and what is too many. Detail and metadata have the
// paths of files on the host.
package backuphttp
