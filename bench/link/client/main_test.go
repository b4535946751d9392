package main

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"ocistern/bench/link/content"
)

var blob = content.Blob{Seed: 9, Size: 1 << 20}

// server serves these bytes, with ranges, and breaks the first answers off after so many.
func server(t *testing.T, served []byte, broken int, after int64) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if broken > 0 {
			broken--
			w = cutting{w, &after}
		}
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(served))
	}))
	t.Cleanup(s.Close)
	return s.URL + "/" + blob.Digest()
}

type cutting struct {
	http.ResponseWriter
	after *int64
}

func (c cutting) Write(p []byte) (int, error) {
	_, _ = c.ResponseWriter.Write(p[:min(*c.after, int64(len(p)))])
	_ = http.NewResponseController(c.ResponseWriter).Flush()
	panic(http.ErrAbortHandler)
}

func bytesOf(t *testing.T) []byte {
	t.Helper()
	all, err := io.ReadAll(blob.Reader())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestABrokenTransferGoesOn(t *testing.T) {
	for how, want := range map[string]int64{"range": blob.Size, "start": blob.Size + 2000} {
		*again = how
		got := pull(context.Background(), server(t, bytesOf(t), 2, 1000), blob, true, time.Now())
		if !got.Whole || got.Requests != 3 || got.Errors != 2 || got.Bytes != want {
			t.Errorf("by %s: %+v", how, got)
		}
	}
}

func TestWrongBytesAreSeen(t *testing.T) {
	wrong := bytesOf(t)
	wrong[600_000] ^= 1
	url := server(t, wrong, 0, 0)
	if got := pull(context.Background(), url, blob, true, time.Now()); got.Whole || got.Wrong != 1 {
		t.Errorf("whole: %+v", got)
	}
	*chunk = 100_000
	for _, *open = range []bool{false, true} {
		got := parallel(context.Background(), url, blob).(map[string]any)["sum"].(tally)
		if got.Whole || got.Wrong != 5 || got.Requests != 15 {
			t.Errorf("by ranges: %+v", got)
		}
	}
}

func TestALazyReaderHasEveryRange(t *testing.T) {
	*ranges = 20
	url := server(t, bytesOf(t), 0, 0)
	for _, one := range lazy(context.Background(), []string{url, url}, blob).(map[string]any)["readings"].([]reading) {
		if !one.Whole || len(one.Times) != 20 || one.Bytes != 20*64<<10 || one.Touched > one.Bytes || one.Errors+one.Wrong+one.Ignored > 0 {
			t.Errorf("%+v", one)
		}
	}
}

func TestTheUnionOfRanges(t *testing.T) {
	if got := union([][2]int64{{5, 10}, {0, 3}, {8, 12}, {9, 10}, {12, 13}}); got != 11 {
		t.Errorf("%d bytes", got)
	}
}
