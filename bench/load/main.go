// Command load asks for URLs with many clients at once, and prints as JSON when each answer's first byte came and its
// last, both in seconds since the clients were let go together. One URL is asked for by every client; several are shared
// out among them, and a client asks for its own one after the other, on one connection.
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
	"path"
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
	verify := flag.Bool("verify", false, "hash the body as it comes, as every registry client does, and compare with the digest that ends the URL (sha256:HEX)")
	accept := flag.String("accept", "*/*", "Accept header")
	expected := flag.String("digest", "", "what -verify compares with, instead of the end of the URL")
	flag.Parse()
	if flag.NArg() == 0 {
		log.Fatal("load: a URL is required")
	}
	// What each client asks for, by the place of its result.
	work := make([]map[int]string, *clients)
	results := make([]result, max(*clients, flag.NArg()))
	for i := range results {
		client := i % *clients
		if work[client] == nil {
			work[client] = map[int]string{}
		}
		work[client][i] = flag.Arg(i % flag.NArg())
	}
	start := make(chan struct{})
	var group sync.WaitGroup
	var begun time.Time
	for _, urls := range work {
		group.Add(1)
		go func() {
			defer group.Done()
			client := &http.Client{Timeout: *limit, Transport: &http.Transport{DisableCompression: true, ReadBufferSize: 256 << 10}}
			<-start
			for i, url := range urls {
				results[i] = get(client, url, *accept, *verify, *expected, begun)
			}
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

func get(client *http.Client, url, accept string, verify bool, expected string, begun time.Time) (r result) {
	defer func() { r.LastByte = time.Since(begun).Seconds() }()
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
		if verify {
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
	if expected == "" {
		expected = path.Base(url)
	}
	if digest := "sha256:" + hex.EncodeToString(hash.Sum(nil)); verify && digest != expected {
		r.Error = "the body is " + digest
	}
	if response.ContentLength >= 0 && r.Bytes != response.ContentLength {
		r.Error = fmt.Sprintf("%d of %d bytes", r.Bytes, response.ContentLength)
	}
	return r
}
