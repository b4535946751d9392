// Metadata: the registry's own API under /acr/v1, as az and the Azure SDKs use it (swagger "Azure Container Registry",
// 2021-07-01).
package main

import (
	"cmp"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// acrTime has seven digits behind the point.
type acrTime time.Time

func (t acrTime) MarshalText() ([]byte, error) {
	return []byte(time.Time(t).UTC().Format("2006-01-02T15:04:05.0000000Z")), nil
}

type repositoryView struct {
	Registry   string     `json:"registry"`
	Name       string     `json:"imageName"`
	Created    acrTime    `json:"createdTime"`
	Updated    acrTime    `json:"lastUpdateTime"`
	Manifests  int        `json:"manifestCount"`
	Tags       int        `json:"tagCount"`
	Attributes attributes `json:"changeableAttributes"`
}

type tagView struct {
	Name       string     `json:"name"`
	Digest     string     `json:"digest"`
	Created    acrTime    `json:"createdTime"`
	Updated    acrTime    `json:"lastUpdateTime"`
	Signed     bool       `json:"signed"`
	Attributes attributes `json:"changeableAttributes"`
}

type manifestView struct {
	Digest          string             `json:"digest"`
	ImageSize       int64              `json:"imageSize"`
	Created         acrTime            `json:"createdTime"`
	Updated         acrTime            `json:"lastUpdateTime"`
	Architecture    string             `json:"architecture,omitempty"`
	OS              string             `json:"os,omitempty"`
	MediaType       string             `json:"mediaType"`
	ConfigMediaType string             `json:"configMediaType,omitempty"`
	ArtifactType    string             `json:"artifactType,omitempty"`
	Tags            []string           `json:"tags,omitempty"`
	Attributes      manifestAttributes `json:"changeableAttributes"`
}

type manifestAttributes struct {
	attributes
	Quarantine string `json:"quarantineState"`
}

func (t *tag) view() tagView {
	return tagView{Name: t.name, Digest: t.digest, Created: acrTime(t.created), Updated: acrTime(t.updated), Attributes: t.attributes}
}

func (r *repository) manifestView(m *manifest) manifestView {
	v := manifestView{Digest: m.digest, ImageSize: m.imageSize, Created: acrTime(m.created), Updated: acrTime(m.updated), Architecture: m.architecture,
		OS: m.system, MediaType: m.mediaType, ArtifactType: m.content.ArtifactType, Tags: r.tagsOf(m.digest), Attributes: manifestAttributes{m.attributes, "Passed"}}
	if m.content.Config != nil {
		v.ConfigMediaType = m.content.Config.MediaType
	}
	return v
}

func (s *server) serveMetadata(a *answer, r *http.Request, segments []string) {
	if segments[0] == "_deleted" {
		s.serveDeleted(a, r, segments[1:])
		return
	}
	name, what, item := metadataPath(segments)
	if !validName(name) {
		notFound(a)
		return
	}
	wants := inRepository(name, "metadata_read")
	switch r.Method {
	case http.MethodDelete:
		wants = inRepository(name, "delete")
	case http.MethodPatch:
		wants = inRepository(name, "metadata_write")
	}
	if _, in := s.authorize(a, r, wants); !in {
		return
	}
	switch {
	case r.Method == http.MethodGet && what != "" && item == "":
		s.listMetadata(a, r, name, what)
	case r.Method == http.MethodGet:
		s.showMetadata(a, name, what, item, nil)
	case r.Method == http.MethodPatch && (what == "" || item != ""):
		change, failed := readLocks(r)
		if failed != nil {
			failed.write(a)
			return
		}
		s.showMetadata(a, name, what, item, change)
	case r.Method == http.MethodDelete && what == "":
		digests, tags, failed := s.store.deleteRepository(name, s.settings.get().SoftDelete)
		if failed != nil {
			failed.write(a)
			return
		}
		writeJSON(a, http.StatusAccepted, map[string]any{"manifestsDeleted": digests, "tagsDeleted": tags})
	case r.Method == http.MethodDelete && what == "_tags" && item != "":
		digest, failed := s.store.untag(name, item)
		if failed != nil {
			failed.write(a)
			return
		}
		a.Header().Set("X-Ms-Int-Docker-Content-Digest", digest)
		empty(a, http.StatusAccepted)
	default:
		unsupported().write(a)
	}
}

// metadataPath reads NAME, NAME/_tags[/T], NAME/_manifests[/D].
func metadataPath(segments []string) (name, what, item string) {
	for _, n := range []int{1, 2} {
		if len(segments) <= n {
			break
		}
		before, rest := tail(segments, n)
		if rest[0] == "_tags" || rest[0] == "_manifests" {
			if n == 2 {
				item = rest[1]
			}
			return before, rest[0], item
		}
	}
	return strings.Join(segments, "/"), "", ""
}

// readLocks reads a PATCH. az sends its booleans as strings.
func readLocks(r *http.Request) (map[string]bool, *failure) {
	invalid := fails(http.StatusBadRequest, "BAD_REQUEST", "invalid request body")
	text, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	said := map[string]any{}
	if err != nil || json.Unmarshal(text, &said) != nil {
		return nil, invalid
	}
	change := map[string]bool{}
	for key, value := range said {
		switch value {
		case true, "true", "True":
			change[key] = true
		case false, "false", "False":
			change[key] = false
		case nil:
		default:
			return nil, invalid
		}
	}
	return change, nil
}

func (a *attributes) change(by map[string]bool) {
	for key, target := range map[string]*bool{"deleteEnabled": &a.Delete, "writeEnabled": &a.Write, "readEnabled": &a.Read, "listEnabled": &a.List} {
		if value, said := by[key]; said {
			*target = value
		}
	}
}

// showMetadata answers with one repository, tag or manifest, its locks changed before.
func (s *server) showMetadata(a *answer, name, what, item string, change map[string]bool) {
	shown, failed := func() (any, *failure) {
		s.store.mu.Lock()
		defer s.store.mu.Unlock()
		r := s.store.repositories[name]
		if r == nil {
			return nil, nameUnknown(name)
		}
		shown := map[string]any{"registry": s.loginServer, "imageName": name}
		switch what {
		case "_tags":
			t := r.tags[item]
			if t == nil {
				return nil, tagUnknown()
			}
			t.attributes.change(change)
			return struct {
				Registry string  `json:"registry"`
				Name     string  `json:"imageName"`
				Tag      tagView `json:"tag"`
			}{s.loginServer, name, t.view()}, nil
		case "_manifests":
			m := r.manifests[item]
			if m == nil {
				return nil, manifestUnknown(item)
			}
			m.attributes.change(change)
			shown["manifest"] = r.manifestView(m)
			return shown, nil
		}
		r.attributes.change(change)
		return repositoryView{s.loginServer, name, acrTime(r.created), acrTime(r.updated), len(r.manifests), len(r.tags), r.attributes}, nil
	}()
	if failed != nil {
		failed.write(a)
		return
	}
	writeJSON(a, http.StatusOK, shown)
}

// listMetadata answers with a page of tags (of one manifest, if the query says so) or manifests.
func (s *server) listMetadata(a *answer, r *http.Request, name, what string) {
	digest := r.URL.Query().Get("digest")
	tags, manifests := []tagView{}, []manifestView{}
	s.store.mu.Lock()
	repository := s.store.repositories[name]
	if repository != nil {
		for _, t := range repository.tags {
			if t.attributes.List && (digest == "" || t.digest == digest) {
				tags = append(tags, t.view())
			}
		}
		for _, m := range repository.manifests {
			if m.attributes.List {
				manifests = append(manifests, repository.manifestView(m))
			}
		}
	}
	s.store.mu.Unlock()
	if repository == nil {
		nameUnknown(name).write(a)
		return
	}
	path := "/acr/v1/" + url.PathEscape(name) + "/" + what
	if what == "_tags" {
		answerPage(s, a, r, path, name, "tags", tags, func(t tagView) (string, time.Time) { return t.Name, time.Time(t.Updated) })
		return
	}
	answerPage(s, a, r, path, name, "manifests", manifests, func(m manifestView) (string, time.Time) { return m.Digest, time.Time(m.Updated) })
}

// answerPage sorts a list, cuts out the page that is asked for, and answers with it. An empty name is left out.
func answerPage[T any](s *server, a *answer, r *http.Request, path, name, key string, list []T, about func(T) (string, time.Time)) {
	orderBy := r.URL.Query().Get("orderby")
	byTime := orderBy == "timeasc" || orderBy == "timedesc"
	slices.SortFunc(list, func(x, y T) int {
		nameX, timeX := about(x)
		nameY, timeY := about(y)
		switch orderBy {
		case "timeasc":
			return cmp.Or(timeX.Compare(timeY), cmp.Compare(nameX, nameY))
		case "timedesc":
			return cmp.Or(timeY.Compare(timeX), cmp.Compare(nameX, nameY))
		}
		return cmp.Compare(nameX, nameY)
	})
	page, next, failed := paged(r, s.settings.get().PageSize, list, func(t T) string {
		name, _ := about(t)
		return name
	}, !byTime)
	if failed != nil {
		failed.write(a)
		return
	}
	linkNext(a.Header(), path, next, len(page), orderBy)
	answer := map[string]any{"registry": s.loginServer, key: page}
	if name != "" {
		answer["imageName"] = name
	}
	writeJSON(a, http.StatusOK, answer)
}

type deletedRepositoryView struct {
	Created acrTime `json:"createdAt"`
	Deleted acrTime `json:"deletedAt"`
	Name    string  `json:"repository"`
}

type deletedManifestView struct {
	Created acrTime  `json:"createdAt"`
	Deleted acrTime  `json:"deletedAt"`
	Digest  string   `json:"digest"`
	Tags    []string `json:"tags,omitempty"`
}

type deletedTagView struct {
	Created acrTime `json:"createdAt"`
	Deleted acrTime `json:"deletedAt"`
	Digest  string  `json:"digest"`
	Tag     string  `json:"tag"`
}

// serveDeleted is soft delete: what was deleted, and its way back.
func (s *server) serveDeleted(a *answer, r *http.Request, segments []string) {
	if len(segments) == 1 && segments[0] == "_catalog" {
		if _, in := s.authorize(a, r, inRegistry("deleted_catalog")); !in {
			return
		}
		list := []deletedRepositoryView{}
		s.store.mu.Lock()
		for name, d := range s.store.deleted {
			list = append(list, deletedRepositoryView{acrTime(d.created), acrTime(d.deleted), name})
		}
		s.store.mu.Unlock()
		answerPage(s, a, r, "/acr/v1/_deleted/_catalog", "", "repositories", list, func(v deletedRepositoryView) (string, time.Time) { return v.Name, time.Time(v.Deleted) })
		return
	}
	name, what, item := metadataPath(segments)
	if !validName(name) || what == "" {
		notFound(a)
		return
	}
	wants := inRepository(name, "deleted_read")
	if r.Method == http.MethodPost {
		wants = inRepository(name, "deleted_read", "deleted_restore")
	}
	if _, in := s.authorize(a, r, wants); !in {
		return
	}
	switch {
	case r.Method == http.MethodGet && item == "":
		s.listDeleted(a, r, name, what)
	case r.Method == http.MethodPost && what == "_manifests" && item != "":
		var said struct {
			Tag string `json:"tag"`
		}
		text, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
		if err != nil || len(text) > 0 && json.Unmarshal(text, &said) != nil {
			fails(http.StatusBadRequest, "BAD_REQUEST", "invalid request body").write(a)
			return
		}
		force := strings.EqualFold(r.URL.Query().Get("force"), "true")
		if failed := s.store.restore(name, item, said.Tag, force); failed != nil {
			failed.write(a)
			return
		}
		writeJSON(a, http.StatusOK, map[string]any{"registry": s.loginServer, "imageName": name, "digest": item, "tag": said.Tag})
	default:
		unsupported().write(a)
	}
}

func (s *server) listDeleted(a *answer, r *http.Request, name, what string) {
	manifests, tags := []deletedManifestView{}, []deletedTagView{}
	s.store.mu.Lock()
	d := s.store.deleted[name]
	if d != nil {
		for digest, m := range d.manifests {
			manifests = append(manifests, deletedManifestView{acrTime(m.created), acrTime(m.deleted), digest, m.tags})
			for _, t := range m.tags {
				tags = append(tags, deletedTagView{acrTime(m.created), acrTime(m.deleted), digest, t})
			}
		}
	}
	s.store.mu.Unlock()
	if d == nil {
		nameUnknown(name).write(a)
		return
	}
	path := "/acr/v1/_deleted/" + url.PathEscape(name) + "/" + what
	if what == "_tags" {
		answerPage(s, a, r, path, name, "tags", tags, func(v deletedTagView) (string, time.Time) { return v.Tag, time.Time(v.Deleted) })
		return
	}
	answerPage(s, a, r, path, name, "manifests", manifests, func(v deletedManifestView) (string, time.Time) { return v.Digest, time.Time(v.Deleted) })
}
