// Command mix keeps connections to one server, asks for many things over them or for few things slowly, and prints as
// JSON what it saw. BASE is the URL to which /blobs/DIGEST is appended, FILE has a line "DIGEST SIZE" for each blob.
//
//	mix once -blobs FILE BASE             each blob once, every body hashed; -limit gives up
//	mix zipf -blobs FILE -seconds S BASE  blobs drawn by Zipf's law, the first of the file the most popular; the length of
//	                                      every body is compared, and the digest of one in -sample
//	mix loop -blobs FILE -seconds S BASE  all blobs over and over, each connection from a place of its own on; checked as
//	                                      for zipf; -pace holds all of them together to so many bytes a second
//	mix beat -rate N -seconds S URL       so many requests a second over one connection
//	mix slow -rate BYTES -seconds S URL   every connection reads one large answer at that rate and breaks it off in the end;
//	                                      what it got is compared with the beginning of an answer that was got whole before
//	mix idle URL                          a request on each connection; prints when all are answered, and keeps them open
//	                                      until its standard input ends
//
// It speaks just so much HTTP/1.1 as registries answer with, because on two cores the client's work is the server's loss:
// net/http would take more time than the servers that are measured. An answer without a Content-Length is an error.
package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

var (
	list        = flag.String("blobs", "", "file of the blobs")
	connections = flag.Int("connections", 32, "how many at once")
	duration    = flag.Float64("seconds", 5, "how long")
	limit       = flag.Duration("limit", 15*time.Minute, "once: after this long it gives up; of others, for a single answer")
	exponent    = flag.Float64("s", 1, "zipf: the exponent")
	sample      = flag.Int("sample", 64, "the digest of one answer in so many is compared")
	rate        = flag.Float64("rate", 100, "beat: requests a second; slow: bytes a second of each connection")
	pace        = flag.Float64("pace", 0, "loop: bytes a second of all connections together, 0 for no limit")
	accept      = flag.String("accept", "*/*", "Accept header")
	digest      = flag.String("digest", "", "beat, slow, idle: what every answer's body has to have, sha256:HEX")
)

type blob struct {
	digest string
	size   int64
}

// seen is what came of it.
type seen struct {
	Requests int     `json:"requests"`
	Errors   int     `json:"errors"`
	Error    string  `json:"error,omitempty"`
	Bytes    int64   `json:"bytes"`
	Checked  int     `json:"checked"`
	Seconds  float64 `json:"seconds"`
	Rate     float64 `json:"rate"`
	P50      float64 `json:"p50"`
	P99      float64 `json:"p99"`
	P999     float64 `json:"p999"`
	Max      float64 `json:"max"`
	// times are in milliseconds.
	times []float64
}

func main() {
	if len(os.Args) < 2 {
		log.Fatal("mix: once, zipf, loop, beat, slow or idle?")
	}
	if err := flag.CommandLine.Parse(os.Args[2:]); err != nil || flag.NArg() != 1 {
		log.Fatal("mix: one URL is required")
	}
	target, err := url.Parse(flag.Arg(0))
	if err != nil {
		log.Fatalf("mix: %v", err)
	}
	modes := map[string]func(*url.URL) *seen{"once": once, "zipf": zipf, "loop": loop, "beat": beat, "slow": slow, "idle": idle}
	mode, known := modes[os.Args[1]]
	if !known {
		log.Fatalf("mix: once, zipf, loop, beat, slow or idle, not %q", os.Args[1])
	}
	if err := json.NewEncoder(os.Stdout).Encode(mode(target).summary()); err != nil {
		log.Fatalf("mix: %v", err)
	}
	if os.Args[1] == "idle" {
		_, _ = io.Copy(io.Discard, os.Stdin)
	}
}

