// Command load asks one URL with many clients at once, each on a connection of its own, and prints as JSON when each
// got its first byte and its last, both in seconds since the clients were let go together.
package main

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"sync"
	"time"
)

// result is what one client saw.
type result struct {
	Status    int     `json:"status"`
	Bytes     int64   `json:"bytes"`
	FirstByte float64 `json:"first_byte"`
	LastByte  float64 `json:"last_byte"`
	Error     string  `json:"error,omitempty"`
}

func main() {
	clients := flag.Int("clients", 1, "how many at once")
	limit := flag.Duration("limit", 15*time.Minute, "after this long a client gives up")
	verify := flag.String("verify", "", "hash the body as it comes, as every registry client does, and compare with this digest (sha256:HEX)")
	accept := flag.String("accept", "*/*", "Accept header")
	flag.Parse()
	if flag.NArg() != 1 {
		log.Fatal("load: one URL is required")
	}
	results := make([]result, *clients)
	start := make(chan struct{})
	var group sync.WaitGroup
	var begun time.Time
	for i := range results {
		group.Add(1)
		go func() {
			defer group.Done()
			<-start
			results[i] = get(flag.Arg(0), *accept, *verify, begun, *limit)
		}()
	}
	begun = time.Now()
	close(start)
	group.Wait()
	if err := json.NewEncoder(os.Stdout).Encode(results); err != nil {
		log.Fatalf("load: %v", err)
	}
	for _, r := range results {
		if r.Error != "" || r.Status != http.StatusOK {
			os.Exit(1)
		}
	}
}

func get(url, accept, verify string, begun time.Time, limit time.Duration) (r result) {
	defer func() { r.LastByte = time.Since(begun).Seconds() }()
	client := &http.Client{Timeout: limit, Transport: &http.Transport{DisableCompression: true, DisableKeepAlives: true, ReadBufferSize: 256 << 10}}
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return result{Error: err.Error()}
	}
	request.Header.Set("Accept", accept)
	response, err := client.Do(request)
	if err != nil {
		return result{Error: err.Error()}
	}
	defer response.Body.Close()
	r.Status = response.StatusCode
	hash := sha256.New()
	buffer := make([]byte, 256<<10)
	for {
		n, err := response.Body.Read(buffer)
		if n > 0 && r.Bytes == 0 {
			r.FirstByte = time.Since(begun).Seconds()
		}
		r.Bytes += int64(n)
		if verify != "" {
			hash.Write(buffer[:n])
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			r.Error = err.Error()
			return r
		}
	}
	if digest := "sha256:" + hex.EncodeToString(hash.Sum(nil)); verify != "" && digest != verify {
		r.Error = "the body is " + digest
	}
	if response.ContentLength >= 0 && r.Bytes != response.ContentLength {
		r.Error = fmt.Sprintf("%d of %d bytes", r.Bytes, response.ContentLength)
	}
	return r
}
