// Faults: what shall go wrong with which requests, set by the control listener and used up by requests.
package main

import (
	"fmt"
	"net/http"
	"regexp"
	"sync"
)

// fault says which requests it hits and what becomes of them. Several effects may stand together. Offsets count bytes of
// a body.
type fault struct {
	ID int `json:"id"`

	// Listener is "registry", "storage" or "cloud"; empty: any of them. Method and Path are regular expressions, Path
	// on the request URI as it was sent, with its query.
	Listener string `json:"listener,omitempty"`
	Method   string `json:"method,omitempty"`
	Path     string `json:"path,omitempty"`
	// Skip lets as many matching requests pass first; then Count of them are hit (0: one, -1: all).
	Skip  int `json:"skip,omitempty"`
	Count int `json:"count,omitempty"`

	// Status is answered without doing any work. The body is Body as it stands, or the error Code with Message.
	Status  int               `json:"status,omitempty"`
	Headers map[string]string `json:"headers,omitempty"`
	Body    *string           `json:"body,omitempty"`
	Code    string            `json:"code,omitempty"`
	Message string            `json:"message,omitempty"`
	// ReadBody takes the request's body before the status is answered.
	ReadBody bool `json:"read_body,omitempty"`

	// Reset cuts the connection (RST) before any work; the other two after so many bytes of a body.
	Reset           bool   `json:"reset,omitempty"`
	ResetResponseAt *int64 `json:"reset_response_at,omitempty"`
	ResetRequestAt  *int64 `json:"reset_request_at,omitempty"`
	// LoseAnswer does the work and cuts the connection instead of answering.
	LoseAnswer bool `json:"lose_answer,omitempty"`

	// Hold keeps the request until POST /control/release (or until the fault is removed).
	Hold bool `json:"hold,omitempty"`
	// StallSeconds waits before the work, or with StallAt after so many bytes of the response's body.
	StallSeconds float64 `json:"stall_seconds,omitempty"`
	StallAt      *int64  `json:"stall_at,omitempty"`

	// TruncateAt closes the connection early (FIN) though Content-Length promised more; ShortAt promises less and keeps it.
	TruncateAt *int64 `json:"truncate_at,omitempty"`
	ShortAt    *int64 `json:"short_at,omitempty"`
	// FlipAt inverts one byte of the response's body.
	FlipAt *int64 `json:"flip_at,omitempty"`
	// BytesPerSecond slows the response's body, ReadBytesPerSecond the reading of the request's.
	BytesPerSecond     int64 `json:"bytes_per_second,omitempty"`
	ReadBytesPerSecond int64 `json:"read_bytes_per_second,omitempty"`

	// Seen, Hits and Waiting are counted: requests that matched, that were hit, that are held right now.
	Seen    int `json:"seen"`
	Hits    int `json:"hits"`
	Waiting int `json:"waiting"`

	method, path *regexp.Regexp
	released     chan struct{}
}

func (f *fault) prepare() (err error) {
	if f.method, err = regexp.Compile("^(?:" + f.Method + ")$"); err != nil {
		return fmt.Errorf("method: %w", err)
	}
	if f.path, err = regexp.Compile(f.Path); err != nil {
		return fmt.Errorf("path: %w", err)
	}
	if f.Count == 0 {
		f.Count = 1
	}
	f.released = make(chan struct{})
	return nil
}

func (f *fault) matches(listener string, r *http.Request) bool {
	return (f.Listener == "" || f.Listener == listener) && (f.Method == "" || f.method.MatchString(r.Method)) &&
		f.path.MatchString(r.RequestURI)
}

// faults are tried in the order in which they were set; a request is hit by one at most.
type faults struct {
	mu   sync.Mutex
	last int
	list []*fault
}

func newFaults() *faults { return &faults{} }

// add takes all of them or none, and returns their numbers.
func (s *faults) add(list []*fault) ([]int, error) {
	for _, f := range list {
		if err := f.prepare(); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := []int{}
	for _, f := range list {
		s.last++
		f.ID = s.last
		f.Seen, f.Hits, f.Waiting = 0, 0, 0
		s.list = append(s.list, f)
		ids = append(ids, f.ID)
	}
	return ids, nil
}

// hit returns the fault that this request runs into, if any.
func (s *faults) hit(listener string, r *http.Request) *fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.list {
		if !f.matches(listener, r) {
			continue
		}
		f.Seen++
		if f.Seen > f.Skip && (f.Count < 0 || f.Hits < f.Count) {
			f.Hits++
			return f
		}
	}
	return nil
}

// snapshot is a copy of the list for the control listener.
func (s *faults) snapshot() []fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	copied := []fault{}
	for _, f := range s.list {
		copied = append(copied, *f)
	}
	return copied
}

// release lets go what the fault holds, now and later; 0 means every fault.
func (s *faults) release(id int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.list {
		if id == 0 || f.ID == id {
			f.free()
		}
	}
}

// free is called with the lock held.
func (f *fault) free() {
	select {
	case <-f.released:
	default:
		close(f.released)
	}
}

// remove takes a fault away and lets go what it holds.
func (s *faults) remove(id int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, f := range s.list {
		if f.ID == id {
			f.free()
			s.list = append(s.list[:i:i], s.list[i+1:]...)
			return true
		}
	}
	return false
}

func (s *faults) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.list {
		f.free()
	}
	s.list = nil
}

// waiting counts a held request in or out.
func (s *faults) waiting(f *fault, change int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f.Waiting += change
}
