// Answer: the ResponseWriter of every request. It counts for the log, and carries out the fault that hit the request.
package main

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
	"unsafe"
)

var errCut = errors.New("the connection was cut by a fault")

// answer is the way out of one request.
type answer struct {
	http.ResponseWriter
	request *http.Request
	fault   *fault // never nil; an empty one does nothing
	entry   *entry
	written int64 // of the body, as the handler sees it
	cut     bool
	started time.Time
	stalled bool
}

// observed is what stands before a listener's handler: log, counters, faults.
func (s *server) observed(listener string, handler func(*answer, *http.Request)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entry := s.requests.begin(listener, r)
		defer s.requests.end(entry)
		a := &answer{ResponseWriter: w, request: r, entry: entry, fault: &fault{}, started: time.Now()}
		if f := s.faults.hit(listener, r); f != nil {
			a.fault, entry.Fault = f, f.ID
		}
		r.Body = &body{ReadCloser: r.Body, answer: a}
		if !a.before(s.faults) {
			return
		}
		handler(a, r)
		a.finish()
	})
}

// before does what a fault does ahead of the work, and says whether the work is to be done.
func (a *answer) before(list *faults) bool {
	f, gone := a.fault, a.request.Context().Done()
	if f.Hold {
		list.waiting(f, 1)
		select {
		case <-f.released:
		case <-gone:
		}
		list.waiting(f, -1)
	}
	if f.StallSeconds > 0 && f.StallAt == nil {
		select {
		case <-time.After(seconds(f.StallSeconds)):
		case <-f.released:
		case <-gone:
		}
	}
	if f.Reset {
		a.reset()
		return false
	}
	if f.Status != 0 {
		if f.ReadBody {
			_, _ = io.Copy(io.Discard, a.request.Body)
		}
		for name, value := range f.Headers {
			a.Header().Set(name, value)
		}
		switch {
		case f.Body != nil:
			a.Header().Set("Content-Length", strconv.Itoa(len(*f.Body)))
			a.WriteHeader(f.Status)
			_, _ = io.WriteString(a, *f.Body)
		case f.Code != "":
			(&failure{status: f.Status, code: f.Code, message: f.Message}).write(a)
		default:
			a.Header().Set("Content-Length", "0")
			a.WriteHeader(f.Status)
		}
		a.finish()
		return false
	}
	return true
}

// finish ends a request that was answered, or should have been.
func (a *answer) finish() {
	f := a.fault
	if a.cut {
		return
	}
	if f.LoseAnswer {
		a.reset()
		return
	}
	// Nothing came of a body: the reset at its start is still owed.
	if f.ResetResponseAt != nil && a.written == 0 && *f.ResetResponseAt == 0 {
		a.push()
		a.reset()
	}
}

func (a *answer) WriteHeader(status int) {
	if a.entry.Status == 0 {
		a.entry.Status = status
		a.entry.AnswerHeaders = a.Header().Clone()
	}
	if a.fault.LoseAnswer || a.cut {
		return
	}
	if at := a.fault.ShortAt; at != nil {
		if length, err := strconv.ParseInt(a.Header().Get("Content-Length"), 10, 64); err == nil && *at < length {
			a.Header().Set("Content-Length", strconv.FormatInt(*at, 10))
		}
	}
	a.ResponseWriter.WriteHeader(status)
}

