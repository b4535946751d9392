// Listing: pages of any list with their Link header, the catalog, and a repository's tags.
package main

import (
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
)

// paged cuts out the page that `last` and `n` ask for, and returns `last` of the next one if there is more. Sorted lists
// (by key) go on behind `last` even if that is gone, others only where it stands.
func paged[T any](r *http.Request, most int, list []T, key func(T) string, sorted bool) ([]T, string, *failure) {
	query, n := r.URL.Query(), most
	if text := query.Get("n"); text != "" {
		asked, err := strconv.Atoi(text)
		if err != nil || asked < 0 {
			return nil, "", fails(http.StatusBadRequest, "PAGINATION_NUMBER_INVALID", "invalid number of results requested").with(map[string]string{"n": text})
		}
		n = min(asked, most)
	}
	if last := query.Get("last"); last != "" {
		at := slices.IndexFunc(list, func(t T) bool { return key(t) == last })
		switch {
		case at >= 0:
			list = list[at+1:]
		case sorted:
			behind := slices.IndexFunc(list, func(t T) bool { return key(t) > last })
			if behind < 0 {
				behind = len(list)
			}
			list = list[behind:]
		}
	}
	if n == 0 || len(list) <= n {
		return list[:min(n, len(list))], "", nil
	}
	return list[:n], key(list[n-1]), nil
}

// linkNext is the registry's form: relative, names encoded, `orderby` even when it is empty.
func linkNext(h http.Header, path, last string, n int, orderBy string) {
	if last != "" {
		h.Set("Link", "<"+path+"?last="+url.QueryEscape(last)+"&n="+strconv.Itoa(n)+"&orderby="+url.QueryEscape(orderBy)+`>; rel="next"`)
	}
}

// catalog lists the repositories: to anonymous those that are public.
func (s *server) catalog(a *answer, r *http.Request, path string) {
	who, in := s.authorize(a, r, inRegistry("catalog"))
	if !in {
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		unsupported().write(a)
		return
	}
	current := s.settings.get()
	names := []string{}
	s.store.mu.Lock()
	for _, name := range slices.Sorted(maps.Keys(s.store.repositories)) {
		if s.store.repositories[name].attributes.List {
			names = append(names, name)
		}
	}
	s.store.mu.Unlock()
	if who.account == "" {
		names = slices.DeleteFunc(names, func(name string) bool { return !s.accounts.isPublic(current, name) })
	}
	page, next, failed := paged(r, current.PageSize, names, func(name string) string { return name }, true)
	if failed != nil {
		failed.write(a)
		return
	}
	linkNext(a.Header(), path, next, len(page), r.URL.Query().Get("orderby"))
	writeJSON(a, http.StatusOK, map[string]any{"repositories": page})
}

// listTags takes either right: the distribution API has pull for it, ACR's tools ask for metadata_read.
func (s *server) listTags(a *answer, r *http.Request, name string) {
	wants := inRepository(name, "pull")
	wants.or = &need{"repository", name, "metadata_read"}
	if _, in := s.authorize(a, r, wants); !in {
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		unsupported().write(a)
		return
	}
	names := []string{}
	s.store.mu.Lock()
	repository := s.store.repositories[name]
	if repository != nil {
		for _, t := range slices.Sorted(maps.Keys(repository.tags)) {
			if repository.tags[t].attributes.List {
				names = append(names, t)
			}
		}
	}
	s.store.mu.Unlock()
	if repository == nil {
		nameUnknown(name).write(a)
		return
	}
	page, next, failed := paged(r, s.settings.get().PageSize, names, func(t string) string { return t }, true)
	if failed != nil {
		failed.write(a)
		return
	}
	linkNext(a.Header(), "/v2/"+url.PathEscape(name)+"/tags/list", next, len(page), r.URL.Query().Get("orderby"))
	writeJSON(a, http.StatusOK, map[string]any{"name": name, "tags": page})
}
