// Tests of manifests, blobs, storage, lists and metadata.
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestBlobIsRedirectedToStorageThatWantsNoCredentials(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("library/x")
	content := []byte("0123456789")
	digest := s.pushBlob("library/x", content, auth)
	got := s.expect(307, "GET", "/v2/library%2Fx/blobs/"+url.QueryEscape(digest), nil, auth...)
	location := got.Header.Get("Location")
	if !strings.Contains(location, "//docker/registry/v2/blobs/sha256/84/") || !strings.HasPrefix(string(got.text), `<a href="http://`) {
		t.Errorf("redirect: %s\n%s", location, got.text)
	}
	same(t, "digest of the redirect", got.Header.Get("Docker-Content-Digest"), digest)
	got = s.expect(200, "GET", location, nil)
	same(t, "content", string(got.text), string(content))
	same(t, "digest header of storage", got.Header.Get("Docker-Content-Digest"), "")
	for ranged, want := range map[string]string{"bytes=2-4": "206 234", "bytes=5-99": "206 56789", "bytes=7-": "206 789", "bytes=-3": "200 0123456789", "bytes=10-": "416 "} {
		got := s.do("GET", location, nil, "Range", ranged)
		text := string(got.text)
		if got.StatusCode == 416 {
			text = ""
		}
		same(t, ranged, fmt.Sprint(got.StatusCode, " ", text), want)
	}
	got = s.expect(400, "GET", location, nil, auth...)
	if !strings.Contains(string(got.text), "InvalidAuthenticationInfo") {
		t.Errorf("body: %s", got.text)
	}
	s.expect(403, "GET", strings.Replace(location, "//docker", "/docker", 1), nil)
	s.control("settings", `{"sas_lifetime":"-2s"}`)
	got = s.expect(307, "GET", "/v2/library/x/blobs/"+digest, nil, auth...)
	s.expect(403, "GET", got.Header.Get("Location"), nil)

	s.control("settings", `{"sas_lifetime":"1m","redirect_min":11}`)
	got = s.expect(200, "GET", "/v2/library/x/blobs/"+digest, nil, append([]string{"Range", "bytes=-4"}, auth...)[2:]...)
	same(t, "content of a small blob", string(got.text), string(content))
	got = s.expect(206, "GET", "/v2/library/x/blobs/"+digest, nil, append([]string{"Range", "bytes=-4"}, auth...)...)
	same(t, "its end", string(got.text), "6789")
	s.control("settings", `{"redirect_min":0,"storage_style":"data-query"}`)
	got = s.expect(307, "GET", "/v2/library/x/blobs/"+digest, nil, auth...)
	where, err := url.Parse(got.Header.Get("Location"))
	if err != nil || where.Path != "" || !strings.HasPrefix(where.Host, "myregistry.westeurope.data.azurecr.io:") {
		t.Errorf("data endpoint: %v %v", where, err)
	}
	s.expect(200, "GET", "http://"+s.listening["storage"]+"/?"+where.RawQuery, nil)
}

func TestEmptyBlob(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("a")
	digest := s.pushBlob("a", nil, auth)
	same(t, "length", s.expect(200, "HEAD", "/v2/a/blobs/"+digest, nil, auth...).ContentLength, 0)
	got := s.expect(200, "GET", s.expect(307, "GET", "/v2/a/blobs/"+digest, nil, auth...).Header.Get("Location"), nil)
	same(t, "content", len(got.text), 0)
}

