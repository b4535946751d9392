// Uploads: sessions with a `_state` that changes with every answer. One whose body breaks off is gone and cannot be
// resumed; `Content-Range` is `0-N`, not the form of RFC 9110.
package main

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

type upload struct {
	id, repository string
	started        time.Time
	path           string

	// mu is held as long as a request works on the upload; who comes second finds that the state has changed.
	mu    sync.Mutex
	state string
	gone  bool
	// killed may be set without the lock; who works on the upload finds out at the end.
	killed atomic.Bool
	file   *os.File
	size   int64
	hash   hash.Hash
}

var errBroken = errors.New("the request's body broke off")

// uploads are the open sessions.
type uploads struct {
	mu   sync.Mutex
	open map[string]*upload
}

func (u *uploads) find(repository, id string) *upload {
	u.mu.Lock()
	defer u.mu.Unlock()
	if session := u.open[id]; session != nil && session.repository == repository {
		return session
	}
	return nil
}

func (u *uploads) count() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.open)
}

// end forgets a session; its file goes too unless it has become a blob. The session's lock is held.
func (u *uploads) end(session *upload) {
	session.gone = true
	_ = session.file.Close()
	_ = os.Remove(session.path)
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.open, session.id)
}

// killAll ends every session, as the registry does with those that it has lost.
func (u *uploads) killAll() {
	u.mu.Lock()
	list := slices.Collect(maps.Values(u.open))
	u.mu.Unlock()
	for _, session := range list {
		session.killed.Store(true)
		if session.mu.TryLock() {
			if !session.gone {
				u.end(session)
			}
			session.mu.Unlock()
		}
	}
}

func (s *server) newUpload(repository string) (*upload, error) {
	session := &upload{id: uuid(), repository: repository, started: time.Now().UTC(), hash: sha256.New()}
	session.path = filepath.Join(s.root, "uploads", session.id)
	var err error
	if session.file, err = os.OpenFile(session.path, os.O_CREATE|os.O_RDWR, 0o644); err != nil {
		return nil, err
	}
	s.uploads.mu.Lock()
	defer s.uploads.mu.Unlock()
	s.uploads.open[session.id] = session
	return session, nil
}

// rotate makes a new state: 32 bytes that authenticate it, then what it stands for.
func (u *upload) rotate() {
	text, err := json.Marshal(struct {
		Name, UUID string
		Offset     int64
		StartedAt  time.Time
	}{u.repository, u.id, u.size, u.started})
	if err != nil {
		panic(err)
	}
	state := make([]byte, 32, 32+len(text))
	_, _ = rand.Read(state) // never fails
	u.state = base64.URLEncoding.EncodeToString(append(state, text...))
}

// describe sets the headers of an answer about a session that goes on.
func (u *upload) describe(h http.Header) {
	u.rotate()
	h.Set("Location", "/v2/"+u.repository+"/blobs/uploads/"+u.id+"?_nouploadcache=false&_state="+url.QueryEscape(u.state))
	h.Set("Docker-Upload-Uuid", u.id)
	h.Set("Range", "0-"+strconv.FormatInt(max(u.size-1, 0), 10))
}

// receive appends the body. An error of the body is not one of the disk.
func (u *upload) receive(body io.Reader) error {
	source := &watched{Reader: body}
	n, err := io.Copy(io.MultiWriter(u.file, u.hash), source)
	u.size += n
	if source.err != nil {
		return errBroken
	}
	return err
}

// watched remembers that reading failed.
type watched struct {
	io.Reader
	err error
}

func (w *watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if err != nil && err != io.EOF {
		w.err = err
	}
	return n, err
}

// digest is the digest of what is there, by the algorithm of the one that the client says.
func (u *upload) digest(said string) (string, error) {
	if !strings.HasPrefix(said, "sha512:") {
		return fmt.Sprintf("sha256:%x", u.hash.Sum(nil)), nil
	}
	h := sha512.New()
	if _, err := io.Copy(h, io.NewSectionReader(u.file, 0, u.size)); err != nil {
		return "", err
	}
	return fmt.Sprintf("sha512:%x", h.Sum(nil)), nil
}

