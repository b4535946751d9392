// Command link is an upstream registry behind a link that is as bad as it is told: slow, far away, throttled for each
// connection, or cut. It has blobs, made from a seed as they are read, and a manifest over the first of them, which is every
// tag of every repository. It counts what it sends of blobs.
//
// The link is shaped in user space, from upstream to client:
//   - rate: one bucket for all connections, which get it in turn by pieces of 16 KiB (heads of answers are part of it),
//   - per-connection: a bucket for each connection before that one,
//   - latency: a round trip. The head of each answer waits for one, the first request of a connection for another one,
//     in place of the handshake. TCP itself sees the loopback interface: it has no slow start to go through,
//   - cut: a connection that has carried so many bytes of bodies ends in the middle of a body, over and over (every
//     connection anew), by a reset or a plain close.
//
// What is counted is what was written to bodies. Every connection's send buffer is small (SO_SNDBUF of 32 KiB, 64 KiB
// with the kernel's own structures), so that written bytes are on the link but for those, and what nobody confirmed of
// a body that the client broke off does not count. The client's receive buffer is the far end of the link: what a client
// left there unread was sent, and counts.
//
// A second listener is for the benchmark: GET /blobs says digests, GET /list the same as lines "DIGEST SIZE" in their order,
// GET /manifest the manifest itself, GET /stats what was sent, DELETE /stats forgets it.
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"ocistern/bench/link/content"
)

// blobs are the flags `-blob SEED:SIZE`.
type blobs []content.Blob

func (b *blobs) String() string { return fmt.Sprint([]content.Blob(*b)) }

func (b *blobs) Set(text string) error {
	var blob content.Blob
	seed, size, _ := strings.Cut(text, ":")
	var err error
	if blob.Seed, err = strconv.ParseUint(seed, 10, 64); err != nil {
		return err
	}
	if blob.Size, err = strconv.ParseInt(size, 10, 64); err != nil {
		return err
	}
	*b = append(*b, blob)
	return nil
}

// many is the flag `-many FIRST:COUNT:LEAST:MOST:SKEW`: so many blobs, their seeds from FIRST on. The logarithms of their sizes
// are evenly spread with a SKEW of 1; the more, the more blobs are small.
type many struct{ blobs *blobs }

func (many) String() string { return "" }

func (m many) Set(text string) error {
	var first, count uint64
	var least, most, skew float64
	if _, err := fmt.Sscanf(text, "%d:%d:%g:%g:%g", &first, &count, &least, &most, &skew); err != nil {
		return err
	}
	for seed := first; seed < first+count; seed++ {
		share := math.Pow(rand.New(rand.NewPCG(seed, 0)).Float64(), skew)
		*m.blobs = append(*m.blobs, content.Blob{Seed: seed, Size: int64(least * math.Pow(most/least, share))})
	}
	return nil
}

func main() {
	var wanted blobs
	var s shape
	listen := flag.String("listen", "127.0.0.1:0", "where the registry listens")
	control := flag.String("control", "127.0.0.1:0", "where digests and statistics are")
	cache := flag.String("digests", "", "file that keeps digests between starts")
	rate := flag.Int64("rate", 0, "bit/s of the link, 0 for no limit")
	flag.Int64Var(&s.perConnection, "per-connection", 0, "bit/s of each connection, 0 for no limit")
	flag.DurationVar(&s.latency, "latency", 0, "a round trip")
	flag.Int64Var(&s.cut, "cut", 0, "bytes of bodies after which a connection is cut, 0 for never")
	flag.BoolVar(&s.reset, "reset", false, "cut by a reset, not by a close")
	flag.Var(&wanted, "blob", "SEED:SIZE, may be repeated")
	flag.Var(many{&wanted}, "many", "FIRST:COUNT:LEAST:MOST:SKEW, blobs of such sizes, may be repeated")
	flag.Parse()
	s.total = newPace(*rate)
	digests, err := digests(wanted, *cache)
	if err != nil {
		log.Fatalf("link: %v", err)
	}
	registry := newRegistry(wanted, digests, &s)
	// The public one last: who gets through to it finds the other one, too.
	private, err := net.Listen("tcp", *control)
	if err != nil {
		log.Fatalf("link: %v", err)
	}
	public, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatalf("link: %v", err)
	}
	go func() { log.Fatal(http.Serve(private, registry.control())) }()
	log.Fatal(registry.serve(public))
}

// digests are those of the blobs, in their order.
func digests(wanted []content.Blob, file string) ([]string, error) {
	known := map[string]string{}
	if text, err := os.ReadFile(file); err == nil {
		if err := json.Unmarshal(text, &known); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
	}
	found := make([]string, len(wanted))
	for i, blob := range wanted {
		key := fmt.Sprintf("%d:%d", blob.Seed, blob.Size)
		if known[key] == "" {
			known[key] = blob.Digest()
		}
		found[i] = known[key]
	}
	if file == "" {
		return found, nil
	}
	text, err := json.Marshal(known)
	if err != nil {
		return nil, err
	}
	return found, os.WriteFile(file, text, 0o600)
}

// request is one for a blob, as the statistics have it.
type request struct {
	At         float64 `json:"at"`
	Method     string  `json:"method"`
	Digest     string  `json:"digest"`
	Range      string  `json:"range,omitempty"`
	IfRange    string  `json:"if_range,omitempty"`
	Status     int     `json:"status"`
	Bytes      int64   `json:"bytes"`
	Cut        bool    `json:"cut,omitempty"`
	BrokenOff  bool    `json:"broken_off,omitempty"`
	connection *connection
}

