package sqlitedb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
)

// An apartCheck checks what SQLite cannot check at once, or objects to.
//
// Its connections have no virtual tables, so that all that they find is about
// ordinary tables; those that virtual tables keep their content in are among
// them. Then each virtual table is asked by itself. Functions and collations
// that are missing have stand-ins, by which the rest can be checked; what SQLite
// finds by one of them is dropped, and noted as not checked.
type apartCheck struct {
	*checker
	additions
	findings []Finding
	notes    notes

	tables    []string        // all but the virtual ones
	foreign   map[string]bool // of these, those that call functions of the host
	broken    map[string]bool // those with an index that keeps SQLite from checking the others
	hopeless  map[string]bool // those that cannot be checked at all
	computes  bool            // runLong must not be used
	unchecked map[object]bool // what needs something that is missing
	hidden    []object        // of these, indexes that must not even be checked with stand-ins
	dropped   dropped
	counts    []Finding // what is known of hidden indexes
}

// apart checks the database in parts.
func (c *checker) apart(ctx context.Context, host *host) (Checked, error) {
	a := &apartCheck{
		checker: c, additions: additions{apart: true, host: host},
		foreign: make(map[string]bool), broken: make(map[string]bool), hopeless: make(map[string]bool), unchecked: make(map[object]bool),
		dropped: dropped{make(map[string]bool), make(map[string]bool), make(map[string]bool)},
	}
	err := a.checkOrdinary(ctx)
	if err == nil {
		err = a.checkVirtual(ctx)
	}
	if isDamage(err) || cannotCheck(err) { // not even the schema can be read
		a.findings = append(a.findings, Finding{Unreadable: true, Text: cut(err.Error())})
		err = nil
	}
	return Checked{a.findings, a.notes.texts()}, err
}

// checkOrdinary checks all but the virtual tables.
func (a *apartCheck) checkOrdinary(ctx context.Context) error {
	cc, err := a.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { cc.close() }()
	if len(a.hidden) > 0 {
		if err := a.countHidden(ctx, cc); err != nil {
			return err
		}
		without, err := a.hide(ctx, cc)
		if err != nil {
			return err
		}
		if without != nil {
			cc.close()
			cc = without
		}
	}
	if len(a.broken) == 0 && len(a.hopeless) == 0 {
		if err := a.checkWhole(ctx, cc); !cannotCheck(err) {
			return err
		}
	}
	return a.checkEach(ctx, cc)
}

// connect opens a connection with stand-ins for all that is missing.
func (a *apartCheck) connect(ctx context.Context) (*checkConn, error) {
	const most = 8 // expressions that need more missing functions than this are not checked
	for round := 1; ; round++ {
		cc, err := a.open(ctx, a.additions)
		if err != nil {
			return nil, err
		}
		if err = cc.prepare(ctx, a.Kind); isDamage(err) && a.host.hasAny() {
			// A function that is not deterministic makes the schema unreadable.
			cc.close()
			return a.connectWithoutHost(ctx, err)
		}
		missing := additions{}
		if err == nil {
			cc.driver.use.encoding, err = cc.text(ctx, "PRAGMA encoding")
		}
		if err == nil {
			missing, err = a.examine(ctx, cc, round < most)
		}
		if err == nil && len(missing.functions) == 0 && len(missing.collations) == 0 {
			return cc, nil
		}
		cc.close()
		if err != nil {
			return nil, err
		}
		a.functions = append(a.functions, missing.functions...)
		a.collations = append(a.collations, missing.collations...)
	}
}

func (a *apartCheck) connectWithoutHost(ctx context.Context, reason error) (*checkConn, error) {
	a.host = new(host)
	cc, err := a.connect(ctx)
	if err == nil {
		a.notes.add("what the program registers was not used: %w", reason)
	}
	return cc, err
}

