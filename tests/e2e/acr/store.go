// Store: repositories with their manifests, tags and blobs. Blobs lie in a directory, everything else in memory.
package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// attributes are the locks that /acr/v1 calls changeableAttributes.
type attributes struct {
	Delete bool `json:"deleteEnabled"`
	Write  bool `json:"writeEnabled"`
	Read   bool `json:"readEnabled"`
	List   bool `json:"listEnabled"`
}

func unlocked() attributes { return attributes{true, true, true, true} }

type manifest struct {
	digest, mediaType string
	text              []byte
	content           manifestContent
	created, updated  time.Time
	attributes        attributes
	// imageSize, architecture and system are what the listing shows.
	imageSize            int64
	architecture, system string
}

type tag struct {
	name, digest     string
	created, updated time.Time
	attributes       attributes
}

type repository struct {
	created, updated time.Time
	attributes       attributes
	manifests        map[string]*manifest
	tags             map[string]*tag
}

// deleted is what soft delete keeps of a repository.
type deleted struct {
	created, deleted time.Time
	manifests        map[string]*deletedManifest
}

type deletedManifest struct {
	*manifest
	deleted time.Time
	tags    []string
}

type store struct {
	root string

	// mu guards all below. It is never held while something is sent or received.
	mu           sync.Mutex
	repositories map[string]*repository
	deleted      map[string]*deleted
	// blobs are there for a repository once they were pushed to it or mounted: repository → digest → size.
	blobs map[string]map[string]int64
}

func newStore(root string) (*store, error) {
	for _, directory := range []string{"blobs", "uploads"} {
		if err := os.MkdirAll(filepath.Join(root, directory), 0o755); err != nil {
			return nil, err
		}
	}
	s := &store{root: root}
	s.reset()
	return s, nil
}

// reset forgets all content; files of blobs stay behind, nothing refers to them.
func (s *store) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.repositories, s.deleted, s.blobs = map[string]*repository{}, map[string]*deleted{}, map[string]map[string]int64{}
}

func (s *store) blobPath(digest string) string {
	return filepath.Join(s.root, "blobs", strings.ReplaceAll(digest, ":", "-"))
}

func (s *store) blobSize(repository, digest string) (int64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size, there := s.blobs[repository][digest]
	return size, there
}

// keepBlob moves a finished upload to its place and links it.
func (s *store) keepBlob(repository, digest, file string, size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := os.Rename(file, s.blobPath(digest)); err != nil {
		return err
	}
	s.link(repository, digest, size)
	return nil
}

func (s *store) link(repository, digest string, size int64) {
	if s.blobs[repository] == nil {
		s.blobs[repository] = map[string]int64{}
	}
	s.blobs[repository][digest] = size
}

// mount links a blob of another repository.
func (s *store) mount(repository, from, digest string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	size, there := s.blobs[from][digest]
	if there {
		s.link(repository, digest, size)
	}
	return there
}

func (s *store) deleteBlob(repository, digest string) *failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, there := s.blobs[repository][digest]; !there {
		return blobUnknown(digest)
	}
	if r := s.repositories[repository]; r != nil && !(r.attributes.Delete && r.attributes.Write) {
		return disallowed()
	}
	delete(s.blobs[repository], digest)
	return nil
}

// open says whether a repository may be read from or written to; one that is not there yet may.
func (s *store) open(repository string, write bool) *failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repositories[repository]
	if r == nil || write && r.attributes.Write || !write && r.attributes.Read {
		return nil
	}
	return disallowed()
}

// find returns a copy of the manifest that a tag or digest means.
func (s *store) find(name, reference string) (manifest, *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repositories[name]
	if r == nil {
		return manifest{}, nameUnknown(name)
	}
	readable, digest := r.attributes.Read, reference
	if !digestPattern.MatchString(reference) {
		t := r.tags[reference]
		if t == nil {
			return manifest{}, manifestUnknown(reference)
		}
		readable, digest = readable && t.attributes.Read, t.digest
	}
	m := r.manifests[digest]
	if m == nil {
		return manifest{}, manifestUnknown(reference)
	}
	if !readable || !m.attributes.Read {
		return manifest{}, disallowed()
	}
	return *m, nil
}

// put stores a manifest, and a tag for it unless that is empty.
func (s *store) put(name, tagName string, m manifest) *failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now().UTC()
	r := s.repositories[name]
	if r == nil {
		r = &repository{created: now, attributes: unlocked(), manifests: map[string]*manifest{}, tags: map[string]*tag{}}
	}
	if !r.attributes.Write {
		return disallowed()
	}
	t := r.tags[tagName]
	if t != nil && t.digest != m.digest && !t.attributes.Write {
		return disallowed()
	}
	s.repositories[name], r.updated = r, now
	if old := r.manifests[m.digest]; old == nil {
		m.created, m.updated, m.attributes = now, now, unlocked()
		r.manifests[m.digest] = &m
	} else {
		old.mediaType, old.updated = m.mediaType, now
	}
	if tagName == "" {
		return nil
	}
	if t == nil {
		r.tags[tagName] = &tag{name: tagName, digest: m.digest, created: now, updated: now, attributes: unlocked()}
	} else if t.digest != m.digest {
		t.digest, t.updated = m.digest, now
	}
	return nil
}