func TestManifestIsStoredToTheByteAndChecked(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("a")
	digest := s.pushImage("a", "v1", "layer", auth)
	byTag, byDigest := s.expect(200, "GET", "/v2/a/manifests/v1", nil, auth...), s.expect(200, "GET", "/v2/a/manifests/"+strings.Replace(digest, ":", "%3A", 1), nil, auth...)
	same(t, "bytes", string(byTag.text), string(byDigest.text))
	same(t, "digest", digestLike("", byTag.text), digest)
	same(t, "ETag", byTag.Header.Get("ETag"), `"`+digest+`"`)
	same(t, "type", byTag.Header.Get("Content-Type"), typeOCIManifest)
	put := func(reference, contentType, text string) string {
		got := s.do("PUT", "/v2/a/manifests/"+reference, strings.NewReader(text), append([]string{"Content-Type", contentType}, auth...)...)
		return fmt.Sprint(got.StatusCode, " ", code(t, got))
	}
	text := string(byTag.text)
	same(t, "wrong digest", put("sha256:"+hex64, typeOCIManifest, text), "400 DIGEST_INVALID")
	same(t, "no digest at all", put("sha256:bad", typeOCIManifest, text), "400 DIGEST_INVALID")
	same(t, "wrong type", put("v2", typeDockerManifest, text), "400 MANIFEST_INVALID")
	same(t, "unknown type", put("v2", "text/plain", text), "400 MANIFEST_INVALID")
	same(t, "unknown blob", put("v2", typeOCIManifest, strings.Replace(text, `"layers":[{`, `"layers":[{"digest":"sha256:`+hex64+`"},{`, 1)), "400 MANIFEST_BLOB_UNKNOWN")
	same(t, "unknown child", put("v2", typeOCIIndex, `{"schemaVersion":2,"manifests":[{"digest":"sha256:`+hex64+`"}]}`), "400 MANIFEST_BLOB_UNKNOWN")
	same(t, "too large", put("v2", typeOCIManifest, text+strings.Repeat(" ", 4<<20)), "413 MANIFEST_INVALID")
	same(t, "unknown tag", code(t, s.expect(404, "GET", "/v2/a/manifests/v9", nil, auth...)), "MANIFEST_UNKNOWN")
	s.expect(405, "DELETE", "/v2/a/manifests/v1", nil, auth...)
}

func TestReferrersAreListedAndGoWithWhatTheyReferTo(t *testing.T) {
	s := newSim(t, func(o *options) { o.settings.PageSize = 2 })
	auth := s.bearer("a/b")
	image := s.pushImage("a/b", "v1", "layer", auth)
	refer := func(subject, artifactType string) string {
		return s.pushImage("a/b", "", artifactType, auth, `,"artifactType":"`+artifactType+`","subject":{"mediaType":"`+typeOCIManifest+`","digest":"`+subject+`","size":1}`)
	}
	first := refer(image, "text/a")
	for _, kind := range []string{"text/b", "text/c"} {
		refer(image, kind)
	}
	second := refer(first, "text/d")
	list := func(path string) ([]descriptor, http.Header) {
		got := s.expect(200, "GET", path, nil, auth...)
		same(t, "type", got.Header.Get("Content-Type"), typeOCIIndex)
		var index struct{ Manifests []descriptor }
		if err := json.Unmarshal(got.text, &index); err != nil {
			t.Fatal(err)
		}
		return index.Manifests, got.Header
	}
	path := "/v2/a%2Fb/referrers/" + strings.Replace(image, ":", "%3A", 1)
	page, header := list(path)
	same(t, "first page", len(page), 2)
	next, _, _ := strings.Cut(strings.TrimPrefix(header.Get("Link"), "<"), ">")
	page, header = list(next)
	same(t, "second page", len(page), 1)
	same(t, "no third page", header.Get("Link"), "")
	page, header = list(path + "?artifactType=text/a")
	same(t, "filtered", len(page), 1)
	same(t, "artifact type", page[0].ArtifactType, "text/a")
	same(t, "filter", header.Get("OCI-Filters-Applied"), "artifactType")
	page, _ = list("/v2/a/b/referrers/sha256:" + hex64)
	same(t, "of nothing", len(page), 0)

	s.expect(202, "DELETE", "/v2/a/b/manifests/"+image, nil, auth...)
	for _, digest := range []string{image, first, second} {
		s.expect(404, "GET", "/v2/a/b/manifests/"+digest, nil, auth...)
	}
	same(t, "error", code(t, s.expect(404, "GET", "/v2/a/b/tags/list", nil, auth...)), "NAME_UNKNOWN")
}

