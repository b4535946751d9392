// Tests of uploads.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

func (s *sim) startUploadOf(name string, auth []string) string {
	s.t.Helper()
	location := s.expect(202, "POST", "/v2/"+name+"/blobs/uploads/", nil, auth...).Header.Get("Location")
	if !strings.HasPrefix(location, "/v2/"+name+"/blobs/uploads/") || !strings.Contains(location, "?_nouploadcache=false&_state=") {
		s.t.Fatalf("Location: %s", location)
	}
	return location
}

func TestChunksHaveToComeInOrder(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("a/b")
	location := s.startUploadOf("a/b", auth)
	patch := func(status int, location, ranged, text string) reply {
		t.Helper()
		return s.expect(status, "PATCH", location, strings.NewReader(text), append([]string{"Content-Range", ranged}, auth...)...)
	}
	same(t, "form", code(t, patch(400, location, "bytes 0-4/*", "01234")), "BLOB_UPLOAD_INVALID")
	same(t, "order", code(t, patch(416, location, "5-9", "56789")), "RANGE_INVALID")
	got := patch(202, location, "0-4", "01234")
	same(t, "Range", got.Header.Get("Range"), "0-4")
	same(t, "old state", code(t, patch(404, location, "5-9", "56789")), "BLOB_UPLOAD_INVALID")
	location = got.Header.Get("Location")
	content := []byte("0123456789")
	digest := digestLike("", content)
	s.expect(416, "PUT", location+"&digest="+digest, strings.NewReader("89"), append([]string{"Content-Range", "8-9"}, auth...)...)
	got = s.expect(204, "GET", location, nil, auth...)
	same(t, "Range", got.Header.Get("Range"), "0-4")
	if got.Header.Get("Location") == location {
		t.Error("the state did not change")
	}
	location = got.Header.Get("Location")
	got = s.expect(201, "PUT", location+"&digest="+strings.Replace(digest, ":", "%3A", 1), strings.NewReader("56789"), append([]string{"Content-Range", "5-9"}, auth...)...)
	same(t, "Location", got.Header.Get("Location"), "/v2/a/b/blobs/"+digest)
	same(t, "length", s.expect(200, "HEAD", "/v2/a/b/blobs/"+digest, nil, auth...).ContentLength, 10)
	s.expect(404, "PUT", location+"&digest="+digest, nil, auth...)
}

func TestEveryWayToUpload(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("a")
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	digest := digestLike("", content)
	whole := func() io.Reader { return bytes.NewReader(content) }
	ways := map[string]func(){
		"POST": func() { s.expect(201, "POST", "/v2/a/blobs/uploads/?digest="+digest, whole(), auth...) },
		"POST, PUT": func() {
			s.expect(201, "PUT", s.startUploadOf("a", auth)+"&digest="+digest, whole(), auth...)
		},
		"PATCH of unknown length": func() {
			location := s.expect(202, "PATCH", s.startUploadOf("a", auth), io.MultiReader(whole()), auth...).Header.Get("Location")
			s.expect(201, "PUT", location+"&digest="+digest, nil, auth...)
		},
		"SHA-512": func() {
			digest := digestLike("sha512:", content)
			s.expect(201, "PUT", s.startUploadOf("a", auth)+"&digest="+digest, whole(), auth...)
			s.expect(200, "HEAD", "/v2/a/blobs/"+digest, nil, auth...)
			s.expect(202, "DELETE", "/v2/a/blobs/"+digest, nil, auth...)
		},
	}
	for name, way := range ways {
		way()
		if name == "SHA-512" {
			continue
		}
		same(t, name, s.expect(200, "HEAD", "/v2/a/blobs/"+digest, nil, auth...).ContentLength, len(content))
		s.expect(202, "DELETE", "/v2/a/blobs/"+digest, nil, auth...)
		s.expect(404, "HEAD", "/v2/a/blobs/"+digest, nil, auth...)
	}
	for _, path := range []string{"/v2/a/blobs/uploads/?digest=sha256:" + hex64, s.startUploadOf("a", auth) + "&digest=sha256:" + hex64} {
		method := map[bool]string{true: "POST", false: "PUT"}[strings.Contains(path, "uploads/?")]
		same(t, "wrong digest", code(t, s.expect(400, method, path, whole(), auth...)), "DIGEST_INVALID")
	}
	location := s.startUploadOf("a", auth)
	s.expect(204, "DELETE", location, nil, auth...)
	s.expect(404, "GET", location, nil, auth...)
}

func TestMount(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("a", "b")
	digest := s.pushBlob("a", []byte("content"), auth)
	s.expect(202, "POST", "/v2/b/blobs/uploads/?mount="+digest, nil, auth...)
	s.expect(202, "POST", "/v2/b/blobs/uploads/?mount=sha256:"+hex64+"&from=a", nil, auth...)
	s.expect(401, "POST", "/v2/b/blobs/uploads/?mount="+digest+"&from=a", nil, s.bearer("b")...)
	s.expect(404, "HEAD", "/v2/b/blobs/"+digest, nil, auth...)
	s.expect(201, "POST", "/v2/b/blobs/uploads/?mount="+digest+"&from=a", nil, auth...)
	s.expect(200, "HEAD", "/v2/b/blobs/"+digest, nil, auth...)
}

func TestUploadIsGoneOnceItsConnectionBroke(t *testing.T) {
	for _, method := range []string{"PATCH", "PUT"} {
		s := newSim(t)
		auth := s.bearer("a")
		location := s.startUploadOf("a", auth)
		digest := digestLike("", []byte("0123456789"))
		connection, err := net.Dial("tcp", s.listening["registry"])
		if err != nil {
			t.Fatal(err)
		}
		target := location
		if method == "PUT" {
			target += "&digest=" + digest
		}
		fmt.Fprintf(connection, "%s %s HTTP/1.1\r\nHost: x\r\nAuthorization: %s\r\nContent-Length: 10\r\n\r\n01234", method, target, auth[1])
		connection.Close()
		if _, err := s.try("control", "GET", "/control/counters?wait=5s", nil); err != nil {
			t.Fatal(err)
		}
		got := s.expect(http.StatusNotFound, "PATCH", location, strings.NewReader("56789"), auth...)
		same(t, "body", string(got.text), `{"errors":[{"code":"BLOB_UPLOAD_INVALID","message":"blob upload invalid"}]}`+"\n")
		s.expect(404, "HEAD", "/v2/a/blobs/"+digest, nil, auth...)
	}
}
