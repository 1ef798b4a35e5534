//go:build cgo

package main

import (
	"context"
	"database/sql"
	"errors"

	"github.com/mattn/go-sqlite3"
)

func init() { peers["mattn"] = onlineBackup }

// onlineBackup copies the whole database in a single step of the online backup
// API.
func onlineBackup(src, dst string) error {
	return withConn(src, func(from *sqlite3.SQLiteConn) error {
		return withConn(dst, func(to *sqlite3.SQLiteConn) (err error) {
			b, err := to.Backup("main", from, "main")
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, b.Finish()) }()
			if done, err := b.Step(-1); err != nil || !done {
				return errors.Join(err, errors.New("the backup ended early"))
			}
			return nil
		})
	})
}

func withConn(path string, do func(*sqlite3.SQLiteConn) error) (err error) {
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	conn, err := db.Conn(context.Background())
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Raw(func(driverConn any) error { return do(driverConn.(*sqlite3.SQLiteConn)) })
}