// Write passes the body on, in as many parts as the fault needs. Its count is what the handler handed over.
func (a *answer) Write(p []byte) (int, error) {
	if a.entry.Status == 0 {
		a.WriteHeader(http.StatusOK)
	}
	if a.request.Method == http.MethodHead {
		return len(p), nil
	}
	f, taken := a.fault, len(p)
	for len(p) > 0 {
		if a.cut {
			return 0, errCut
		}
		if f.LoseAnswer || f.ShortAt != nil && a.written >= *f.ShortAt {
			a.written += int64(len(p))
			return taken, nil
		}
		if f.ResetResponseAt != nil && a.written >= *f.ResetResponseAt {
			a.push()
			a.reset()
			return 0, errCut
		}
		if f.TruncateAt != nil && a.written >= *f.TruncateAt {
			a.push()
			a.hangUp()
			return 0, errCut
		}
		if f.StallAt != nil && !a.stalled && a.written >= *f.StallAt {
			a.stalled = true
			a.push()
			select {
			case <-time.After(seconds(f.StallSeconds)):
			case <-f.released:
			case <-a.request.Context().Done():
			}
		}
		part := p
		for _, at := range []*int64{f.ShortAt, f.ResetResponseAt, f.TruncateAt, f.StallAt} {
			if at != nil && a.written < *at && *at-a.written < int64(len(part)) {
				part = part[:*at-a.written]
			}
		}
		if rate := f.BytesPerSecond; rate > 0 && int64(len(part)) > max(rate/20, 1) {
			part = part[:max(rate/20, 1)]
		}
		out := part
		if at := f.FlipAt; at != nil && a.written <= *at && *at < a.written+int64(len(part)) {
			out = append([]byte(nil), part...)
			out[*at-a.written] ^= 0xff
		}
		n, err := a.ResponseWriter.Write(out)
		a.written += int64(n)
		a.entry.BytesOut += int64(n)
		if err != nil {
			a.entry.Aborted = true
			return taken - len(p) + n, err
		}
		p = p[n:]
		if f.BytesPerSecond > 0 {
			a.push()
			pace(a.started, a.written, f.BytesPerSecond, a.request.Context().Done(), f.released)
		}
	}
	// The cut stands right behind the last byte too.
	if f.ResetResponseAt != nil && a.written == *f.ResetResponseAt && !a.cut {
		a.push()
		a.reset()
	}
	return taken, nil
}

// push sends what is buffered.
func (a *answer) push() {
	if flusher, can := a.ResponseWriter.(http.Flusher); can {
		flusher.Flush()
	}
}

// Flush makes an answer without Content-Length a chunked one.
func (a *answer) Flush() {
	if !a.fault.LoseAnswer && !a.cut {
		a.push()
	}
}

// reset ends the connection so that the other side gets an RST. What was sent before arrives first.
func (a *answer) reset() {
	if connection := a.takeOver(); connection != nil {
		awaitSent(connection)
		_ = connection.SetLinger(0)
		_ = connection.Close()
	}
}

// hangUp ends the connection in the ordinary way, in the middle of an answer.
func (a *answer) hangUp() {
	if connection := a.takeOver(); connection != nil {
		_ = connection.Close()
	}
}

func (a *answer) takeOver() *net.TCPConn {
	if a.cut {
		return nil
	}
	a.cut, a.entry.Cut = true, true
	hijacker, can := a.ResponseWriter.(http.Hijacker)
	if !can {
		return nil
	}
	connection, _, err := hijacker.Hijack()
	if err != nil {
		return nil
	}
	if encrypted, is := connection.(interface{ NetConn() net.Conn }); is {
		connection = encrypted.NetConn()
	}
	tcp, _ := connection.(*net.TCPConn)
	return tcp
}

// awaitSent waits until the kernel has handed over what was written (a reset would throw it away), two seconds at most.
func awaitSent(connection *net.TCPConn) {
	raw, err := connection.SyscallConn()
	if err != nil {
		return
	}
	for range 400 {
		queued := int32(0)
		_ = raw.Control(func(fd uintptr) {
			_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&queued)))
		})
		if queued <= 0 {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// body is the request's: counted, slowed, cut. It remembers when it broke.
type body struct {
	io.ReadCloser
	answer *answer
	read   int64
}

func (b *body) Read(p []byte) (int, error) {
	a, f := b.answer, b.answer.fault
	if at := f.ResetRequestAt; at != nil {
		if b.read >= *at {
			a.reset()
			a.entry.Aborted = true
			return 0, errCut
		}
		p = p[:min(int64(len(p)), *at-b.read)]
	}
	if rate := f.ReadBytesPerSecond; rate > 0 {
		p = p[:min(int64(len(p)), max(rate/20, 1))]
		defer func() { pace(a.started, b.read, rate, a.request.Context().Done(), f.released) }()
	}
	n, err := b.ReadCloser.Read(p)
	b.read += int64(n)
	a.entry.BytesIn += int64(n)
	if err != nil && err != io.EOF {
		a.entry.Aborted = true
	}
	return n, err
}

// pace waits until as many bytes were due.
func pace(started time.Time, bytes, rate int64, gone, released <-chan struct{}) {
	due := started.Add(seconds(float64(bytes) / float64(rate)))
	select {
	case <-time.After(time.Until(due)):
	case <-released:
	case <-gone:
	}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
