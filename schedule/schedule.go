// Package schedule creates, verifies, prunes, rehearses and pushes backups on a
// timetable.
package schedule
