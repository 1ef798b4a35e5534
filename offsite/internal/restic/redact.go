package restic

import (
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// userinfo matches the credentials in a URL.
var userinfo = regexp.MustCompile(`(://[^/\s:@"']*):[^/\s@"']+@`)

// passwordIn matches the same in a location, and its group is the password. One with
// a slash should be escaped; if it is not, restic still says what it has read. So a
// port is taken for a password if there is an @ further on.
var passwordIn = regexp.MustCompile(`://[^/\s:@"']*:([^\s"']+)@`)

// secretName matches the names of variables whose values are secret. Those of
// files are not: the name of a file helps whoever has to look.
var secretName = regexp.MustCompile(`(?i)(PASS|PASSWORD|PASSWD|PASSPHRASE|SECRET|TOKEN|KEY|KEY_ID|SAS|PASSWORD_COMMAND|CREDENTIAL_SECRET|CREDENTIAL_ID)$`)

// ofBackends matches the names of variables that restic and its backends read.
// Others of this process are not restic's, and their values may be common words.
var ofBackends = regexp.MustCompile(`^(RESTIC|AWS|AZURE|B2|GOOGLE|OS|ST|RCLONE|HTTP|HTTPS)_`)

// A redactor replaces credentials by ***.
type redactor struct{ secrets []string }

// newRedactor returns one for restic's environment, of which own are the
// caller's variables, and the location of the repository.
func newRedactor(env, own []string, location string) *redactor {
	r := &redactor{}
	for _, entry := range env {
		name, value, _ := strings.Cut(entry, "=")
		if secretName.MatchString(name) && (ofBackends.MatchString(name) || slices.Contains(own, entry)) {
			r.add(value)
		}
	}
	if found := passwordIn.FindStringSubmatch(location); found != nil {
		password := found[1]
		r.add(password)
		if plain, err := url.PathUnescape(password); err == nil {
			r.add(plain)
		}
		for _, piece := range strings.FieldsFunc(password, func(c rune) bool { return strings.ContainsRune("/:@", c) }) {
			r.add(piece) // a parser of URLs ends the host there, and complains of that piece
		}
	}
	// A secret that contains another one goes first, or its rest would be left.
	slices.SortFunc(r.secrets, func(a, b string) int { return len(b) - len(a) })
	return r
}

func (r *redactor) add(secret string) {
	// Shorter ones would be found in common words.
	if len(secret) >= 4 {
		r.secrets = append(r.secrets, secret)
		if escaped := url.QueryEscape(secret); escaped != secret {
			r.secrets = append(r.secrets, escaped)
		}
	}
}

// clean returns text without credentials.
func (r *redactor) clean(text string) string {
	for _, secret := range r.secrets {
		text = strings.ReplaceAll(text, secret, "***")
	}
	return userinfo.ReplaceAllString(text, "$1:***@")
}