type registry struct {
	blobs map[string]content.Blob
	// order is that of the digests as they were given.
	order    []string
	manifest []byte
	shape    *shape
	begun    time.Time
	// accepted counts connections.
	accepted atomic.Int64

	// lock is for what follows, and for the fields of the requests.
	lock     sync.Mutex
	sent     int64
	requests []*request
}

func newRegistry(wanted []content.Blob, digests []string, s *shape) *registry {
	r := &registry{blobs: map[string]content.Blob{}, order: digests, shape: s, begun: time.Now()}
	for i, digest := range digests {
		r.blobs[digest] = wanted[i]
	}
	r.manifest = r.image()
	return r
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

// image is a manifest whose config is the first blob, and whose layers are up to seven further ones.
func (r *registry) image() []byte {
	type descriptor struct {
		MediaType string `json:"mediaType"`
		Digest    string `json:"digest"`
		Size      int64  `json:"size"`
	}
	parts := []descriptor{}
	for _, digest := range r.order[:min(8, len(r.order))] {
		parts = append(parts, descriptor{"application/vnd.oci.image.layer.v1.tar", digest, r.blobs[digest].Size})
	}
	if len(parts) == 0 {
		return nil
	}
	parts[0].MediaType = "application/vnd.oci.image.config.v1+json"
	text, _ := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": manifestType, "config": parts[0], "layers": parts[1:]})
	return text
}

// serve is the registry, behind its link.
func (r *registry) serve(public net.Listener) error {
	server := http.Server{Handler: http.HandlerFunc(r.answer), ConnContext: withConnection}
	return server.Serve(listener{public, r.shape, &r.accepted})
}

func (r *registry) control() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /blobs", func(w http.ResponseWriter, _ *http.Request) {
		found := map[string]string{}
		for digest, blob := range r.blobs {
			found[fmt.Sprintf("%d:%d", blob.Seed, blob.Size)] = digest
		}
		_ = json.NewEncoder(w).Encode(found)
	})
	mux.HandleFunc("GET /list", func(w http.ResponseWriter, _ *http.Request) {
		for _, digest := range r.order {
			_, _ = fmt.Fprintf(w, "%s %d\n", digest, r.blobs[digest].Size)
		}
	})
	mux.HandleFunc("GET /manifest", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write(r.manifest)
	})
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, ask *http.Request) {
		r.lock.Lock()
		defer r.lock.Unlock()
		answer := map[string]any{"bytes": r.sent, "connections": r.accepted.Load()}
		if ask.FormValue("requests") != "" {
			answer["requests"] = r.requests
		}
		_ = json.NewEncoder(w).Encode(answer)
	})
	mux.HandleFunc("DELETE /stats", func(http.ResponseWriter, *http.Request) {
		r.lock.Lock()
		defer r.lock.Unlock()
		r.sent, r.requests = 0, nil
		r.begun = time.Now()
		r.accepted.Store(0)
	})
	return mux
}

func (r *registry) answer(w http.ResponseWriter, ask *http.Request) {
	time.Sleep(r.shape.latency)
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if ask.URL.Path == "/v2/" {
		_, _ = io.WriteString(w, "{}")
		return
	}
	own := fmt.Sprintf("sha256:%x", sha256.Sum256(r.manifest))
	if _, reference, found := strings.Cut(ask.URL.Path, "/manifests/"); found && (reference == own || !strings.Contains(reference, ":")) {
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", own)
		http.ServeContent(w, ask, "", time.Time{}, bytes.NewReader(r.manifest))
		return
	}
	_, digest, _ := strings.Cut(ask.URL.Path, "/blobs/")
	blob, known := r.blobs[digest]
	if !known || (ask.Method != http.MethodGet && ask.Method != http.MethodHead) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		_, _ = io.WriteString(w, `{"errors":[{"code":"BLOB_UNKNOWN","message":"this upstream has some blobs and one manifest"}]}`)
		return
	}
	carried := ask.Context().Value(connectionKey{}).(*connection)
	one := &request{Method: ask.Method, Digest: digest, Range: ask.Header.Get("Range"), IfRange: ask.Header.Get("If-Range"), connection: carried}
	r.lock.Lock()
	one.At = time.Since(r.begun).Seconds()
	r.requests = append(r.requests, one)
	r.lock.Unlock()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", digest)
	w.Header().Set("ETag", `"`+digest+`"`)
	b := &body{ResponseWriter: w, registry: r, request: one}
	// Ranges of every kind, If-Range and HEAD are its matter.
	http.ServeContent(b, ask, "", time.Time{}, blob.Reader())
	if b.cut {
		panic(http.ErrAbortHandler)
	}
}

// body counts what is written of an answer, and cuts it.
type body struct {
	http.ResponseWriter
	registry *registry
	request  *request
	cut      bool
}

func (b *body) WriteHeader(status int) {
	b.registry.lock.Lock()
	b.request.Status = status
	b.registry.lock.Unlock()
	b.ResponseWriter.WriteHeader(status)
}

func (b *body) Write(p []byte) (int, error) {
	carried, limit := b.request.connection, b.registry.shape.cut
	if limit > 0 && carried.body+int64(len(p)) >= limit {
		p, b.cut = p[:limit-carried.body], true
	}
	n, err := b.ResponseWriter.Write(p)
	if b.cut && err == nil {
		err = http.NewResponseController(b.ResponseWriter).Flush()
	}
	sent := int64(n)
	if err != nil {
		sent -= carried.unsent()
	}
	carried.body += int64(n)
	b.registry.lock.Lock()
	b.request.Bytes += sent
	b.registry.sent += sent
	b.request.Cut = b.cut
	b.request.BrokenOff = err != nil
	b.registry.lock.Unlock()
	if b.cut {
		// Counted before: who sees the end may ask at once.
		carried.sever()
		return n, io.ErrClosedPipe
	}
	return n, err
}