func TestListsHaveTheRegistrysLinks(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("library/a", "library/b")
	s.pushImage("library/b", "v1", "0", auth)
	for _, name := range []string{"v1", "v2", "v3"} {
		s.pushImage("library/a", name, name, auth)
	}
	for path, link := range map[string]string{
		"/v2/_catalog?n=1":                              `</v2/_catalog?last=library%2Fa&n=1&orderby=>; rel="next"`,
		"/acr/v1/_catalog?n=1":                          `</acr/v1/_catalog?last=library%2Fa&n=1&orderby=>; rel="next"`,
		"/acr/v1/_catalog?n=1&last=library%2Fa":         "",
		"/v2/library/a/tags/list?n=2":                   `</v2/library%2Fa/tags/list?last=v2&n=2&orderby=>; rel="next"`,
		"/v2/library/a/tags/list?n=0":                   "",
		"/acr/v1/library%2Fa/_tags?n=2&orderby=timeasc": `</acr/v1/library%2Fa/_tags?last=v2&n=2&orderby=timeasc>; rel="next"`,
	} {
		same(t, path, s.expect(200, "GET", path, nil, auth...).Header.Get("Link"), link)
	}
	got := s.expect(200, "GET", "/acr/v1/library/a/_manifests?n=2", nil, auth...)
	if link := got.Header.Get("Link"); !strings.HasPrefix(link, "</acr/v1/library%2Fa/_manifests?last=sha256%3A") || !strings.HasSuffix(link, `&n=2&orderby=>; rel="next"`) {
		t.Errorf("Link: %s", link)
	}
	same(t, "bad n", code(t, s.expect(400, "GET", "/v2/_catalog?n=x", nil, auth...)), "PAGINATION_NUMBER_INVALID")
	tags := func(query string) string {
		var page struct{ Tags []struct{ Name string } }
		_ = json.Unmarshal(s.expect(200, "GET", "/acr/v1/library/a/_tags?"+query, nil, auth...).text, &page)
		return fmt.Sprint(page.Tags)
	}
	same(t, "newest first", tags("orderby=timedesc"), "[{v3} {v2} {v1}]")
	same(t, "behind v3", tags("orderby=timedesc&last=v3"), "[{v2} {v1}]")
}

func TestMetadataOfATagAndARepository(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("samples/artifact")
	digest := s.pushImage("samples/artifact", "1.0", "layer", auth)
	got := s.expect(200, "GET", "/acr/v1/samples%2Fartifact/_tags/1.0?api-version=2021-07-01", nil, auth...)
	var shown struct {
		Registry, ImageName string
		Tag                 struct {
			Name, Digest, CreatedTime string
			Signed                    *bool
			ChangeableAttributes      map[string]bool
		}
	}
	if err := json.Unmarshal(got.text, &shown); err != nil {
		t.Fatal(err)
	}
	same(t, "tag", fmt.Sprint(shown.Registry, shown.ImageName, shown.Tag.Name, shown.Tag.Digest, *shown.Tag.Signed, len(shown.Tag.ChangeableAttributes)),
		fmt.Sprint(service, "samples/artifact", "1.0", digest, false, 4))
	if _, err := time.Parse("2006-01-02T15:04:05.0000000Z", shown.Tag.CreatedTime); err != nil {
		t.Error(err)
	}
	same(t, "error", code(t, s.expect(404, "GET", "/acr/v1/samples/artifact/_tags/none", nil, auth...)), "TAG_UNKNOWN")
	got = s.expect(200, "GET", "/acr/v1/samples/artifact", nil, auth...)
	if !strings.Contains(string(got.text), `"manifestCount":1,"tagCount":1,`) {
		t.Errorf("repository: %s", got.text)
	}
	got = s.expect(200, "GET", "/acr/v1/samples/artifact/_manifests/"+digest, nil, auth...)
	if !strings.Contains(string(got.text), `"architecture":"amd64","os":"linux"`) || !strings.Contains(string(got.text), `"tags":["1.0"]`) {
		t.Errorf("manifest: %s", got.text)
	}
	s.expect(202, "DELETE", "/acr/v1/samples/artifact/_tags/1.0", nil, auth...)
	s.expect(200, "GET", "/v2/samples/artifact/manifests/"+digest, nil, auth...)
	got = s.expect(202, "DELETE", "/acr/v1/samples/artifact", nil, auth...)
	same(t, "deleted", string(got.text), `{"manifestsDeleted":["`+digest+`"],"tagsDeleted":[]}`+"\n")
}

