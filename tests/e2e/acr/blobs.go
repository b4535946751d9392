// Blobs: HEAD, DELETE, and GET, which redirects to storage or answers small ones itself.
package main

import (
	"html"
	"net/http"
	"os"
	"strconv"
	"time"
)

func (s *server) blob(a *answer, r *http.Request, name, digest string) {
	wants := inRepository(name, "pull")
	if r.Method == http.MethodDelete {
		wants = inRepository(name, "delete")
	}
	if _, in := s.authorize(a, r, wants); !in {
		return
	}
	if !digestPattern.MatchString(digest) {
		digestInvalid("provided digest is not valid").write(a)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		s.getBlob(a, r, name, digest)
	case http.MethodDelete:
		if failed := s.store.deleteBlob(name, digest); failed != nil {
			failed.write(a)
			return
		}
		a.Header().Set("Docker-Content-Digest", digest)
		empty(a, http.StatusAccepted)
	default:
		unsupported().write(a)
	}
}

func (s *server) getBlob(a *answer, r *http.Request, name, digest string) {
	failed := s.store.open(name, false)
	size, there := s.store.blobSize(name, digest)
	if failed == nil && !there {
		failed = blobUnknown(digest)
	}
	if failed != nil {
		failed.write(a)
		return
	}
	current := s.settings.get()
	a.Header().Set("Docker-Content-Digest", digest)
	if size >= current.RedirectMin && (r.Method == http.MethodGet || current.RedirectHead) {
		location := s.storageURL(digest, current, time.Now())
		text := `<a href="` + html.EscapeString(location) + `">Temporary Redirect</a>.` + "\n\n"
		a.Header().Set("Location", location)
		a.Header().Set("Content-Type", "text/html; charset=utf-8")
		a.Header().Set("Content-Length", strconv.Itoa(len(text)))
		a.WriteHeader(http.StatusTemporaryRedirect)
		_, _ = a.Write([]byte(text))
		return
	}
	file, err := os.Open(s.store.blobPath(digest))
	if err != nil {
		fails(http.StatusInternalServerError, "UNKNOWN", "unknown error").with(err.Error()).write(a)
		return
	}
	defer file.Close()
	a.Header().Set("Content-Type", "application/octet-stream")
	a.Header()["Etag"] = []string{`"` + digest + `"`}
	http.ServeContent(a, r, "", time.Time{}, file)
}
