// Control: the listener by which a test sets faults, rights and settings, and reads the request log.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"time"
)

func (s *server) controlHandler() http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			result, err := f(r)
			if err != nil {
				writeJSON(w, http.StatusBadRequest, map[string]string{"error": err.Error()})
				return
			}
			if result == nil {
				result = map[string]any{}
			}
			writeJSON(w, http.StatusOK, result)
		})
	}
	done := func(f func()) func(*http.Request) (any, error) {
		return func(*http.Request) (any, error) {
			f()
			return nil, nil
		}
	}

	handle("GET /control/faults", func(*http.Request) (any, error) { return s.faults.snapshot(), nil })
	handle("POST /control/faults", s.addFaults)
	handle("DELETE /control/faults", done(s.faults.clear))
	handle("DELETE /control/faults/{id}", func(r *http.Request) (any, error) {
		id, err := strconv.Atoi(r.PathValue("id"))
		if err != nil || !s.faults.remove(id) {
			return nil, fmt.Errorf("fault %s: there is none", r.PathValue("id"))
		}
		return nil, nil
	})
	handle("POST /control/release", func(r *http.Request) (any, error) {
		var said struct {
			ID int `json:"id"`
		}
		err := decode(r, &said)
		s.faults.release(said.ID)
		return nil, err
	})

	handle("GET /control/log", s.showLog)
	handle("POST /control/log/clear", done(s.requests.clear))
	handle("GET /control/counters", func(r *http.Request) (any, error) {
		s.awaitQuiet(r)
		text, err := s.requests.sums(func(c *counters) {
			c.Tokens, c.OpenUploads = s.tokens.counts(), s.uploads.count()
		})
		return json.RawMessage(text), err
	})

	handle("GET /control/settings", func(*http.Request) (any, error) { return s.settings.get(), nil })
	handle("POST /control/settings", func(r *http.Request) (any, error) {
		text, err := io.ReadAll(r.Body)
		if err == nil {
			err = s.settings.update(text)
		}
		return s.settings.get(), err
	})
	handle("POST /control/rights", func(r *http.Request) (any, error) {
		var said rightsChange
		if err := decode(r, &said); err != nil {
			return nil, err
		}
		return nil, s.accounts.change(said)
	})
	handle("POST /control/repository", func(r *http.Request) (any, error) {
		var said struct {
			Name   string `json:"name"`
			Public bool   `json:"public"`
		}
		if err := decode(r, &said); err != nil {
			return nil, err
		}
		if !validName(said.Name) {
			return nil, fmt.Errorf("name %q: not a repository's", said.Name)
		}
		s.accounts.setPublic(said.Name, said.Public)
		return nil, nil
	})
	handle("POST /control/tokens/expire", done(s.tokens.expireAll))
	handle("POST /control/uploads/kill", done(s.uploads.killAll))
	handle("POST /control/reset", func(r *http.Request) (any, error) {
		said := struct {
			Content bool `json:"content"`
		}{}
		err := decode(r, &said)
		s.faults.clear()
		s.settings.reset()
		s.accounts.reset()
		s.requests.clear()
		if said.Content {
			s.uploads.killAll()
			s.store.reset()
		}
		return nil, err
	})
	handle("GET /control/addresses", func(*http.Request) (any, error) { return s.listening, nil })
	handle("GET /control/keys", func(*http.Request) (any, error) { return s.tokens.keys(), nil })
	return mux
}

// addFaults takes one fault or a list of them.
func (s *server) addFaults(r *http.Request) (any, error) {
	text, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	if text = bytes.TrimSpace(text); len(text) > 0 && text[0] != '[' {
		text = append(append([]byte{'['}, text...), ']')
	}
	list := []*fault{}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&list); err != nil {
		return nil, err
	}
	ids, err := s.faults.add(list)
	return map[string]any{"ids": ids}, err
}

// showLog is the log, or those entries of it that the query asks for.
func (s *server) showLog(r *http.Request) (any, error) {
	s.awaitQuiet(r)
	query := r.URL.Query()
	path, err := regexp.Compile(query.Get("path"))
	if err != nil {
		return nil, err
	}
	list := []*entry{}
	for _, e := range s.requests.list() {
		is := func(key, value string) bool { return query.Get(key) == "" || query.Get(key) == value }
		if is("listener", e.Listener) && is("method", e.Method) && is("class", e.Class) && path.MatchString(e.URI) {
			list = append(list, e)
		}
	}
	return list, nil
}

// awaitQuiet waits for requests under way, half a second at most (?wait=DURATION: longer, or 0s).
func (s *server) awaitQuiet(r *http.Request) {
	wait, err := time.ParseDuration(r.URL.Query().Get("wait"))
	if err != nil {
		wait = 500 * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(r.Context(), wait)
	defer cancel()
	s.requests.settle(ctx)
}

// decode reads a JSON body; none at all leaves what is there.
func decode(r *http.Request, into any) error {
	decoder := json.NewDecoder(r.Body)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil && err != io.EOF {
		return err
	}
	return nil
}