func (s *seen) summary() *seen {
	if len(s.times) > 0 {
		slices.Sort(s.times)
		at := func(share float64) float64 { return s.times[min(len(s.times)-1, int(share*float64(len(s.times))))] }
		s.P50, s.P99, s.P999, s.Max = at(0.5), at(0.99), at(0.999), s.times[len(s.times)-1]
	}
	if s.Seconds > 0 {
		s.Rate = float64(s.Requests) / s.Seconds
	}
	return s
}

func (s *seen) add(other *seen) {
	s.Requests += other.Requests
	s.Errors += other.Errors
	s.Bytes += other.Bytes
	s.Checked += other.Checked
	s.times = append(s.times, other.times...)
	if s.Error == "" {
		s.Error = other.Error
	}
}

func (s *seen) wrong(err error) {
	s.Errors++
	if s.Error == "" {
		s.Error = err.Error()
	}
}

// --- a connection ----------------------------------------------------------------------------------------------------

// connection is made when it is first needed, and anew after an error.
type connection struct {
	host    string
	wire    net.Conn
	reader  *bufio.Reader
	buffer  []byte
	receive int
}

func (c *connection) close() {
	if c.wire != nil {
		_ = c.wire.Close()
		c.wire = nil
	}
}

// ask sends a request and reads the head of its answer: the length of the body, and whether the server keeps the connection.
func (c *connection) ask(path string) (length int64, keep bool, err error) {
	if c.wire == nil {
		if c.wire, err = net.DialTimeout("tcp", c.host, 30*time.Second); err != nil {
			c.wire = nil
			return 0, false, err
		}
		if c.receive > 0 {
			_ = c.wire.(*net.TCPConn).SetReadBuffer(c.receive)
		}
		c.reader = bufio.NewReaderSize(c.wire, 4<<10)
	}
	_ = c.wire.SetDeadline(time.Now().Add(*limit))
	if _, err := io.WriteString(c.wire, "GET "+path+" HTTP/1.1\r\nHost: "+c.host+"\r\nUser-Agent: mix\r\nAccept: "+*accept+"\r\n\r\n"); err != nil {
		return 0, false, err
	}
	line, err := c.reader.ReadSlice('\n')
	if err != nil {
		return 0, false, err
	}
	if !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
		return 0, false, fmt.Errorf("%s: %s", path, bytes.TrimSpace(line))
	}
	length, keep = -1, true
	for {
		line, err := c.reader.ReadSlice('\n')
		if err != nil {
			return 0, false, err
		}
		name, value, _ := bytes.Cut(line, []byte{':'})
		if len(bytes.TrimSpace(line)) == 0 {
			break
		}
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if length, err = strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err != nil {
				return 0, false, err
			}
		case bytes.EqualFold(name, []byte("connection")):
			keep = !bytes.EqualFold(bytes.TrimSpace(value), []byte("close"))
		}
	}
	if length < 0 {
		return 0, false, fmt.Errorf("%s: no Content-Length", path)
	}
	return length, keep, nil
}

// get takes a whole answer. A size below 0 may be any, no digest is not compared.
func (c *connection) get(path string, size int64, digest string) (int64, error) {
	length, keep, err := c.ask(path)
	if err == nil && size >= 0 && length != size {
		err = fmt.Errorf("%s: %d bytes, not %d", path, length, size)
	}
	if err == nil {
		err = c.body(length, digest, path)
	}
	if err != nil || !keep {
		c.close()
	}
	return length, err
}

func (c *connection) body(length int64, digest, path string) error {
	if c.buffer == nil {
		c.buffer = make([]byte, 64<<10)
	}
	hash := sha256.New()
	for left := length; left > 0; {
		n, err := c.reader.Read(c.buffer[:min(left, int64(len(c.buffer)))])
		if digest != "" {
			hash.Write(c.buffer[:n])
		}
		left -= int64(n)
		if err != nil && left > 0 {
			return fmt.Errorf("%s: %d bytes are missing: %w", path, left, err)
		}
	}
	if found := "sha256:" + hex.EncodeToString(hash.Sum(nil)); digest != "" && found != digest {
		return fmt.Errorf("%s: the body is %s", path, found)
	}
	return nil
}

