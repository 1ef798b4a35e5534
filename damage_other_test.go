//go:build !linux && !darwin

package backup_test

import "io/fs"

var systemDamages []damage

func changeTime(fs.FileInfo) any { return nil }
