package offsite

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/atocore/backup/offsite/internal/restic"
)

// errEnough ends a list of which enough is known.
var errEnough = errors.New("enough")

// differences returns how the files that restic lists for a copy differ from what
// its recipe says: one line each, and at most so many and a line that there are more. Nothing is downloaded but
// lists. An error that matches ErrDamaged means that the list cannot be read.
func differences(ctx context.Context, p *restic.Program, id string, r *recipe, most int) (problems []string, err error) {
	sizes, folders := r.layout()
	files, dirs := make(map[string][]int64), make(map[string]int)
	for name, size := range sizes {
		files[listed(name)] = append(files[listed(name)], size)
	}
	for name := range folders {
		dirs[listed(name)]++
	}
	delete(dirs, ".")
	problem := func(format string, args ...any) error {
		switch {
		case len(problems) > most:
			return errEnough
		case len(problems) == most:
			problems = append(problems, "and more")
			return errEnough
		}
		problems = append(problems, fmt.Sprintf(format, args...))
		return nil
	}
	err = p.List(ctx, id, func(n restic.Node) error {
		name := strings.TrimPrefix(n.Path, "/")
		switch {
		case n.Type == "dir" && dirs[name] > 0:
			if dirs[name]--; dirs[name] == 0 {
				delete(dirs, name)
			}
			return nil
		case n.Type != "file" || len(files[name]) == 0:
			return problem("%.200q, a %.20q, is not in its recipe", name, n.Type)
		}
		i := slices.IndexFunc(files[name], func(size int64) bool { return size < 0 && n.Size <= maxRecipe || n.Size == size })
		if i < 0 {
			err = problem("%.200q has %d bytes instead of %d", name, n.Size, files[name][0])
			i = 0
		}
		if files[name] = slices.Delete(files[name], i, i+1); len(files[name]) == 0 {
			delete(files, name)
		}
		return err
	})
	if err == nil {
		err = errors.Join(lacking(problem, "", files), lacking(problem, "the directory ", dirs)) // errEnough, perhaps
	}
	if err != nil && !errors.Is(err, errEnough) {
		return nil, err
	}
	return problems, nil
}

// lacking reports what restic has not listed.
func lacking[T any](problem func(format string, args ...any) error, kind string, names map[string]T) error {
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if err := problem("it lacks %s%.200q", kind, name); err != nil {
			return err
		}
	}
	return nil
}

// listed returns a path as restic lists it: in JSON, where each byte that is no
// part of UTF-8 is U+FFFD. So several paths can be one.
func listed(path string) string { return string([]rune(path)) }
