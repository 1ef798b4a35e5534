package offsite

import "context"

// Init makes a new repository at r.Location, with the password that r or the
// environment names: without it, nobody can read what is stored there. If there
// is a repository already, it stays as it is, and Init fails. A call runs restic
// once.
//
// Errors: ErrNoProgram, ErrProgramTooOld, ErrPassword if none is given, ErrNoRepository
// if no location is, ErrStuck; ctx's error; or what restic says.
func (r *Repository) Init(ctx context.Context) (err error) {
	defer wrapCall(&err, "make a repository")
	return r.program().Init(ctx)
}

// List returns the copies in the repository, of all stores, oldest first. Other
// snapshots of restic's in it are left out, and so are those that have the tags
// of copies, but not in the form that Push writes. A call runs restic once, and
// reads one small file for each snapshot in the repository.
//
// Errors: ErrNoProgram, ErrProgramTooOld, ErrNoRepository, ErrPassword, ErrBusy,
// ErrStuck; or ctx's error.
func (r *Repository) List(ctx context.Context) (_ []Copy, err error) {
	defer wrapCall(&err, "list copies")
	return copiesIn(ctx, r.program())
}
