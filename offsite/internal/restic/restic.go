// Package restic runs the program restic: it passes on credentials, progress and
// cancellation, tells its errors apart, and ends it when nothing goes on.
package restic
