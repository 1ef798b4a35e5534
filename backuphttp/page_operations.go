package backuphttp

import (
	"encoding/json"
	"fmt"
	"time"
)

// pageEnded is how many operations that ended the page shows.
const pageEnded = 5

// A pageOperation is an operation in words.
type pageOperation struct {
	ID, What, How string
	Share         float64
	Failed        bool
	At            time.Time // when it ended
}

// pageKinds are the kinds of operations in words, for the template and the script.
func pageKinds() map[string]string {
	return map[string]string{
		"create": "Create", "validate": "Validate", "drill": "Rehearse a restore of", "export": "Export", "import": "Import",
		"restore": "Restore", "protect": "Change the protection of", "remove": "Remove", "prune": "Prune",
		// Of a schedule:
		"scheduled": "Scheduled backup", "look": "Look what is due", "verify": "Validate", "push": "Push",
	}
}

// pagePhases are the phases of package backup in words. A phase that is not here
// is shown as it is.
func pagePhases() map[string]string {
	return map[string]string{
		"init": "starting", "wait": "waiting for the database or another call", "guard": "waiting for the ingestion guard",
		"database": "copying the database", "registry": "copying the registry", "chroma": "copying Chroma",
		"seal": "finishing the database copy", "hash": "hashing", "sync": "writing to disk", "publish": "publishing",
		"prune": "removing", "export": "exporting", "import": "importing", "compare": "comparing with the store",
		"offline": "taking the store offline", "stage": "copying beside the store", "swap": "swapping the store",
		"verify": "verifying what was restored", "validate_files": "comparing files", "validate_database": "checking databases",
	}
}

// pageOperations returns the operations that run, and the last ones that ended.
// ops is newest first.
func pageOperations(ops []operationJSON) (running, ended []pageOperation) {
	for _, op := range ops {
		shown := pageOperation{ID: op.ID, What: operationName(op)}
		switch {
		case op.EndedAt == nil:
			shown.How = "starting"
			if p := op.Progress; p != nil {
				phase := string(p.Phase)
				if text, ok := pagePhases()[phase]; ok {
					phase = text
				}
				shown.Share, shown.How = p.Share, fmt.Sprintf("%s, %d %%", phase, int(p.Share*100))
			}
			running = append(running, shown)
		case len(ended) < pageEnded:
			shown.At = op.EndedAt.UTC()
			shown.How, shown.Failed = outcomeOf(op)
			ended = append(ended, shown)
		}
	}
	return running, ended
}

// shorten returns the beginning of a detail that is too long for a line.
func shorten(detail string) string {
	const most = 300
	runes := []rune(visible(detail))
	if len(runes) > most {
		return string(runes[:most-1]) + "…"
	}
	return string(runes)
}

// operationName says what an operation does. The script has the same words.
func operationName(op operationJSON) string {
	name, ok := pageKinds()[op.Kind]
	if !ok {
		name = op.Kind
	}
	switch {
	case op.Stamp != "":
		name += " " + visible(op.Stamp)
	case op.Kind == "create" || op.Kind == "import":
		name += " a snapshot"
	}
	return name
}

// outcomeOf says what became of an operation.
func outcomeOf(op operationJSON) (how string, failed bool) {
	var result struct {
		Valid *bool `json:"valid"`
	}
	switch {
	case op.Problem != nil:
		if op.State == "canceled" {
			return "was cancelled", true
		}
		return "failed: " + shorten(op.Problem.Detail), true
	case op.Kind == "validate" && json.Unmarshal(op.Result, &result) == nil && result.Valid != nil && !*result.Valid:
		return "found that it is not valid", true
	}
	return "succeeded", false
}