// examine looks at what the tables need to be checked. It returns what is
// missing and can get a stand-in, if that is wanted.
func (a *apartCheck) examine(ctx context.Context, cc *checkConn, standIns bool) (missing additions, err error) {
	if a.tables, err = cc.names(ctx, ordinaryTables); err != nil {
		return missing, err
	}
	for _, table := range a.tables {
		objects, err := cc.objects(ctx, table, false)
		if err != nil {
			return missing, err
		}
		for _, o := range objects {
			p, err := cc.program(ctx, o.explain())
			switch {
			case err == nil:
				a.take(o, p, cc.length)
			case !cannotCheck(err):
				return missing, err
			case standIns && a.standIn(&missing, err):
				a.drop(o, err)
			default:
				a.giveUp(o, err)
			}
		}
	}
	return missing, nil
}

// take looks at the program that computes an object.
func (a *apartCheck) take(o object, p *program, length int) {
	if !p.isModest(length) {
		a.giveUp(o, errTooMuchWork)
		return
	}
	for _, c := range p.calls {
		switch name, _, _ := strings.Cut(c.function, "("); {
		case a.host.knows(c.function):
			a.foreign[o.table] = true
		case isNotComputed(name):
			a.drop(o, fmt.Errorf("%s: %w", c.function, errNotComputed))
		}
	}
	if (o.expression || p.values > 0) && !a.unchecked[o] && (o.column || a.Kind == IntegrityCheck) {
		a.computes = true
	}
}

// isNotComputed reports whether a function of SQLite has a stand-in.
func isNotComputed(name string) bool {
	own, err := ownCatalog()
	return err == nil && !slices.Contains(guardedFunctions, name) && slices.ContainsFunc(own.functions, func(f function) bool {
		_, native := nativeFunctions[f.String()]
		return f.name == name && !native
	})
}

// How SQLite says what is missing (expr.c, callback.c).
var (
	missingFunction  = regexp.MustCompile(`(?s)unknown function: (.+)\(\) \(\d+\)$`)
	missingCollation = regexp.MustCompile(`(?s)no such collation sequence: (.+) \(\d+\)$`)
)

// standIn adds to missing what err says is missing. It returns false if that can
// have no stand-in.
func (a *apartCheck) standIn(missing *additions, err error) bool {
	const mostNames, longest = 64, 128
	add := func(names *[]string, found []string, before []string) bool {
		if found == nil || len(found[1]) > longest || slices.Contains(before, found[1]) {
			return false
		}
		if !slices.Contains(*names, found[1]) {
			if len(*names)+len(before) == mostNames {
				return false
			}
			*names = append(*names, found[1])
		}
		return true
	}
	return add(&missing.functions, missingFunction.FindStringSubmatch(err.Error()), a.functions) ||
		add(&missing.collations, missingCollation.FindStringSubmatch(err.Error()), a.collations)
}

// drop marks an object as not checked.
func (a *apartCheck) drop(o object, reason error) {
	if a.unchecked[o] {
		return
	}
	a.unchecked[o] = true
	a.dropped.add(o)
	switch {
	case o.column:
		a.notes.add("generated column %s of table %s was not checked: %w", o.name, o.table, reason)
	case a.Kind == IntegrityCheck: // the other one compares no index
		a.notes.add("index %s was not compared with table %s: %w", o.name, o.table, reason)
		if o.expression {
			a.hidden = append(a.hidden, o)
		}
	}
}

// giveUp marks an object as one for which stand-ins are of no help.
func (a *apartCheck) giveUp(o object, reason error) {
	a.drop(o, reason)
	switch {
	case o.column:
		a.hopeless[o.table] = true
		a.notes.add("table %s was not checked", o.table)
	case a.Kind == IntegrityCheck && !slices.Contains(a.hidden, o):
		a.hidden = append(a.hidden, o)
	}
}

// compareNone marks the table of an index as one of which no index is compared.
func (a *apartCheck) compareNone(o object) {
	a.broken[o.table] = true
	a.notes.add("no index was compared with table %s", o.table)
}

// keep keeps a fault, unless it is to be dropped. It returns false when there
// are enough.
func (a *apartCheck) keep(text string) (more, kept bool) {
	if a.dropped.has(text) {
		return true, false
	}
	if slices.ContainsFunc(a.counts, func(f Finding) bool { return f.Text == cut(text) }) {
		return true, true // it is among the findings already
	}
	a.findings = append(a.findings, Finding{Text: cut(text)})
	return len(a.findings) < a.Limit, true
}

