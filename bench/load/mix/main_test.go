package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// served is a server of blobs, two of which are not what they should be, and the list of those wanted.
func served(t *testing.T, names ...string) *url.URL {
	t.Helper()
	content := map[string]string{}
	var lines []string
	for _, name := range names {
		right := strings.Repeat("right", 1000)
		digest := fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(right+name)))
		content[digest] = right + name
		switch name {
		case "other bytes":
			content[digest] = strings.Repeat("wrong", 1000) + name
		case "too short":
			content[digest] = right
		}
		lines = append(lines, fmt.Sprintf("%s %d", digest, len(right+name)))
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, digest, _ := strings.Cut(r.URL.Path, "/blobs/")
		if content[digest] == "" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(content[digest])))
		_, _ = w.Write([]byte(content[digest]))
	}))
	t.Cleanup(server.Close)
	*list = filepath.Join(t.TempDir(), "blobs")
	if err := os.WriteFile(*list, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	target, err := url.Parse(server.URL + "/v2/a/b")
	if err != nil {
		t.Fatal(err)
	}
	return target
}

func TestEveryBlobIsAskedForOnce(t *testing.T) {
	target := served(t, "one", "two", "three", "four")
	if s := once(target).summary(); s.Requests != 4 || s.Checked != 4 || s.Errors != 0 || s.Max <= 0 {
		t.Errorf("%+v", s)
	}
}

func TestWhatIsWrongIsAnError(t *testing.T) {
	for _, wrong := range []string{"other bytes", "too short"} {
		target := served(t, "one", wrong, "two")
		if s := once(target).summary(); s.Requests != 2 || s.Errors != 1 || s.Error == "" {
			t.Errorf("%s: %+v", wrong, s)
		}
	}
	target := served(t, "one")
	target.Path = "/nothing"
	*digest = "sha256:0"
	defer func() { *digest = "" }()
	*duration, *rate = 0.05, 100
	if s := beat(target).summary(); s.Requests != 0 || s.Errors != 5 {
		t.Errorf("404: %+v", s)
	}
}

func TestThePopularAreAskedForMoreOften(t *testing.T) {
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprint(i)
	}
	target := served(t, names...)
	*duration, *connections = 0.3, 4
	if s := zipf(target).summary(); s.Requests < 50 || s.Errors != 0 || s.Checked == 0 || s.P50 > s.P999 {
		t.Errorf("%+v", s)
	}
}