func TestLocksHold(t *testing.T) {
	s := newSim(t)
	auth := s.bearer("a")
	digest := s.pushImage("a", "v1", "one", auth)
	lock := func(path, body string) {
		t.Helper()
		s.expect(200, "PATCH", "/acr/v1/a"+path, strings.NewReader(body), append([]string{"Content-Type", "application/json"}, auth...)...)
	}
	refused := func(method, path string, body []byte, headers ...string) {
		t.Helper()
		got := s.expect(405, method, path, bytes.NewReader(body), append(headers, auth...)...)
		same(t, "error", code(t, got), "REGISTRY_DISALLOWED_OPERATION")
	}
	two := s.expect(200, "GET", "/v2/a/manifests/"+s.pushImage("a", "v2", "two", auth), nil, auth...).text
	lock("/_tags/v1", `{"writeEnabled":"false"}`) // az sends strings
	refused("PUT", "/v2/a/manifests/v1", two, "Content-Type", typeOCIManifest)
	refused("DELETE", "/v2/a/manifests/"+digest, nil)
	refused("DELETE", "/acr/v1/a/_tags/v1", nil)
	lock("/_tags/v1", `{"writeEnabled":true}`)
	lock("/_manifests/"+digest, `{"deleteEnabled":false,"readEnabled":false}`)
	refused("DELETE", "/v2/a/manifests/"+digest, nil)
	refused("GET", "/v2/a/manifests/v1", nil)
	lock("/_manifests/"+digest, `{"deleteEnabled":true,"readEnabled":true,"listEnabled":false}`)
	lock("", `{"writeEnabled":false}`)
	refused("POST", "/v2/a/blobs/uploads/", nil)
	refused("DELETE", "/acr/v1/a", nil)
	lock("", `{"writeEnabled":true}`)
	s.expect(202, "DELETE", "/v2/a/manifests/"+digest, nil, auth...)
}

func TestSoftDeleteCanBeUndone(t *testing.T) {
	s := newSim(t, func(o *options) { o.settings.SoftDelete = true })
	auth := s.bearer("a")
	digest := s.pushImage("a", "v1", "one", auth)
	s.expect(202, "DELETE", "/v2/a/manifests/"+digest, nil, auth...)
	for path, part := range map[string]string{"_catalog": `"repository":"a"`, "a/_manifests": digest, "a/_tags": `"tag":"v1"`} {
		if got := s.expect(200, "GET", "/acr/v1/_deleted/"+path, nil, auth...); !strings.Contains(string(got.text), part) {
			t.Errorf("%s: %s", path, got.text)
		}
	}
	s.expect(404, "GET", "/v2/a/manifests/v1", nil, auth...)
	s.expect(200, "POST", "/acr/v1/_deleted/a/_manifests/"+digest+"?force=false", strings.NewReader(`{"tag":"v1"}`), auth...)
	s.expect(200, "GET", "/v2/a/manifests/v1", nil, auth...)
}
