// Peers copies a database or a directory tree with other Go libraries, for the
// benchmark in the parent directory:
//
//	peers names
//	peers NAME SOURCE DESTINATION
//
// It is a separate module, so that the library's module does not depend on them.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/otiai10/copy"
)

var peers = map[string]func(src, dst string) error{
	"otiai10": func(src, dst string) error {
		return copy.Copy(src, dst, copy.Options{PreserveTimes: true})
	},
}

func main() {
	if len(os.Args) == 2 && os.Args[1] == "names" {
		for name := range peers {
			fmt.Println(name)
		}
		return
	}
	if len(os.Args) != 4 || peers[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: peers names | peers NAME SOURCE DESTINATION")
		os.Exit(2)
	}
	start := time.Now()
	err := peers[os.Args[1]](os.Args[2], os.Args[3])
	seconds := time.Since(start).Seconds()
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(map[string]float64{"seconds": seconds})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
}
