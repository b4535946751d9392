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

// route is where a request on the registry's listener goes.
type route struct {
	class string // of the log; "other" is no route
	name  string // the repository's
	last  string // tag, digest, upload, OAuth endpoint
	rest  []string
}

func parseRoute(path string) route {
	segments, good := split(path)
	switch {
	case !good || len(segments) < 2:
	case segments[0] == "oauth2" && len(segments) == 2:
		return route{class: map[bool]string{true: "exchange", false: "token"}[segments[1] == "exchange"], last: segments[1]}
	case segments[0] == "v2":
		return distributionRoute(segments[1:])
	case segments[0] == "acr" && segments[1] == "v1" && len(segments) == 3 && segments[2] == "_catalog":
		return route{class: "catalog", last: "/acr/v1/_catalog"}
	case segments[0] == "acr" && segments[1] == "v1" && len(segments) > 2:
		return route{class: "metadata", rest: segments[2:]}
	}
	return route{class: "other"}
}

// distributionRoute knows the endpoints of the OCI distribution spec. What is no name is no route.
func distributionRoute(segments []string) route {
	last := segments[len(segments)-1]
	before := func(n int) string {
		if len(segments) < n+2 {
			return ""
		}
		return segments[len(segments)-1-n]
	}
	found, tailed := route{class: "other", last: last}, 2
	switch {
	case len(segments) == 1 && last == "":
		return route{class: "ping"}
	case len(segments) == 1 && last == "_catalog":
		return route{class: "catalog", last: "/v2/_catalog"}
	case before(1) == "tags" && last == "list":
		found.class = "tags"
	case before(1) == "manifests":
		found.class = "manifest"
	case before(1) == "referrers":
		found.class = "referrers"
	case before(2) == "blobs" && before(1) == "uploads":
		found.class, tailed = "upload", 3
	case before(1) == "blobs" && last == "uploads":
		found.class, found.last = "upload", ""
	case before(1) == "blobs":
		found.class = "blob"
	}
	found.name, _ = tail(segments, tailed)
	if !validName(found.name) {
		return route{class: "other"}
	}
	return found
}

func (s *server) serveRegistry(a *answer, r *http.Request) {
	to := parseRoute(r.URL.EscapedPath())
	if to.class == "token" || to.class == "exchange" {
		s.serveOAuth(a, r, to.last)
		return
	}
	registryHeaders(a.Header(), r)
	switch to.class {
	case "ping":
		if _, in := s.authorize(a, r, needs{}); in {
			writeJSON(a, http.StatusOK, map[string]any{})
		}
	case "catalog":
		s.catalog(a, r, to.last)
	case "tags":
		s.listTags(a, r, to.name)
	case "manifest":
		s.manifest(a, r, to.name, to.last)
	case "referrers":
		s.referrers(a, r, to.name, to.last)
	case "upload":
		s.upload(a, r, to.name, to.last)
	case "blob":
		s.blob(a, r, to.name, to.last)
	case "metadata":
		s.serveMetadata(a, r, to.rest)
	default:
		notFound(a) // and nobody asks for credentials
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

func notFound(w http.ResponseWriter) { http.Error(w, "404 page not found", http.StatusNotFound) }
