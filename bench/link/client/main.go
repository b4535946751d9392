// Command client asks for blobs as clients on bad links do, checks every byte, and prints as JSON what it took.
//
//	client whole    [-clients N] [-again start|range]   URL   a blob at once by each client; a broken one is asked for
//	                                                          again, from the start or from where it broke
//	client parallel [-workers N] [-chunk BYTES] [-open] URL   one blob by ranges, several at once; -open leaves the end of
//	                                                          the range away and breaks the answer off, as containerd does
//	client lazy     [-ranges N] [-length BYTES]     URL URL…  random ranges of one blob, one after the other, each from
//	                                                          every URL in turn
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net/http"
	"os"
	"path"
	"sort"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"ocistern/bench/link/content"
)

var (
	seed     = flag.Uint64("seed", 0, "of the blob")
	size     = flag.Int64("size", 0, "of the blob")
	limit    = flag.Duration("limit", 15*time.Minute, "after this long it gives up")
	clients  = flag.Int("clients", 1, "whole: how many at once")
	again    = flag.String("again", "start", "whole: from where a broken transfer goes on: start or range")
	requests = flag.Int("requests", 30, "whole: after so many requests a client gives up")
	budget   = flag.Int64("bytes", 3<<30, "whole: after so many bytes a client gives up")
	hashing  = flag.Int("hash", 1<<30, "whole: so many of the clients hash what they get, the others count it")
	workers  = flag.Int("workers", 16, "parallel: ranges at once")
	chunk    = flag.Int64("chunk", 8<<20, "parallel: bytes of a range")
	open     = flag.Bool("open", false, "parallel: bytes=N- broken off after the chunk")
	ranges   = flag.Int("ranges", 400, "lazy: how many, every second one aligned to its length")
	length   = flag.Int64("length", 64<<10, "lazy: bytes of a range")
	random   = flag.Int64("random", 1, "lazy: decides the offsets")
)

func main() {
	if len(os.Args) < 2 {
		log.Fatal("client: whole, parallel or lazy?")
	}
	if err := flag.CommandLine.Parse(os.Args[2:]); err != nil || flag.NArg() == 0 {
		log.Fatal("client: a URL is required")
	}
	ctx, cancel := context.WithTimeout(context.Background(), *limit)
	defer cancel()
	blob := content.Blob{Seed: *seed, Size: *size}
	var seen any
	switch os.Args[1] {
	case "whole":
		seen = whole(ctx, flag.Arg(0), blob)
	case "parallel":
		seen = parallel(ctx, flag.Arg(0), blob)
	case "lazy":
		seen = lazy(ctx, flag.Args(), blob)
	default:
		log.Fatalf("client: whole, parallel or lazy, not %q", os.Args[1])
	}
	if err := json.NewEncoder(os.Stdout).Encode(seen); err != nil {
		log.Fatalf("client: %v", err)
	}
}

// tally is what it took, of one client or of all.
type tally struct {
	Requests int   `json:"requests"`
	Errors   int   `json:"errors"`
	Bytes    int64 `json:"bytes"`
	// Refused counts the times that nobody listened; these are neither requests nor errors.
	Refused int `json:"refused"`
	// Ignored counts ranges that were answered with the whole blob.
	Ignored int `json:"ignored"`
	// Wrong counts what came complete and was not the blob.
	Wrong int `json:"wrong"`
	// Whole says that all of it came, and is right.
	Whole   bool    `json:"whole"`
	Seconds float64 `json:"seconds"`
	Error   string  `json:"error,omitempty"`
}

func (t *tally) add(other tally) {
	t.Requests += other.Requests
	t.Errors += other.Errors
	t.Bytes += other.Bytes
	t.Refused += other.Refused
	t.Ignored += other.Ignored
	t.Wrong += other.Wrong
	if t.Error == "" {
		t.Error = other.Error
	}
}

func (t *tally) failed(err error) {
	t.Errors++
	t.Error = err.Error()
}

func transport() *http.Transport {
	return &http.Transport{DisableCompression: true, ReadBufferSize: 64 << 10, MaxIdleConnsPerHost: 64}
}

// get is one request; a range where `from` or `to` says so, `to` of 0 is an open end.
func get(ctx context.Context, client *http.Transport, url string, from, to int64) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if from > 0 || to > 0 {
		end := ""
		if to > 0 {
			end = strconv.FormatInt(to-1, 10)
		}
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", from, end))
	}
	return client.RoundTrip(request)
}

// seek has the body begin at that offset, whatever the server made of the range.
func seek(response *http.Response, from int64, t *tally) error {
	switch {
	case response.StatusCode == http.StatusPartialContent:
		if got := response.Header.Get("Content-Range"); !strings.HasPrefix(got, fmt.Sprintf("bytes %d-", from)) {
			return fmt.Errorf("%s instead of a range from %d", got, from)
		}
		return nil
	case response.StatusCode != http.StatusOK:
		return errors.New(response.Status)
	}
	if from > 0 {
		n, err := io.CopyN(io.Discard, response.Body, from)
		t.Bytes += n
		return err
	}
	return nil
}

// --- whole -----------------------------------------------------------------------------------------------------------

func whole(ctx context.Context, url string, blob content.Blob) any {
	var sum tally
	sum.Whole = true
	all := make([]tally, *clients)
	begun := time.Now()
	each(*clients, func(i int) { all[i] = pull(ctx, url, blob, i < *hashing, begun) })
	for _, one := range all {
		sum.add(one)
		sum.Whole = sum.Whole && one.Whole
		sum.Seconds = max(sum.Seconds, one.Seconds)
	}
	return map[string]any{"sum": sum, "clients": all}
}

