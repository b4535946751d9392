// Tests of faults, the request log and the counters.
package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestStatusFaultHitsAsManyRequestsAsItSays(t *testing.T) {
	s := newSim(t)
	s.control("faults", `[{"method":"GET","path":"^/v2/$","skip":1,"count":2,"status":429,"code":"TOOMANYREQUESTS","message":"slow down","headers":{"Retry-After":"7"}},
		{"path":"/oauth2/","status":503,"body":"<html>no JSON</html>","headers":{"Content-Type":"text/html"}}]`)
	for _, want := range []int{401, 429, 429, 401} {
		got := s.expect(want, "GET", "/v2/", nil)
		if want == 429 {
			same(t, "Retry-After", got.Header.Get("Retry-After"), "7")
			same(t, "error", code(t, got), "TOOMANYREQUESTS")
		}
	}
	same(t, "body", string(s.expect(503, "GET", "/oauth2/token", nil).text), "<html>no JSON</html>")
	// What was hit is counted as what it was, though no work was done.
	same(t, "class", s.requests.list()[1].Class, "ping")
	got, err := s.try("control", "POST", "/control/faults", strings.NewReader(`{"pth":"x"}`))
	if err != nil || got.StatusCode != 400 {
		t.Errorf("a key that does not exist was taken: %v %s", err, got.text)
	}
}

func TestFaultsOfAnAnswersBody(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("a")
	content := bytes.Repeat([]byte("0123456789"), 20000)
	digest := s.pushBlob("a", content, auth)
	pull := func(fault string) reply {
		t.Helper()
		s.control("faults", `{"listener":"storage",`+fault+`}`)
		got, err := s.try("", "GET", s.expect(307, "GET", "/v2/a/blobs/"+digest, nil, auth...).Header.Get("Location"), nil)
		if err != nil {
			t.Fatalf("%s: %v", fault, err)
		}
		return got
	}
	for fault, length := range map[string]int{`"reset_response_at":150000`: 150000, `"truncate_at":1000`: 1000} {
		got := pull(fault)
		if got.broken == nil || len(got.text) != length || got.ContentLength != 200000 {
			t.Errorf("%s: %d of %d bytes, %v", fault, len(got.text), got.ContentLength, got.broken)
		}
	}
	got := pull(`"short_at":1000`)
	if got.broken != nil || len(got.text) != 1000 {
		t.Errorf("short: %d bytes, %v", len(got.text), got.broken)
	}
	got = pull(`"flip_at":123456`)
	got.text[123456] ^= 0xff
	same(t, "all but one byte", bytes.Equal(got.text, content), true)
	started := time.Now()
	got = pull(`"bytes_per_second":800000`)
	if took := time.Since(started); took < 200*time.Millisecond || !bytes.Equal(got.text, content) {
		t.Errorf("slow: %v for %d bytes", took, len(got.text))
	}
	started = time.Now()
	got = pull(`"stall_at":10,"stall_seconds":0.3`)
	if took := time.Since(started); took < 300*time.Millisecond || !bytes.Equal(got.text, content) {
		t.Errorf("stalled: %v for %d bytes", took, len(got.text))
	}
}

func TestResetBeforeTheAnswerDoesNoWorkAndLosingItDoesAll(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("a")
	digest := digestLike("", []byte("content"))
	put := func(fault string) error {
		t.Helper()
		location := s.startUploadOf("a", auth)
		s.control("faults", `{"method":"PUT",`+fault+`}`)
		_, err := s.try("registry", "PUT", location+"&digest="+digest, strings.NewReader("content"), auth...)
		return err
	}
	for fault, status := range map[string]int{`"reset":true`: 404, `"reset_request_at":3`: 404} {
		if put(fault) == nil {
			t.Errorf("%s: there was an answer", fault)
		}
		s.expect(status, "HEAD", "/v2/a/blobs/"+digest, nil, auth...)
	}
	if put(`"lose_answer":true`) == nil {
		t.Error("there was an answer")
	}
	s.expect(200, "HEAD", "/v2/a/blobs/"+digest, nil, auth...)
}

func TestHeldRequestWaitsForItsRelease(t *testing.T) {
	s := newSim(t)
	s.control("faults", `{"path":"^/v2/$","hold":true}`)
	finished := make(chan int)
	go func() { finished <- s.do("GET", "/v2/", nil).StatusCode }()
	for {
		if list := s.faults.snapshot(); list[0].Waiting == 1 {
			break
		}
		time.Sleep(time.Millisecond)
	}
	select {
	case <-finished:
		t.Fatal("it was not held")
	default:
	}
	s.control("release", `{"id":1}`)
	same(t, "status", <-finished, 401)
}

func TestLogShowsWhatWasSent(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("a/b")
	digest := s.pushBlob("a/b", []byte("content"), auth)
	location := s.expect(307, "GET", "/v2/a%2Fb/blobs/"+strings.Replace(digest, ":", "%3A", 1), nil, append([]string{"X-Meta-Source-Client", "azure/aks"}, auth...)...).Header.Get("Location")
	s.expect(400, "GET", location, nil, auth...)
	get := func(path string, into any) {
		t.Helper()
		got, err := s.try("control", "GET", path, nil)
		if err != nil || json.Unmarshal(got.text, into) != nil {
			t.Fatalf("%s: %v %s", path, err, got.text)
		}
	}
	log := []entry{}
	get("/control/log?listener=registry&class=blob", &log)
	same(t, "entries", len(log), 1)
	same(t, "URI", log[0].URI, "/v2/a%2Fb/blobs/"+strings.Replace(digest, ":", "%3A", 1))
	same(t, "header", log[0].Headers.Get("X-Meta-Source-Client"), "azure/aks")
	same(t, "user", log[0].User, "11111111-1111-4111-8111-111111111111")
	sums := counters{}
	get("/control/counters", &sums)
	same(t, "authorization at storage", sums.AuthorizationAtStorage, 1)
	same(t, "uploads", sums.Requests["registry"]["POST upload"], 1)
	same(t, "bytes in", sums.BytesIn["registry"], 7)
	s.control("log/clear", "")
	get("/control/log", &log)
	same(t, "entries of a cleared log", len(log), 0)
}