// deleteManifest takes a manifest away with its tags and with all manifests that refer to it.
func (s *store) deleteManifest(name, digest string, soft bool) *failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repositories[name]
	if r == nil {
		return nameUnknown(name)
	}
	if r.manifests[digest] == nil {
		return manifestUnknown(digest)
	}
	doomed := r.withReferrers(digest)
	if !r.attributes.Delete || !r.attributes.Write || !r.deletable(doomed) {
		return disallowed()
	}
	for _, d := range doomed {
		s.drop(name, r, d, soft)
	}
	return nil
}

// withReferrers is a manifest, those that refer to it, those that refer to them, and so on.
func (r *repository) withReferrers(digest string) []string {
	list := []string{digest}
	for at := 0; at < len(list); at++ {
		for _, d := range slices.Sorted(maps.Keys(r.manifests)) {
			if r.manifests[d].content.subject() == list[at] && !slices.Contains(list, d) {
				list = append(list, d)
			}
		}
	}
	return list
}

// deletable says whether no lock of these manifests or their tags stands against it.
func (r *repository) deletable(digests []string) bool {
	for _, d := range digests {
		if m := r.manifests[d]; !m.attributes.Delete || !m.attributes.Write {
			return false
		}
	}
	for _, t := range r.tags {
		if slices.Contains(digests, t.digest) && !(t.attributes.Delete && t.attributes.Write) {
			return false
		}
	}
	return true
}

// drop takes away one manifest with its tags; a repository without manifests is none.
func (s *store) drop(name string, r *repository, digest string, soft bool) {
	now := time.Now().UTC()
	tags := r.tagsOf(digest)
	for _, t := range tags {
		delete(r.tags, t)
	}
	if soft {
		if s.deleted[name] == nil {
			s.deleted[name] = &deleted{created: r.created, manifests: map[string]*deletedManifest{}}
		}
		s.deleted[name].deleted = now
		s.deleted[name].manifests[digest] = &deletedManifest{r.manifests[digest], now, tags}
	}
	delete(r.manifests, digest)
	r.updated = now
	if len(r.manifests) == 0 {
		delete(s.repositories, name)
	}
}

// tagsOf are the names of the tags that mean a manifest.
func (r *repository) tagsOf(digest string) []string {
	names := []string{}
	for _, name := range slices.Sorted(maps.Keys(r.tags)) {
		if r.tags[name].digest == digest {
			names = append(names, name)
		}
	}
	return names
}

// untag takes away a tag and returns the digest that it meant.
func (s *store) untag(name, tagName string) (string, *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repositories[name]
	if r == nil {
		return "", nameUnknown(name)
	}
	t := r.tags[tagName]
	if t == nil {
		return "", tagUnknown()
	}
	if !(r.attributes.Delete && r.attributes.Write && t.attributes.Delete && t.attributes.Write) {
		return "", disallowed()
	}
	delete(r.tags, tagName)
	r.updated = time.Now().UTC()
	return t.digest, nil
}

// deleteRepository takes away all of a repository and returns its manifests and tags.
func (s *store) deleteRepository(name string, soft bool) (digests, tags []string, failed *failure) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.repositories[name]
	if r == nil {
		return nil, nil, nameUnknown(name)
	}
	digests, tags = slices.AppendSeq([]string{}, maps.Keys(r.manifests)), slices.AppendSeq([]string{}, maps.Keys(r.tags))
	slices.Sort(digests)
	slices.Sort(tags)
	if !r.attributes.Delete || !r.attributes.Write || !r.deletable(digests) {
		return nil, nil, disallowed()
	}
	for _, d := range digests {
		s.drop(name, r, d, soft)
	}
	delete(s.repositories, name)
	if !soft {
		delete(s.blobs, name)
	}
	return digests, tags, nil
}

// restore brings back a manifest that was deleted softly, with one tag or with none.
func (s *store) restore(name, digest, tagName string, force bool) *failure {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.deleted[name]
	if d == nil || d.manifests[digest] == nil {
		return manifestUnknown(digest)
	}
	now := time.Now().UTC()
	r := s.repositories[name]
	if r == nil {
		r = &repository{created: d.created, attributes: unlocked(), manifests: map[string]*manifest{}, tags: map[string]*tag{}}
	}
	if t := r.tags[tagName]; t != nil && t.digest != digest && !force {
		return fails(409, "CONFLICT", "tag "+tagName+" exists")
	}
	s.repositories[name], r.updated = r, now
	r.manifests[digest] = d.manifests[digest].manifest
	if tagName != "" {
		r.tags[tagName] = &tag{name: tagName, digest: digest, created: now, updated: now, attributes: unlocked()}
	}
	delete(d.manifests, digest)
	if len(d.manifests) == 0 {
		delete(s.deleted, name)
	}
	return nil
}

func manifestUnknown(reference string) *failure {
	if digestPattern.MatchString(reference) {
		return fails(404, "MANIFEST_UNKNOWN", "manifest "+reference+" is not found").with(map[string]string{"Revision": reference})
	}
	return fails(404, "MANIFEST_UNKNOWN", `manifest tagged by "`+reference+`" is not found`).with(map[string]string{"Tag": reference})
}

func tagUnknown() *failure { return fails(404, "TAG_UNKNOWN", "the specified tag does not exist") }