// begin forgets all findings but those about hidden indexes.
func (a *apartCheck) begin() { a.findings = slices.Clone(a.counts) }

// checkWhole checks all ordinary tables at once.
func (a *apartCheck) checkWhole(ctx context.Context, cc *checkConn) error {
	a.begin()
	faults, dropped := 0, false
	keep := func(text string) bool {
		faults++
		if isStructure(text) { // one row for all faults of this kind
			faults += strings.Count(text, "\n") - 1
		}
		more, kept := a.keep(text)
		dropped = dropped || !kept
		return more
	}
	if a.computes {
		err := cc.run(ctx, a.Kind, "", keep)
		if err == nil && faults >= faultsAtOnce {
			if dropped {
				return a.checkEach(ctx, cc)
			}
			a.notes.add("there may be more than %v faults", faultsAtOnce)
		}
		return err
	}
	err := cc.runLong(ctx, a.Kind, a.Limit, keep)
	if err != nil || !dropped || faults < a.Limit {
		return err
	}
	// SQLite stops at a limit, and faults that are dropped count. Without one it
	// would collect all faults of the structure in memory, but then it would have
	// stopped at these.
	a.begin()
	return cc.runLong(ctx, a.Kind, math.MaxInt32, keep)
}

// checkEach checks the structure of the file and then one ordinary table after
// the other.
func (a *apartCheck) checkEach(ctx context.Context, cc *checkConn) error {
	a.begin()
	if err := a.checkStructure(ctx, cc); err != nil {
		return err
	}
	for _, table := range a.tables {
		if len(a.findings) >= a.Limit {
			return nil
		}
		kind := a.Kind
		switch {
		case a.hopeless[table]:
			continue
		case a.broken[table]:
			kind = QuickCheck
		}
		err := a.checkTable(ctx, cc, kind, table)
		if err != nil {
			return err
		}
	}
	return nil
}

// checkStructure checks the structure of the file. SQLite does that first and
// goes on to the rows of the tables, where it may fail.
func (a *apartCheck) checkStructure(ctx context.Context, cc *checkConn) error {
	err := errTooMuchWork
	if len(a.hopeless) == 0 {
		err = cc.canPrepare("PRAGMA main.quick_check")
	}
	if err != nil {
		a.notes.add("the structure of the file was checked in parts only: %w", err)
		return nil
	}
	err = cc.run(ctx, QuickCheck, "", func(text string) bool {
		if !isStructure(text) {
			return false
		}
		more, _ := a.keep(text)
		return more
	})
	if cannotCheck(err) {
		return nil
	}
	return err
}

func (a *apartCheck) checkTable(ctx context.Context, cc *checkConn, kind Kind, table string) error {
	statement := fmt.Sprintf("PRAGMA main.%s(%s)", kind, quoteText(table))
	if err := cc.canPrepare(statement); err != nil {
		a.notes.add("table %s was not checked: %w", table, err)
		return nil
	}
	faults, dropped := 0, false
	cc.driver.use.refused = false
	err := cc.run(ctx, kind, table, func(text string) bool {
		faults++
		more, kept := a.keep(text)
		dropped = dropped || !kept
		return more
	})
	if cannotCheck(err) {
		err = cc.better(ctx, err, statement)
	}
	switch {
	case err == nil:
		if dropped && faults >= faultsAtOnce {
			a.notes.add("table %s was not checked to its end", table)
		}
		return nil
	case cannotCheck(err) && (Code(err) != codeError || cc.driver.use.refused || a.foreign[table]):
		a.notes.add("table %s was not checked to its end: %w", table, err)
		return nil
	case cannotCheck(err):
		a.findings = append(a.findings, Finding{Unreadable: true, Text: cut(err.Error())})
		return nil
	}
	return err
}

// canPrepare returns the error with which SQLite cannot prepare a statement.
func (cc *checkConn) canPrepare(statement string) error {
	s, err := cc.conn.driver.Prepare(statement)
	if err == nil {
		s.Close()
	}
	return err
}