// each runs one function a connection, lets them go together, and adds up what they saw.
func each(count int, host string, work func(number int, c *connection, s *seen)) *seen {
	var group sync.WaitGroup
	all := make([]seen, count)
	start := make(chan struct{})
	for i := range count {
		group.Add(1)
		go func() {
			defer group.Done()
			c := &connection{host: host}
			defer c.close()
			<-start
			work(i, c, &all[i])
		}()
	}
	begun := time.Now()
	close(start)
	group.Wait()
	sum := &seen{Seconds: time.Since(begun).Seconds()}
	for i := range all {
		sum.add(&all[i])
	}
	return sum
}

func blobs() []blob {
	text, err := os.ReadFile(*list)
	if err != nil {
		log.Fatalf("mix: %v", err)
	}
	var found []blob
	for line := range strings.Lines(string(text)) {
		name, size, _ := strings.Cut(strings.TrimSpace(line), " ")
		bytes, err := strconv.ParseInt(size, 10, 64)
		if err != nil {
			log.Fatalf("mix: %s: %v", *list, err)
		}
		found = append(found, blob{name, bytes})
	}
	if len(found) == 0 {
		log.Fatalf("mix: %s has no blobs", *list)
	}
	return found
}

// take asks for a blob and notes what came.
func (c *connection) take(base string, b blob, verify bool, s *seen) int64 {
	expected := ""
	if verify {
		expected = b.digest
	}
	sent := time.Now()
	bytes, err := c.get(base+"/blobs/"+b.digest, b.size, expected)
	if err != nil {
		s.wrong(err)
		return 0
	}
	s.times = append(s.times, float64(time.Since(sent))/1e6)
	s.Requests++
	s.Bytes += bytes
	if verify {
		s.Checked++
	}
	return bytes
}

// --- modes -----------------------------------------------------------------------------------------------------------

func once(target *url.URL) *seen {
	all := blobs()
	var next atomic.Int64
	deadline := time.Now().Add(*limit)
	return each(*connections, target.Host, func(_ int, c *connection, s *seen) {
		for {
			at := int(next.Add(1)) - 1
			// A server that answers nothing rightly is not asked for everything.
			if at >= len(all) || time.Now().After(deadline) || s.Errors > 20 {
				return
			}
			c.take(target.Path, all[at], true, s)
		}
	})
}

func zipf(target *url.URL) *seen {
	all := blobs()
	// math/rand has Zipf's law for exponents above 1 only.
	sums, sum := make([]float64, len(all)), 0.0
	for i := range all {
		sum += math.Pow(float64(i+1), -*exponent)
		sums[i] = sum
	}
	deadline := time.Now().Add(time.Duration(*duration * 1e9))
	return each(*connections, target.Host, func(number int, c *connection, s *seen) {
		// The same draws for every system.
		random := rand.New(rand.NewPCG(1, uint64(number)))
		for count := 0; time.Now().Before(deadline) && s.Errors <= 20; count++ {
			at, _ := slices.BinarySearch(sums, random.Float64()*sum)
			c.take(target.Path, all[min(at, len(all)-1)], count%*sample == 0, s)
		}
	})
}

func loop(target *url.URL) *seen {
	all := blobs()
	var total atomic.Int64
	begun := time.Now()
	deadline := begun.Add(time.Duration(*duration * 1e9))
	return each(*connections, target.Host, func(number int, c *connection, s *seen) {
		for at := number * len(all) / *connections; time.Now().Before(deadline) && s.Errors <= 20; at++ {
			if *pace > 0 {
				due := begun.Add(time.Duration(float64(total.Load()) / *pace * 1e9))
				time.Sleep(min(time.Until(due), time.Until(deadline)))
			}
			total.Add(c.take(target.Path, all[at%len(all)], at%*sample == 0, s))
		}
	})
}

