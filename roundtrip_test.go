package backup_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/atocore/backup"
	"github.com/atocore/backup/internal/backuptest"
)

// jsonTypes are the types with a JSON form of their own.
var jsonTypes = map[string]any{
	"Metadata":      backup.Metadata{},
	"Progress":      backup.Progress{},
	"PruneResult":   backup.PruneResult{},
	"Report":        backup.Report{},
	"RestorePart":   backup.RestorePart{},
	"RestoreResult": backup.RestoreResult{},
	"Snapshot":      backup.Snapshot{},
}

// typesWith returns the exported types of the package that have a method.
func typesWith(t *testing.T, method string) (types []string) {
	t.Helper()
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		require.NoError(t, err)
		for _, decl := range file.Decls {
			f, ok := decl.(*ast.FuncDecl)
			if !ok || f.Recv == nil || f.Name.Name != method {
				continue
			}
			of := f.Recv.List[0].Type
			if star, ok := of.(*ast.StarExpr); ok {
				of = star.X
			}
			types = append(types, of.(*ast.Ident).Name)
		}
	}
	slices.Sort(types)
	return types
}

// requireRoundTrip checks that the JSON of a value is read back to an equal
// value, and that the JSON of that is the same.
func requireRoundTrip(t *testing.T, value any) {
	t.Helper()
	data, err := json.Marshal(value)
	require.NoError(t, err)
	into := reflect.New(reflect.TypeOf(value))
	into.Elem().Set(fill(t, into.Type().Elem(), "before")) // nothing of it may stay
	require.NoError(t, json.Unmarshal(data, into.Interface()))
	require.Equal(t, value, into.Elem().Interface(), "%s", data)
	again, err := json.Marshal(into.Interface())
	require.NoError(t, err)
	require.Equal(t, string(data), string(again))
}

// fill returns a value of a type with all exported fields set.
func fill(t *testing.T, of reflect.Type, at string) reflect.Value {
	t.Helper()
	v := reflect.New(of).Elem()
	switch v.Interface().(type) {
	case time.Time:
		return reflect.ValueOf(time.Date(2026, 11, 24, 12, 0, len(at), 123456000, time.UTC))
	case backup.Metadata:
		at += ".FormatVersion" // 1 below, as in a file
	case *backup.Cost:
		if !strings.HasPrefix(at, "Metadata") {
			return v // the metadata of lists and reports come from a file
		}
	}
	switch of.Kind() {
	case reflect.Struct:
		for i := range of.NumField() {
			if f := of.Field(i); f.IsExported() {
				v.Field(i).Set(fill(t, f.Type, at+"."+f.Name))
			}
		}
		if f := v.FieldByName("FormatVersion"); f.IsValid() {
			f.SetInt(1)
		}
	case reflect.Pointer:
		v.Set(reflect.New(of.Elem()))
		v.Elem().Set(fill(t, of.Elem(), at))
	case reflect.Slice:
		for i := range 2 {
			v.Set(reflect.Append(v, fill(t, of.Elem(), fmt.Sprint(at, i))))
		}
	case reflect.String:
		if strings.HasSuffix(at, ".ManifestSHA256") {
			v.SetString("0123456789abcdef")
			break
		}
		v.SetString("é\xff\u2028<&>\n\"" + at) // any bytes that a path may have
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Uint8: // a set of bits
		v.SetUint(uint64(backup.PartDatabase | backup.PartChroma))
	case reflect.Float64:
		v.SetFloat(1 / float64(len(at)))
	case reflect.Int, reflect.Int64:
		v.SetInt(1<<62 + int64(len(at)))
	default:
		require.Fail(t, "a field of an unknown kind", "%s: %v", at, of)
	}
	return v
}

// Whatever writes JSON reads it back to an equal value: with every field set,
// with each field alone, and with none.
func TestJSONRoundTrip(t *testing.T) {
	names := slices.Sorted(maps.Keys(jsonTypes))
	require.Equal(t, typesWith(t, "MarshalJSON"), names, "a type has no case")
	require.Equal(t, typesWith(t, "UnmarshalJSON"), names)
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			of := reflect.TypeOf(jsonTypes[name])
			full := fill(t, of, name)
			requireRoundTrip(t, full.Interface())
			requireRoundTrip(t, jsonTypes[name])
			for i := range of.NumField() {
				field := of.Field(i)
				if !field.IsExported() {
					continue
				}
				one := reflect.New(of).Elem()
				one.Field(i).Set(full.Field(i))
				switch v := one.Addr().Interface().(type) {
				case *backup.Metadata:
					// What the Python module does not know is written with a version,
					// and a version has a stamp.
					if v.Stamp+v.SafetyOf+v.SourceDBPath+v.SourceHost != "" || v.FormatVersion != 0 {
						v.FormatVersion = 1
					}
				case *backup.Snapshot:
					v.HasMetadata = v.HasMetadata || v.Metadata != nil
				}
				requireRoundTrip(t, one.Interface())
			}
		})
	}
}

// The same holds for what the calls return.
func TestJSONRoundTripOfResults(t *testing.T) {
	s := backuptest.NewSmallStore(t)
	s.Verify, s.Note = true, "é"
	meta := s.Create()
	requireRoundTrip(t, *meta)
	python, broken, damaged, foreign := s.CreateSnapshot(), s.CreateSnapshot(), s.CreateSnapshot(), s.CreateSnapshot()
	python.MakePython()
	broken.LoseIndexEntries(3)
	broken.Reseal()
	damaged.Remove(backuptest.DBFile)
	foreign.Write(backuptest.MetadataFile, bytes.Replace(foreign.Read(backuptest.MetadataFile), []byte("{"),
		[]byte("{\"future\": [\"α\x7f<&>\u2028\", \"\\u003c \\\\u003c\", 1.50, null],"), 1))
	foreign.Reseal()
	shape := s.CreateSnapshot()
	shape.Write(backuptest.MetadataFile, []byte(`{"a": [NaN, 1e400], "b": "\ud800"}`))
	require.NoError(t, os.Mkdir(s.SnapshotPath("bare"), 0o700))

	list, err := backup.ListRuntimeBackups(t.Context(), s.Options)
	require.NoError(t, err)
	require.Len(t, list, 7)
	for _, snapshot := range list {
		requireRoundTrip(t, snapshot)
		report, _ := backup.ValidateBackup(t.Context(), s.Options, snapshot.Stamp)
		requireRoundTrip(t, *report)
	}
	s.Verify = false
	result := s.Restore(meta.Stamp)
	requireRoundTrip(t, *result)
	pruned, err := backup.PruneRuntimeBackups(t.Context(), s.Options, backup.Retention{KeepLast: 1})
	require.NoError(t, err)
	require.NotEmpty(t, pruned.Removed)
	requireRoundTrip(t, *pruned)
}

// A report of the Python module is read with its problems.
func TestReportOfThePythonModule(t *testing.T) {
	var report backup.Report
	require.NoError(t, json.Unmarshal([]byte(`{"stamp": "s", "path": "/p", "exists": true, "db_ok": true, "registry_ok": false, "chroma_ok": null,
		"errors": ["registry_invalid_json: config/r.json: line 1", "metadata_missing"], "metadata": null, "valid": false}`), &report))
	no := false
	require.Equal(t, backup.Report{
		Stamp: "s", Path: "/p", Exists: true, DBOK: true, RegistryOK: &no,
		Problems: []backup.Problem{
			{Code: backup.CodeRegistryInvalidJSON, Detail: "config/r.json: line 1"}, {Code: backup.CodeMetadataMissing},
		},
	}, report)
}