// checkVirtual has each virtual table check itself, and notes what it says:
// whatever it is, it is about what the table's module makes of the tables in
// which it keeps its content.
func (a *apartCheck) checkVirtual(ctx context.Context) error {
	cc, err := a.open(ctx, additions{})
	if err != nil {
		return err
	}
	defer cc.close()
	tables, err := cc.names(ctx, virtualTables)
	if err != nil {
		return err
	}
	for _, table := range tables {
		err := cc.exec(ctx, "EXPLAIN SELECT 1 FROM main."+quoteName(table))
		if err == nil {
			err = cc.run(ctx, a.Kind, table, func(text string) bool {
				a.notes.add("virtual table %s says of itself: %w", table, errors.New(cut(text)))
				return true
			})
			if cannotCheck(err) {
				name := quoteName(table)
				err = cc.better(ctx, err, fmt.Sprintf("SELECT 1 FROM main.%s WHERE %s MATCH 'a'", name, name)) // a full-text search
			}
		}
		switch {
		case err == nil:
		case cannotCheck(err), isDamage(err):
			a.notes.add("virtual table %s was not checked: %w", table, err)
		default:
			return err
		}
	}
	return nil
}

// better returns the error of a statement, if it says more than err, with which
// a check ended: SQLite loses the messages of some errors.
func (cc *checkConn) better(ctx context.Context, err error, statement string) error {
	instead := cc.query(ctx, statement, func([]driver.Value) error { return errEnough })
	if Code(instead) == Code(err) && len(instead.Error()) > len(err.Error()) && !strings.Contains(instead.Error(), "MATCH") {
		return instead
	}
	return err
}

// dropped are the faults that are not findings, because of the stand-ins.
type dropped struct {
	indexes map[string]bool
	columns map[string]bool // table and column, joined by a dot
	keys    map[string]bool // tables whose primary key is an index that was dropped
}

func (d dropped) add(o object) {
	switch {
	case o.column:
		d.columns[o.table+"."+o.name] = true
	case o.primary:
		d.keys[o.table] = true
		fallthrough
	default:
		d.indexes[o.name] = true
	}
}

// The faults of rows (PragTyp_INTEGRITY_CHECK in pragma.c). That an index has
// another number of entries than its table is not among them: SQLite counts
// these without a function or a collation.
var (
	faultOfIndex  = regexp.MustCompile(`(?s)^(?:row -?\d+ missing from index |row -?\d+ values differ from index |rowid not at end-of-record for row -?\d+ of index |non-unique entry in index )(.*)$`)
	floatOfIndex  = regexp.MustCompile(`(?s)^index (.*) stores an imprecise floating-point value for row -?\d+$`)
	faultOfColumn = regexp.MustCompile(`(?s)^(?:NULL|NUMERIC|TEXT|non-[A-Z]+) value in (.*)$`)
	faultOfKey    = regexp.MustCompile(`(?s)^row not in PRIMARY KEY order for (.*)$`)
)

// has reports whether a fault is one of something that was not checked.
func (d dropped) has(text string) bool {
	for _, kind := range []struct {
		form  *regexp.Regexp
		names map[string]bool
	}{{faultOfIndex, d.indexes}, {floatOfIndex, d.indexes}, {faultOfColumn, d.columns}, {faultOfKey, d.keys}} {
		if len(kind.names) > 0 {
			if found := kind.form.FindStringSubmatch(text); found != nil && kind.names[found[1]] {
				return true
			}
		}
	}
	return false
}

// notes are what could not be checked, without repetitions and bounded.
type notes struct {
	list []string
	more int
}

const mostNotes = 100

// add adds a note. Arguments that are strings are names, and are quoted.
func (n *notes) add(format string, args ...any) {
	for i, arg := range args {
		if name, ok := arg.(string); ok {
			args[i] = fmt.Sprintf("%.200q", name)
		}
	}
	text := cut(fmt.Errorf(format, args...).Error())
	switch {
	case slices.Contains(n.list, text):
	case len(n.list) < mostNotes:
		n.list = append(n.list, text)
	default:
		n.more++
	}
}

func (n *notes) texts() []string {
	if n.more > 0 {
		return append(n.list, fmt.Sprintf("and %d more", n.more))
	}
	return n.list
}
