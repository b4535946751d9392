// Routes of the registry's listener. Names and digests may be percent-encoded, in one segment or in several, so paths
// are split as they were sent and decoded after that.
package main

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"
)

// The grammar of the OCI distribution spec for names, references and digests.
var (
	namePattern   = regexp.MustCompile(`^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*$`)
	tagPattern    = regexp.MustCompile(`^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$`)
	digestPattern = regexp.MustCompile(`^(sha256:[a-f0-9]{64}|sha512:[a-f0-9]{128})$`)
)

// validName is the name's grammar with ACR's limits: no upper case, 256 characters.
func validName(name string) bool { return len(name) <= 256 && namePattern.MatchString(name) }

func (s *server) serveRegistry(a *answer, r *http.Request) {
	segments, good := split(r.URL.EscapedPath())
	switch {
	case !good || len(segments) < 2:
		notFound(a)
	case segments[0] == "oauth2" && len(segments) == 2:
		s.serveOAuth(a, r, segments[1])
	case segments[0] == "v2":
		registryHeaders(a.Header(), r)
		s.serveDistribution(a, r, segments[1:])
	case segments[0] == "acr" && segments[1] == "v1" && len(segments) > 2:
		registryHeaders(a.Header(), r)
		s.serveMetadata(a, r, segments[2:])
	default:
		notFound(a)
	}
}

// split decodes a path's segments, and splits those again that held an encoded slash.
func split(path string) ([]string, bool) {
	segments := []string{}
	for _, raw := range strings.Split(strings.TrimPrefix(path, "/"), "/") {
		text, err := url.PathUnescape(raw)
		if err != nil {
			return nil, false
		}
		segments = append(segments, strings.Split(text, "/")...)
	}
	return segments, true
}

// tail splits segments into a repository's name and the last n of them.
func tail(segments []string, n int) (string, []string) {
	at := max(len(segments)-n, 0)
	return strings.Join(segments[:at], "/"), segments[at:]
}

func (s *server) serveDistribution(a *answer, r *http.Request, segments []string) {
	last := segments[len(segments)-1]
	before := func(n int) string {
		if len(segments) < n+2 {
			return ""
		}
		return segments[len(segments)-1-n]
	}
	class, name := "", ""
	switch {
	case len(segments) == 1 && last == "":
		a.entry.Class = "ping"
		if _, in := s.authorize(a, r, needs{}); in {
			writeJSON(a, http.StatusOK, map[string]any{})
		}
		return
	case len(segments) == 1 && last == "_catalog":
		s.catalog(a, r, "/v2/_catalog")
		return
	case before(1) == "tags" && last == "list":
		class = "tags"
		name, _ = tail(segments, 2)
	case before(1) == "manifests":
		class = "manifest"
		name, _ = tail(segments, 2)
	case before(1) == "referrers":
		class = "referrers"
		name, _ = tail(segments, 2)
	case before(2) == "blobs" && before(1) == "uploads":
		class = "upload"
		name, _ = tail(segments, 3)
	case before(1) == "blobs" && last == "uploads":
		class, last = "upload", ""
		name, _ = tail(segments, 2)
	case before(1) == "blobs":
		class = "blob"
		name, _ = tail(segments, 2)
	}
	// What is no name is no route: nobody asks for credentials.
	if class == "" || !validName(name) {
		notFound(a)
		return
	}
	a.entry.Class = class
	switch class {
	case "tags":
		s.listTags(a, r, name)
	case "manifest":
		s.manifest(a, r, name, last)
	case "referrers":
		s.referrers(a, r, name, last)
	case "upload":
		s.upload(a, r, name, last)
	case "blob":
		s.blob(a, r, name, last)
	}
}

func notFound(w http.ResponseWriter) { http.Error(w, "404 page not found", http.StatusNotFound) }