// beat has the time of an answer begin when it was due if the one before was late, so that a standstill is not left out,
// else when the request was sent: that the client itself woke up late is not the server's.
func beat(target *url.URL) *seen {
	return each(1, target.Host, func(_ int, c *connection, s *seen) {
		begun := time.Now()
		last := begun
		for i := 0; float64(i) < *duration**rate && s.Errors <= 20; i++ {
			due := begun.Add(time.Duration(float64(i) / *rate * 1e9))
			from := due
			if last.Before(due) {
				time.Sleep(time.Until(due))
				from = time.Now()
			}
			bytes, err := c.get(target.RequestURI(), -1, *digest)
			last = time.Now()
			if err != nil {
				s.wrong(err)
				continue
			}
			s.times = append(s.times, float64(last.Sub(from))/1e6)
			s.Requests++
			s.Bytes += bytes
			s.Checked++
		}
	})
}

func slow(target *url.URL) *seen {
	path := target.RequestURI()
	first := &connection{host: target.Host}
	length, _, err := first.ask(path)
	if err != nil {
		log.Fatalf("mix: %v", err)
	}
	whole := make([]byte, length)
	if _, err := io.ReadFull(first.reader, whole); err != nil {
		log.Fatalf("mix: %v", err)
	}
	first.close()
	if sum := sha256.Sum256(whole); *digest != "" && "sha256:"+hex.EncodeToString(sum[:]) != *digest {
		log.Fatalf("mix: %s: the body is sha256:%x", path, sum)
	}
	deadline := time.Now().Add(time.Duration(*duration * 1e9))
	return each(*connections, target.Host, func(number int, c *connection, s *seen) {
		// The kernel's buffer would take megabytes at once.
		c.receive = 64 << 10
		// Not all in the same moment.
		time.Sleep(time.Duration(number) * time.Second / time.Duration(*connections))
		if _, _, err := c.ask(path); err != nil {
			s.wrong(err)
			return
		}
		piece := make([]byte, 16<<10)
		begun, got := time.Now(), int64(0)
		for got < length && time.Now().Before(deadline) {
			n, err := io.ReadFull(c.reader, piece[:min(int64(len(piece)), length-got)])
			if !bytes.Equal(piece[:n], whole[got:got+int64(n)]) {
				err = errors.Join(err, fmt.Errorf("%s: other bytes after %d", path, got))
			}
			if err != nil {
				s.wrong(err)
				return
			}
			got += int64(n)
			time.Sleep(time.Until(begun.Add(time.Duration(float64(got) / *rate * 1e9))))
		}
		s.Requests++
		s.Checked++
		s.Bytes += got
	})
}

func idle(target *url.URL) *seen {
	sum := &seen{}
	var lock sync.Mutex
	var group sync.WaitGroup
	// More at once would overflow queues of connections that wait to be accepted, and wait for repeated SYNs.
	turn := make(chan struct{}, 64)
	for range *connections {
		group.Add(1)
		go func() {
			defer group.Done()
			turn <- struct{}{}
			defer func() { <-turn }()
			one := &seen{}
			c := &connection{host: target.Host}
			bytes, err := c.get(target.RequestURI(), -1, *digest)
			if err == nil && c.wire == nil {
				err = errors.New("the server did not keep the connection")
			}
			if err != nil {
				one.wrong(err)
			} else {
				one.Requests, one.Bytes, one.Checked = 1, bytes, 1
				// Ten thousand of them are not the client's point.
				c.reader, c.buffer = nil, nil
			}
			lock.Lock()
			defer lock.Unlock()
			sum.add(one)
			kept = append(kept, c)
		}()
	}
	group.Wait()
	return sum
}

// kept are those of idle: what nothing refers to is closed by the collector of garbage.
var kept []*connection