func (s *server) upload(a *answer, r *http.Request, name, id string) {
	query := r.URL.Query()
	wants := inRepository(name, "pull", "push")
	from := query.Get("from")
	mounting := id == "" && r.Method == http.MethodPost && query.Get("mount") != "" && validName(from)
	if mounting && from != name {
		// To mount takes the right to pull from there as well.
		wants = wants.and(inRepository(from, "pull"))
	}
	if _, in := s.authorize(a, r, wants); !in {
		return
	}
	if failed := s.store.open(name, true); failed != nil {
		failed.write(a)
		return
	}
	if id == "" {
		if r.Method != http.MethodPost {
			unsupported().write(a)
			return
		}
		if mounting && s.store.mount(name, from, query.Get("mount")) {
			s.created(a, name, query.Get("mount"))
			return
		}
		s.startUpload(a, r, name, query.Get("digest"))
		return
	}
	session := s.uploads.find(name, id)
	if session == nil {
		uploadInvalid().write(a)
		return
	}
	session.mu.Lock()
	defer session.mu.Unlock()
	if session.gone || session.killed.Load() || session.state != query.Get("_state") {
		uploadInvalid().write(a)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		session.describe(a.Header())
		empty(a, http.StatusNoContent)
	case http.MethodPatch:
		if failed := session.inOrder(r); failed != nil {
			failed.write(a)
			return
		}
		if s.received(a, r, session) {
			session.describe(a.Header())
			empty(a, http.StatusAccepted)
		}
	case http.MethodPut:
		s.finishUpload(a, r, session, query.Get("digest"))
	case http.MethodDelete:
		s.uploads.end(session)
		empty(a, http.StatusNoContent)
	default:
		unsupported().write(a)
	}
}

// startUpload opens a session, or takes a whole blob in one POST.
func (s *server) startUpload(a *answer, r *http.Request, name, digest string) {
	session, err := s.newUpload(name)
	if err != nil {
		fails(http.StatusInternalServerError, "UNKNOWN", "unknown error").with(err.Error()).write(a)
		return
	}
	session.mu.Lock()
	defer session.mu.Unlock()
	// A digest without a body only announces, except that of no bytes.
	if digest != "" && (r.ContentLength != 0 || digest == digestLike(digest, nil)) {
		s.finishUpload(a, r, session, digest)
		return
	}
	session.describe(a.Header())
	empty(a, http.StatusAccepted)
}

var contentRange = regexp.MustCompile(`^(\d+)-(\d+)$`)

// inOrder checks Content-Range, if there is one, against what has come in so far.
func (u *upload) inOrder(r *http.Request) *failure {
	text := r.Header.Get("Content-Range")
	if text == "" {
		return nil
	}
	parts := contentRange.FindStringSubmatch(text)
	if parts == nil {
		return fails(http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "the Content-Range header format is invalid")
	}
	first, err1 := strconv.ParseInt(parts[1], 10, 64)
	last, err2 := strconv.ParseInt(parts[2], 10, 64)
	if errors.Join(err1, err2) != nil || last < first || r.ContentLength >= 0 && r.ContentLength != last-first+1 {
		return fails(http.StatusBadRequest, "SIZE_INVALID", "provided length did not match content length")
	}
	if first != u.size {
		return fails(http.StatusRequestedRangeNotSatisfiable, "RANGE_INVALID", "invalid content range")
	}
	return nil
}

// received takes the body; if it breaks off, the session is gone.
func (s *server) received(a *answer, r *http.Request, session *upload) bool {
	err := session.receive(r.Body)
	if err == nil && !session.killed.Load() {
		return true
	}
	s.uploads.end(session)
	if err == nil {
		uploadInvalid().write(a)
		return false
	}
	if errors.Is(err, errBroken) {
		fails(http.StatusBadRequest, "BLOB_UPLOAD_INVALID", "blob upload invalid").write(a)
	} else {
		fails(http.StatusInternalServerError, "UNKNOWN", "unknown error").with(err.Error()).write(a)
	}
	return false
}

func (s *server) finishUpload(a *answer, r *http.Request, session *upload, said string) {
	if said == "" || !digestPattern.MatchString(said) {
		digestInvalid("provided digest is missing or not valid").write(a)
		if session.state == "" { // a POST that opened it: nobody knows of it
			s.uploads.end(session)
		}
		return
	}
	if failed := session.inOrder(r); failed != nil {
		failed.write(a)
		return
	}
	if !s.received(a, r, session) {
		return
	}
	defer s.uploads.end(session)
	digest, err := session.digest(said)
	if err == nil && digest != said {
		digestInvalid("provided digest did not match uploaded content").with(map[string]string{"provided": said, "computed": digest}).write(a)
		return
	}
	if err == nil {
		err = s.store.keepBlob(session.repository, digest, session.path, session.size)
	}
	if err != nil {
		fails(http.StatusInternalServerError, "UNKNOWN", "unknown error").with(err.Error()).write(a)
		return
	}
	s.created(a, session.repository, digest)
}

func (s *server) created(a *answer, name, digest string) {
	a.Header().Set("Location", "/v2/"+name+"/blobs/"+digest)
	a.Header().Set("Docker-Content-Digest", digest)
	empty(a, http.StatusCreated)
}
