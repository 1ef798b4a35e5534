package backup_test

import "syscall"

func statChangeTime(st *syscall.Stat_t) any { return st.Ctim }
