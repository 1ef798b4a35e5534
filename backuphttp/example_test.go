package backuphttp_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"

	"github.com/atocore/backup"
	"github.com/atocore/backup/backuphttp"
)

// A host mounts its backups, behind a handler of its own that admits the right
// people only.
func ExampleNew() {
	requireAdmin := func(next http.Handler) http.Handler { return next } // the host's
	opts := backup.Options{DatabasePath: "data/atocore.db", BackupDir: "backups", Verify: true, RecordVerdicts: true}

	h := backuphttp.New(opts, backuphttp.Config{AllowProtect: true})
	mux := http.NewServeMux()
	mux.Handle("/admin/backup/", requireAdmin(http.StripPrefix("/admin/backup", h)))
	server := httptest.NewServer(mux)
	defer server.Close()
	defer func() { _ = h.Shutdown(context.Background()) }()

	response, err := http.Get(server.URL + "/admin/backup/")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer response.Body.Close()
	list, _ := io.ReadAll(response.Body)
	fmt.Print(response.Status, " ", string(list))
	// Output: 200 OK []
}
