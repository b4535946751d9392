package main

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"ocistern/bench/link/content"
)

var blob = content.Blob{Seed: 7, Size: 1<<20 + 5}

// upstream is a registry with that blob behind such a link, and the blob's address.
func upstream(t *testing.T, s *shape) (*registry, string) {
	t.Helper()
	public, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = public.Close() })
	r := newRegistry([]content.Blob{blob}, []string{blob.Digest()}, s)
	go func() { _ = r.serve(public) }()
	return r, "http://" + public.Addr().String() + "/v2/a/b/blobs/" + blob.Digest()
}

// fetch is status and body, and what broke the body.
func fetch(t *testing.T, url, ranges, ifRange string) (int, []byte, error) {
	t.Helper()
	request, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Range", ranges)
	request.Header.Set("If-Range", ifRange)
	response, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return response.StatusCode, text, err
}

func (r *registry) bytes() int64 {
	r.lock.Lock()
	defer r.lock.Unlock()
	return r.sent
}

func TestRangesAreThoseOfTheBlob(t *testing.T) {
	r, url := upstream(t, &shape{})
	whole, err := io.ReadAll(blob.Reader())
	if err != nil {
		t.Fatal(err)
	}
	etag := `"` + blob.Digest() + `"`
	sent := 0
	for _, c := range []struct {
		ranges, ifRange string
		status          int
		want            []byte
	}{
		{"", "", 200, whole},
		{"bytes=0-0", "", 206, whole[:1]},
		{"bytes=17-70000", "", 206, whole[17:70001]},
		{"bytes=1048570-", etag, 206, whole[1048570:]},
		{"bytes=-9", "", 206, whole[len(whole)-9:]},
		{"bytes=5-9", `"another"`, 200, whole},
	} {
		status, got, err := fetch(t, url, c.ranges, c.ifRange)
		if err != nil || status != c.status || !bytes.Equal(got, c.want) {
			t.Errorf("%q: %d with %d bytes, %v; want %d with %d", c.ranges, status, len(got), err, c.status, len(c.want))
		}
		sent += len(c.want)
	}
	if status, _, _ := fetch(t, url, "bytes=2000000-", ""); status != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("behind the end: %d", status)
	}
	// The 416 has a line of text.
	if got := r.bytes(); got < int64(sent) || got > int64(sent)+100 {
		t.Errorf("counted %d bytes of %d", got, sent)
	}
}

func TestACutComesAfterSoManyBytes(t *testing.T) {
	for _, reset := range []bool{false, true} {
		r, url := upstream(t, &shape{cut: 300_000, reset: reset})
		for i := int64(1); i < 4; i++ {
			_, got, err := fetch(t, url, "", "")
			if err == nil || len(got) != 300_000 || r.bytes() != i*300_000 {
				t.Errorf("cut %d by reset %v: %d bytes, %v, counted %d", i, reset, len(got), err, r.bytes())
			}
		}
		if _, got, err := fetch(t, url, "bytes=-299999", ""); err != nil || len(got) != 299_999 {
			t.Errorf("less than that: %d bytes, %v", len(got), err)
		}
	}
}

// A busy machine makes a link slower, never faster.
func TestALinkIsNotFasterThanItsRate(t *testing.T) {
	for name, s := range map[string]*shape{
		"rate":           {total: newPace(64_000_000)},
		"per connection": {perConnection: 64_000_000},
		"latency":        {latency: 60 * time.Millisecond},
	} {
		_, url := upstream(t, s)
		begun := time.Now()
		if _, got, err := fetch(t, url, "", ""); err != nil || int64(len(got)) != blob.Size {
			t.Fatalf("%s: %d bytes, %v", name, len(got), err)
		}
		// A MiB at 8 MB/s, two round trips.
		if took := time.Since(begun); took < 115*time.Millisecond {
			t.Errorf("%s: %v", name, took)
		}
	}
}

func TestWhatAClientBreaksOffIsNotCountedWhole(t *testing.T) {
	r, url := upstream(t, &shape{total: newPace(8_000_000)})
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(response.Body, make([]byte, 100_000)); err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	for i := 0; i < 100; i++ {
		r.lock.Lock()
		over := r.requests[0].BrokenOff
		r.lock.Unlock()
		if over {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if got := r.bytes(); got < 100_000 || got > 300_000 {
		t.Errorf("counted %d bytes for 100000", got)
	}
}

func TestManyBlobsAreTheSameEveryTime(t *testing.T) {
	var first, second blobs
	for _, wanted := range []*blobs{&first, &second} {
		if err := (many{wanted}).Set("7:1000:1024:16384:1"); err != nil {
			t.Fatal(err)
		}
	}
	small := 0
	for i, b := range first {
		if b != second[i] || b.Seed != uint64(7+i) || b.Size < 1024 || b.Size > 16384 {
			t.Fatalf("%v and %v", b, second[i])
		}
		if b.Size < 4096 {
			small++
		}
	}
	// Half of them, as the logarithms of the sizes are evenly spread.
	if len(first) != 1000 || small < 400 || small > 600 {
		t.Errorf("%d blobs, %d of them below 4 KiB", len(first), small)
	}
	if err := (many{&first}).Set("7:1000:1024"); err == nil {
		t.Error("a flag without all its parts is taken")
	}
}

func TestTheManifestIsThatOfEveryTagAndOfItsDigest(t *testing.T) {
	r, url := upstream(t, &shape{})
	base, _, _ := strings.Cut(url, "/blobs/")
	own := fmt.Sprintf("sha256:%x", sha256.Sum256(r.manifest))
	for reference, status := range map[string]int{"1": 200, "latest": 200, own: 200, blob.Digest(): 404} {
		got, text, err := fetch(t, base+"/manifests/"+reference, "", "")
		if err != nil || got != status || (got == 200) != bytes.Equal(text, r.manifest) {
			t.Errorf("%s: %d, %v", reference, got, err)
		}
	}
	if !bytes.Contains(r.manifest, []byte(blob.Digest())) || r.bytes() != 0 {
		t.Errorf("%s, %d bytes counted", r.manifest, r.bytes())
	}
}
