package main

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	// piece is what one connection puts on the link before the next one's turn.
	piece = 16 << 10
	// lag is how late a busy machine may be without the link losing its rate. A link that was idle for longer has
	// saved nothing up: a short answer takes the time that its bytes take.
	lag = 25 * time.Millisecond
	// sendBuffer is asked of the kernel, which takes twice as much, its own structures included.
	sendBuffer = 32 << 10
)

// pace hands out the time of a link in the order of asking; nil has no limit.
type pace struct {
	perByte float64 // nanoseconds
	lock    sync.Mutex
	next    time.Time
}

func newPace(bitsPerSecond int64) *pace {
	if bitsPerSecond == 0 {
		return nil
	}
	return &pace{perByte: 8e9 / float64(bitsPerSecond)}
}

// wait returns when the bytes have their turn.
func (p *pace) wait(bytes int) {
	if p == nil {
		return
	}
	p.lock.Lock()
	now := time.Now()
	if now.Sub(p.next) > lag {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(bytes) * p.perByte))
	turn := p.next
	p.lock.Unlock()
	time.Sleep(turn.Sub(now))
}

// shape is what the link does to every connection.
type shape struct {
	total         *pace
	perConnection int64
	latency       time.Duration
	cut           int64
	reset         bool
}

// listener makes its connections those of the link.
type listener struct {
	net.Listener
	shape *shape
	count *atomic.Int64
}

func (l listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	l.count.Add(1)
	tcp := accepted.(*net.TCPConn)
	if err := tcp.SetWriteBuffer(sendBuffer); err != nil {
		return nil, err
	}
	return &connection{Conn: tcp, tcp: tcp, shape: l.shape, own: newPace(l.shape.perConnection)}, nil
}

// connection is shaped from upstream to client only.
type connection struct {
	// Without the methods of a TCPConn by which whole files would get round the shape.
	net.Conn
	tcp   *net.TCPConn
	shape *shape
	own   *pace
	setUp sync.Once
	// body counts the bytes of bodies that it has carried; only the handler of its one request at a time uses it.
	body int64
}

// Read has the first request wait for the set-up of the connection.
func (c *connection) Read(p []byte) (int, error) {
	c.setUp.Do(func() { time.Sleep(c.shape.latency) })
	return c.tcp.Read(p)
}

func (c *connection) Write(p []byte) (int, error) {
	written := 0
	for written < len(p) {
		next := p[written:min(written+piece, len(p))]
		c.own.wait(len(next))
		c.shape.total.wait(len(next))
		n, err := c.tcp.Write(next)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// unsent is what the client's side has not confirmed yet.
func (c *connection) unsent() int64 {
	raw, err := c.tcp.SyscallConn()
	if err != nil {
		return 0
	}
	var queued int32
	_ = raw.Control(func(fd uintptr) {
		_, _, _ = syscall.Syscall(syscall.SYS_IOCTL, fd, syscall.TIOCOUTQ, uintptr(unsafe.Pointer(&queued)))
	})
	return int64(queued)
}

// sever ends the connection in the middle of a body, when all that was written has arrived: the figures say what went
// over the link, and a reset would take back what is still under way.
func (c *connection) sever() {
	for deadline := time.Now().Add(5 * time.Second); c.unsent() > 0 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	if c.shape.reset {
		_ = c.tcp.SetLinger(0)
	}
	_ = c.tcp.Close()
}

type connectionKey struct{}

func withConnection(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, c)
}
