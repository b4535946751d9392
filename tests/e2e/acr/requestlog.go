// Request log: every request as it came in and what became of it, in memory, as lines of JSON, and as access-log lines.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// entry is one request. Header names are as Go's server gives them (canonical), values as they were sent.
type entry struct {
	Number           int         `json:"number"`
	Time             time.Time   `json:"time"`
	Listener         string      `json:"listener"`
	Class            string      `json:"class"`
	Remote           string      `json:"remote"`
	Method           string      `json:"method"`
	URI              string      `json:"uri"`
	Protocol         string      `json:"protocol"`
	Host             string      `json:"host"`
	Headers          http.Header `json:"headers"`
	ContentLength    int64       `json:"content_length"`
	TransferEncoding []string    `json:"transfer_encoding,omitempty"`
	BytesIn          int64       `json:"bytes_in"`
	// User is whose credentials or token came along, as far as they were good.
	User          string      `json:"user,omitempty"`
	Status        int         `json:"status"`
	AnswerHeaders http.Header `json:"answer_headers,omitempty"`
	BytesOut      int64       `json:"bytes_out"`
	Milliseconds  float64     `json:"milliseconds"`
	Fault         int         `json:"fault,omitempty"`
	// Cut: a fault ended the connection. Aborted: a body broke off, whosoever's doing.
	Cut     bool `json:"cut,omitempty"`
	Aborted bool `json:"aborted,omitempty"`
}

// counters are sums since the start or the last clearing.
type counters struct {
	InFlight int `json:"in_flight"`
	// Requests by listener, then by "METHOD class".
	Requests map[string]map[string]int `json:"requests"`
	Statuses map[string]map[int]int    `json:"statuses"`
	BytesIn  map[string]int64          `json:"bytes_in"`
	BytesOut map[string]int64          `json:"bytes_out"`
	// AuthorizationAtStorage counts requests that brought Authorization to the storage listener.
	AuthorizationAtStorage int            `json:"authorization_at_storage"`
	Tokens                 map[string]int `json:"tokens_issued"`
	OpenUploads            int            `json:"open_uploads"`
}

func newCounters() counters {
	return counters{Requests: map[string]map[string]int{}, Statuses: map[string]map[int]int{}, BytesIn: map[string]int64{}, BytesOut: map[string]int64{}}
}

type requestLog struct {
	mu       sync.Mutex
	number   int
	inFlight int
	entries  []*entry
	counters counters
	file     *os.File
	access   io.Writer
}

func newRequestLog(path string, access io.Writer) (*requestLog, error) {
	l := &requestLog{counters: newCounters(), access: access}
	if path == "" {
		return l, nil
	}
	var err error
	l.file, err = os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	return l, err
}

func (l *requestLog) begin(listener string, r *http.Request) *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	class := listener
	if listener == "registry" {
		class = parseRoute(r.URL.EscapedPath()).class
	}
	l.number++
	l.inFlight++
	return &entry{Number: l.number, Time: time.Now(), Listener: listener, Class: class, Remote: r.RemoteAddr, Method: r.Method, URI: r.RequestURI,
		Protocol: r.Proto, Host: r.Host, Headers: r.Header.Clone(), ContentLength: r.ContentLength, TransferEncoding: r.TransferEncoding}
}

func (l *requestLog) end(e *entry) {
	e.Milliseconds = float64(time.Since(e.Time).Microseconds()) / 1000
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inFlight--
	l.entries = append(l.entries, e)
	c := &l.counters
	if c.Requests[e.Listener] == nil {
		c.Requests[e.Listener], c.Statuses[e.Listener] = map[string]int{}, map[int]int{}
	}
	c.Requests[e.Listener][e.Method+" "+e.Class]++
	c.Statuses[e.Listener][e.Status]++
	c.BytesIn[e.Listener] += e.BytesIn
	c.BytesOut[e.Listener] += e.BytesOut
	if e.Listener == "storage" && len(e.Headers["Authorization"]) > 0 {
		c.AuthorizationAtStorage++
	}
	fmt.Fprintf(l.access, "%s - %s [%s] %q %d %d %q %q\n", e.Remote, orDash(e.User), time.Now().Format("02/Jan/2006:15:04:05 -0700"),
		e.Method+" "+e.URI+" "+e.Protocol, e.Status, e.BytesOut, e.Headers.Get("Referer"), e.Headers.Get("User-Agent"))
	if l.file != nil {
		if text, err := json.Marshal(e); err == nil {
			_, _ = l.file.Write(append(text, '\n'))
		}
	}
}

// list is the log so far, oldest first.
func (l *requestLog) list() []*entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*entry{}, l.entries...)
}

// clear forgets entries and counters; requests under way are counted when they end.
func (l *requestLog) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.entries, l.counters = nil, newCounters()
}

// sums is a copy of the counters as text: they hold maps that go on changing.
func (l *requestLog) sums(more func(*counters)) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := l.counters
	c.InFlight = l.inFlight
	more(&c)
	return json.MarshalIndent(c, "", "  ")
}

// settle waits until no request is under way: a client may have its answer before the log has the request.
func (l *requestLog) settle(ctx context.Context) {
	for {
		l.mu.Lock()
		busy := l.inFlight
		l.mu.Unlock()
		if busy == 0 {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(2 * time.Millisecond):
		}
	}
}

func (l *requestLog) close() {
	if l.file != nil {
		_ = l.file.Close()
	}
}

func orDash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}
