// Package backuphttp offers the backups of a store over HTTP.
package backuphttp