func each(count int, do func(int)) {
	var group sync.WaitGroup
	for i := range count {
		group.Add(1)
		go func() {
			defer group.Done()
			do(i)
		}()
	}
	group.Wait()
}

// pull asks until the blob is whole.
func pull(ctx context.Context, url string, blob content.Blob, hashed bool, begun time.Time) (t tally) {
	defer func() { t.Seconds = time.Since(begun).Seconds() }()
	client := transport()
	defer client.CloseIdleConnections()
	hash := sha256.New()
	at := int64(0)
	buffer := make([]byte, 256<<10)
	for t.Requests < *requests && t.Bytes < *budget && ctx.Err() == nil {
		if *again == "start" {
			hash.Reset()
			at = 0
		}
		response, err := get(ctx, client, url, at, 0)
		if errors.Is(err, syscall.ECONNREFUSED) {
			t.Refused++
			time.Sleep(20 * time.Millisecond)
			continue
		}
		t.Requests++
		before := t.Bytes
		if err == nil {
			if at > 0 && response.StatusCode == http.StatusOK {
				t.Ignored++
			}
			err = seek(response, at, &t)
		}
		for err == nil {
			var n int
			n, err = response.Body.Read(buffer)
			at += int64(n)
			t.Bytes += int64(n)
			if hashed {
				hash.Write(buffer[:n])
			}
		}
		if response != nil {
			_ = response.Body.Close()
		}
		if !errors.Is(err, io.EOF) || at < blob.Size {
			t.failed(err)
			if t.Bytes == before {
				// An error in place of a blob comes at once, over and over.
				time.Sleep(20 * time.Millisecond)
			}
			continue
		}
		if digest := "sha256:" + hex.EncodeToString(hash.Sum(nil)); at != blob.Size || (hashed && digest != path.Base(url)) {
			t.Wrong++
			t.failed(fmt.Errorf("%d bytes are %s", at, digest))
			return t
		}
		t.Whole = true
		return t
	}
	return t
}

// --- parallel --------------------------------------------------------------------------------------------------------

func parallel(ctx context.Context, url string, blob content.Blob) any {
	begun := time.Now()
	var sum tally
	var lock sync.Mutex
	client := transport()
	next := make(chan int64)
	go func() {
		defer close(next)
		for from := int64(0); from < blob.Size; from += *chunk {
			next <- from
		}
	}()
	done := int64(0)
	each(*workers, func(int) {
		for from := range next {
			to := min(from+*chunk, blob.Size)
			t, ok := part(ctx, client, url, blob, from, to)
			lock.Lock()
			sum.add(t)
			if ok {
				done += to - from
			}
			lock.Unlock()
		}
	})
	sum.Whole = done == blob.Size
	sum.Seconds = time.Since(begun).Seconds()
	return map[string]any{"sum": sum}
}

// part asks for a range until it has come, five times at most.
func part(ctx context.Context, client *http.Transport, url string, blob content.Blob, from, to int64) (t tally, ok bool) {
	for range 5 {
		end := to
		if *open {
			end = 0
		}
		t.Requests++
		err := piece(ctx, client, url, blob, from, to, end, &t)
		if err == nil {
			return t, true
		}
		t.failed(err)
	}
	return t, false
}

// piece is one request for bytes that must be right; what the answer has beyond them is broken off.
func piece(ctx context.Context, client *http.Transport, url string, blob content.Blob, from, to, end int64, t *tally) error {
	response, err := get(ctx, client, url, from, end)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK && (from > 0 || end > 0) {
		t.Ignored++
	}
	if err := seek(response, from, t); err != nil {
		return err
	}
	checker := blob.Checker(from)
	n, err := io.CopyN(checker, response.Body, to-from)
	t.Bytes += n
	if checker.Wrong > 0 {
		t.Wrong++
		return fmt.Errorf("wrong bytes in %d to %d", from, to)
	}
	if err == nil && response.ContentLength == to-from {
		// The end of the body, so that the connection can be used again.
		_, _ = response.Body.Read(make([]byte, 1))
	}
	return err
}

// --- lazy ------------------------------------------------------------------------------------------------------------

// reading is what one URL gave.
type reading struct {
	tally
	Touched int64     `json:"touched"`
	Times   []float64 `json:"times"`
}

func lazy(ctx context.Context, urls []string, blob content.Blob) any {
	source := rand.New(rand.NewSource(*random))
	readings := make([]reading, len(urls))
	transports := make([]*http.Transport, len(urls))
	for i := range urls {
		transports[i] = transport()
	}
	touched := make([][][2]int64, len(urls))
	for i := range *ranges {
		from := source.Int63n(blob.Size - *length + 1)
		if i%2 == 0 {
			from -= from % *length
		}
		for turn := range urls {
			// The one that goes first takes turns, too.
			which := (turn + i/2) % len(urls)
			r := &readings[which]
			if ctx.Err() != nil {
				continue
			}
			r.Requests++
			begun := time.Now()
			err := piece(ctx, transports[which], urls[which], blob, from, from+*length, from+*length, &r.tally)
			if err != nil {
				r.failed(err)
				continue
			}
			r.Times = append(r.Times, time.Since(begun).Seconds())
			touched[which] = append(touched[which], [2]int64{from, from + *length})
		}
	}
	for i := range readings {
		readings[i].Touched = union(touched[i])
		readings[i].Whole = len(readings[i].Times) == *ranges
	}
	return map[string]any{"readings": readings}
}

// union is how many bytes lie in at least one of the ranges.
func union(ranges [][2]int64) (bytes int64) {
	sort.Slice(ranges, func(i, j int) bool { return ranges[i][0] < ranges[j][0] })
	end := int64(0)
	for _, one := range ranges {
		if from := max(one[0], end); one[1] > from {
			bytes += one[1] - from
			end = one[1]
		}
	}
	return bytes
}
