// Command registry is an upstream for the end-to-end suite: an OCI 1.1 registry with the referrers API.
//
// It is go-containerregistry's own registry with its state in a directory (blobs as that package keeps them, manifests
// as the requests that pushed them), so that it can be stopped and started like any other, and with an access log in
// the same form as Debian's docker-registry writes.
package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// push is one accepted PUT of a manifest, as it is kept in the journal.
type push struct {
	Path        string
	ContentType string
	Body        []byte
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	root := flag.String("root", "", "directory that keeps blobs and manifests (required)")
	flag.Parse()
	if *root == "" {
		log.Fatal("registry: -root DIR is required")
	}
	if err := run(*listen, *root); err != nil {
		log.Fatalf("registry: %v", err)
	}
}

func run(listen, root string) error {
	blobs, journal := filepath.Join(root, "blobs"), filepath.Join(root, "manifests")
	for _, directory := range []string{blobs, journal} {
		if err := os.MkdirAll(directory, 0o755); err != nil {
			return err
		}
	}
	inner := registry.New(
		registry.WithReferrersSupport(true),
		registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)),
		registry.Logger(log.New(io.Discard, "", 0)),
	)
	count, err := replay(inner, journal)
	if err != nil {
		return err
	}
	server := &http.Server{Addr: listen, Handler: logged(journaled(inner, journal, count)), ReadHeaderTimeout: 10 * time.Second}
	return server.ListenAndServe()
}

// replay pushes every manifest of the journal again, in order, and returns how many there were.
func replay(inner http.Handler, journal string) (int, error) {
	names, err := filepath.Glob(filepath.Join(journal, "*.json"))
	if err != nil {
		return 0, err
	}
	sort.Strings(names)
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		var p push
		if err := json.Unmarshal(text, &p); err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		request := httptest.NewRequest(http.MethodPut, p.Path, bytes.NewReader(p.Body))
		request.Header.Set("Content-Type", p.ContentType)
		answer := httptest.NewRecorder()
		inner.ServeHTTP(answer, request)
		if answer.Code != http.StatusCreated {
			return 0, fmt.Errorf("%s: %d %s", name, answer.Code, answer.Body)
		}
	}
	return len(names), nil
}

// journaled keeps the manifests that were accepted. Pushes come one at a time in the suite, so a counter names them.
func journaled(next http.Handler, journal string, count int) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") {
			next.ServeHTTP(w, r)
			return
		}
		body, err := io.ReadAll(r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
		seen := &counter{ResponseWriter: w}
		next.ServeHTTP(seen, r)
		if seen.status != http.StatusCreated {
			return
		}
		count++
		text, err := json.Marshal(push{Path: r.URL.Path, ContentType: r.Header.Get("Content-Type"), Body: body})
		if err == nil {
			err = os.WriteFile(filepath.Join(journal, fmt.Sprintf("%06d.json", count)), text, 0o644)
		}
		if err != nil {
			log.Fatalf("registry: a manifest could not be kept: %v", err)
		}
	})
}

// counter remembers the status and counts the bytes of an answer.
type counter struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (c *counter) WriteHeader(status int) {
	if c.status == 0 {
		c.status = status
	}
	c.ResponseWriter.WriteHeader(status)
}

func (c *counter) Write(p []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	n, err := c.ResponseWriter.Write(p)
	c.bytes += int64(n)
	return n, err
}

// logged writes one line per request to standard output, in the combined log format.
func logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen := &counter{ResponseWriter: w}
		defer func() {
			status := seen.status
			if cause := recover(); cause != nil {
				status = http.StatusInternalServerError
				if err, ok := cause.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
					log.Printf("registry: panic on %s %s: %v", r.Method, r.URL, cause)
				}
				defer panic(http.ErrAbortHandler)
			}
			fmt.Printf("%s - - [%s] %q %d %d %q %q\n", r.RemoteAddr, time.Now().Format("02/Jan/2006:15:04:05 -0700"),
				r.Method+" "+r.RequestURI+" "+r.Proto, status, seen.bytes, r.Referer(), r.UserAgent())
		}()
		next.ServeHTTP(seen, r)
	})
}
