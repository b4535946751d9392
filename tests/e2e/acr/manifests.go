// Manifests: GET, HEAD, PUT, DELETE, and the referrers of one (OCI distribution spec, "Listing Referrers").
package main

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
)

const (
	typeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	typeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	typeOCIManifest    = "application/vnd.oci.image.manifest.v1+json"
	typeOCIIndex       = "application/vnd.oci.image.index.v1+json"
	typeOCIArtifact    = "application/vnd.oci.artifact.manifest.v1+json"
	typeORASArtifact   = "application/vnd.cncf.oras.artifact.manifest.v1+json"
)

var manifestTypes = []string{typeDockerManifest, typeDockerList, typeOCIManifest, typeOCIIndex, typeOCIArtifact, typeORASArtifact}

type descriptor struct {
	MediaType    string            `json:"mediaType"`
	Digest       string            `json:"digest"`
	Size         int64             `json:"size"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	ArtifactType string            `json:"artifactType,omitempty"`
	URLs         []string          `json:"urls,omitempty"`
}

// manifestContent is what of a manifest the registry looks at.
type manifestContent struct {
	SchemaVersion int               `json:"schemaVersion"`
	MediaType     string            `json:"mediaType"`
	ArtifactType  string            `json:"artifactType"`
	Config        *descriptor       `json:"config"`
	Layers        []descriptor      `json:"layers"`
	Blobs         []descriptor      `json:"blobs"`
	Manifests     []descriptor      `json:"manifests"`
	Subject       *descriptor       `json:"subject"`
	Annotations   map[string]string `json:"annotations"`
}

func (c manifestContent) subject() string {
	if c.Subject == nil {
		return ""
	}
	return c.Subject.Digest
}

// artifactType is what a referrers list shows.
func (c manifestContent) artifactType() string {
	if c.ArtifactType == "" && c.Config != nil {
		return c.Config.MediaType
	}
	return c.ArtifactType
}

func (s *server) manifest(a *answer, r *http.Request, name, reference string) {
	wants := inRepository(name, "pull")
	switch r.Method {
	case http.MethodPut:
		wants = inRepository(name, "pull", "push")
	case http.MethodDelete:
		wants = inRepository(name, "delete")
	}
	if _, in := s.authorize(a, r, wants); !in {
		return
	}
	byDigest := digestPattern.MatchString(reference)
	if !byDigest && !tagPattern.MatchString(reference) {
		digestInvalid("provided digest is not valid").write(a)
		return
	}
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		s.getManifest(a, r, name, reference)
	case http.MethodPut:
		s.putManifest(a, r, name, reference)
	case http.MethodDelete:
		if !byDigest {
			unsupported().write(a)
		} else if failed := s.store.deleteManifest(name, reference, s.settings.get().SoftDelete); failed != nil {
			failed.write(a)
		} else {
			empty(a, http.StatusAccepted)
		}
	default:
		unsupported().write(a)
	}
}

func (s *server) getManifest(a *answer, r *http.Request, name, reference string) {
	m, failed := s.store.find(name, reference)
	if failed == nil && s.settings.get().StrictAccept && !accepts(r.Header.Values("Accept"), m.mediaType) {
		failed = fails(http.StatusNotFound, "MANIFEST_UNKNOWN", "the manifest is of type "+m.mediaType+", which the Accept header does not name")
	}
	if failed != nil {
		failed.write(a)
		return
	}
	etag := `"` + m.digest + `"`
	a.Header().Set("Docker-Content-Digest", m.digest)
	a.Header()["ETag"] = []string{etag}
	if r.Header.Get("If-None-Match") == etag {
		a.WriteHeader(http.StatusNotModified)
		return
	}
	a.Header().Set("Content-Type", m.mediaType)
	a.Header().Set("Content-Length", strconv.Itoa(len(m.text)))
	a.WriteHeader(http.StatusOK)
	_, _ = a.Write(m.text)
}

func accepts(headers []string, mediaType string) bool {
	if len(headers) == 0 {
		return true
	}
	for _, part := range strings.Split(strings.Join(headers, ","), ",") {
		named, _, _ := strings.Cut(strings.TrimSpace(part), ";")
		if named == mediaType || named == "*/*" || named == "application/*" {
			return true
		}
	}
	return false
}

func (s *server) putManifest(a *answer, r *http.Request, name, reference string) {
	current := s.settings.get()
	text, err := io.ReadAll(io.LimitReader(r.Body, current.ManifestMax+1))
	if err != nil {
		fails(http.StatusBadRequest, "MANIFEST_INVALID", "manifest invalid").with(err.Error()).write(a)
		return
	}
	if int64(len(text)) > current.ManifestMax {
		fails(http.StatusRequestEntityTooLarge, "MANIFEST_INVALID", fmt.Sprintf("manifest is larger than %d bytes", current.ManifestMax)).write(a)
		return
	}
	m, failed := s.readManifest(name, r.Header.Get("Content-Type"), text, current)
	if failed == nil && digestPattern.MatchString(reference) {
		m.digest = digestLike(reference, text)
		if m.digest != reference {
			failed = digestInvalid("provided digest did not match uploaded content")
		}
		reference = ""
	}
	if failed == nil {
		failed = s.store.put(name, reference, m)
	}
	if failed != nil {
		failed.write(a)
		return
	}
	if subject := m.content.subject(); subject != "" {
		a.Header()["OCI-Subject"] = []string{subject}
	}
	a.Header().Set("Location", "/v2/"+name+"/manifests/"+m.digest)
	a.Header().Set("Docker-Content-Digest", m.digest)
	empty(a, http.StatusCreated)
}

// readManifest checks what a client pushes.
func (s *server) readManifest(name, contentType string, text []byte, current settings) (manifest, *failure) {
	invalid := func(why string) (manifest, *failure) {
		return manifest{}, fails(http.StatusBadRequest, "MANIFEST_INVALID", "manifest invalid").with(why)
	}
	m := manifest{mediaType: strings.TrimSpace(strings.Split(contentType, ";")[0]), text: text, digest: digestLike("sha256:", text)}
	if !slices.Contains(manifestTypes, m.mediaType) {
		return invalid("unsupported media type " + strconv.Quote(m.mediaType))
	}
	if err := json.Unmarshal(text, &m.content); err != nil {
		return invalid(err.Error())
	}
	c := m.content
	if c.MediaType != "" && c.MediaType != m.mediaType {
		return invalid("mediaType in manifest should be '" + m.mediaType + "' not '" + c.MediaType + "'")
	}
	isArtifact := m.mediaType == typeOCIArtifact || m.mediaType == typeORASArtifact
	if c.SchemaVersion != 2 && !isArtifact {
		return invalid("unrecognized manifest schema version " + strconv.Itoa(c.SchemaVersion))
	}
	isImage := m.mediaType == typeDockerManifest || m.mediaType == typeOCIManifest
	if isImage && c.Config == nil {
		return invalid("config is missing")
	}
	if c.Subject != nil && !digestPattern.MatchString(c.Subject.Digest) {
		return invalid("subject has no valid digest")
	}
	blobs := slices.Concat(c.Layers, c.Blobs)
	if c.Config != nil {
		blobs = append(blobs, *c.Config)
	}
	for _, b := range blobs {
		if !digestPattern.MatchString(b.Digest) {
			return invalid("invalid checksum digest format")
		}
		m.imageSize += b.Size
		// Content that lies elsewhere need not be here.
		if _, there := s.store.blobSize(name, b.Digest); !there && len(b.URLs) == 0 {
			return manifest{}, fails(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "blob unknown to registry").with(b.Digest)
		}
	}
	for _, child := range c.Manifests {
		if !digestPattern.MatchString(child.Digest) {
			return invalid("invalid checksum digest format")
		}
		m.imageSize += child.Size
		if _, failed := s.store.find(name, child.Digest); failed != nil && !current.SparseIndex {
			return manifest{}, fails(http.StatusBadRequest, "MANIFEST_BLOB_UNKNOWN", "manifest unknown to registry").with(child.Digest)
		}
	}
	if isImage {
		m.architecture, m.system = s.platform(c.Config)
	}
	return m, nil
}

// platform reads architecture and operating system out of an image's configuration.
func (s *server) platform(config *descriptor) (string, string) {
	var said struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
	}
	if config.Size > 4<<20 {
		return "", ""
	}
	text, err := os.ReadFile(s.store.blobPath(config.Digest))
	if err != nil || json.Unmarshal(text, &said) != nil {
		return "", ""
	}
	return said.Architecture, said.OS
}

// digestLike is the digest of text by the algorithm that a digest (or its beginning) names.
func digestLike(like string, text []byte) string {
	if strings.HasPrefix(like, "sha512:") {
		return fmt.Sprintf("sha512:%x", sha512.Sum512(text))
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256(text))
}

func (s *server) referrers(a *answer, r *http.Request, name, digest string) {
	if _, in := s.authorize(a, r, inRepository(name, "pull")); !in {
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		unsupported().write(a)
		return
	}
	if !digestPattern.MatchString(digest) {
		digestInvalid("provided digest is not valid").write(a)
		return
	}
	wanted := r.URL.Query().Get("artifactType")
	list := s.store.referrers(name, digest, wanted)
	page, next, failed := paged(r, s.settings.get().PageSize, list, func(d descriptor) string { return d.Digest }, true)
	if failed != nil {
		failed.write(a)
		return
	}
	if wanted != "" {
		a.Header()["OCI-Filters-Applied"] = []string{"artifactType"}
	}
	if next != "" {
		query := url.Values{"last": {page[len(page)-1].Digest}, "n": {strconv.Itoa(len(page))}}
		if wanted != "" {
			query.Set("artifactType", wanted)
		}
		a.Header().Set("Link", "</v2/"+url.PathEscape(name)+"/referrers/"+url.PathEscape(digest)+"?"+query.Encode()+`>; rel="next"`)
	}
	text := encode(map[string]any{"schemaVersion": 2, "mediaType": typeOCIIndex, "manifests": page})
	a.Header().Set("Content-Type", typeOCIIndex)
	a.Header().Set("Content-Length", strconv.Itoa(len(text)))
	a.WriteHeader(http.StatusOK)
	_, _ = a.Write(text)
}

// referrers lists what refers to a manifest, which need not be there, in the order of digests.
func (s *store) referrers(name, digest, artifactType string) []descriptor {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []descriptor{}
	r := s.repositories[name]
	if r == nil {
		return list
	}
	for _, d := range slices.Sorted(maps.Keys(r.manifests)) {
		m := r.manifests[d]
		if m.content.subject() != digest || artifactType != "" && m.content.artifactType() != artifactType {
			continue
		}
		list = append(list, descriptor{MediaType: m.mediaType, Digest: d, Size: int64(len(m.text)), Annotations: m.content.Annotations, ArtifactType: m.content.artifactType()})
	}
	return list
}
