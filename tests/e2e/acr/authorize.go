// Authorization: whether a request may do what it asks for, and the 401 with its challenge if not.
package main

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
)

// need is one thing that a request wants to do.
type need struct{ kind, name, action string }

// needs are a request's scope as the challenge writes it, and what it stands for.
type needs struct {
	scope string
	list  []need
	// or is one more that is enough by itself, though no challenge names it.
	or *need
}

// inRepository is `repository:NAME:ACTION,ACTION`.
func inRepository(name string, actions ...string) needs {
	n := needs{scope: "repository:" + name + ":" + strings.Join(actions, ",")}
	for _, action := range actions {
		n.list = append(n.list, need{"repository", name, action})
	}
	return n
}

func inRegistry(name string) needs {
	return needs{scope: "registry:" + name + ":*", list: []need{{"registry", name, "*"}}}
}

// and joins the needs of two repositories, as a mount has them.
func (n needs) and(other needs) needs {
	return needs{scope: n.scope + " " + other.scope, list: slices.Concat(n.list, other.list)}
}

// subject is who a request comes from, once it was let in.
type subject struct {
	account string // empty: anonymous pull
	token   *issued
}

// may says whether the subject may do this. A token counts as it was issued; see accounts.stillMay for rights that
// changed since. That anonymous pull reaches metadata and the catalog too is what the registry does.
func (s *server) may(who subject, n need) bool {
	if who.token == nil {
		if n.kind == "registry" {
			return s.accounts.may(who.account, "*", n.name)
		}
		return s.accounts.may(who.account, n.name, n.action)
	}
	if who.account == "" {
		if n.kind == "registry" {
			return n.name == "catalog" && len(who.token.grants) > 0
		}
		if n.action != "pull" && n.action != "metadata_read" {
			return false
		}
		return s.accounts.isPublic(s.settings.get(), n.name) && slices.ContainsFunc(who.token.grants, func(g grant) bool {
			return g.Name == "*" || g.Name == n.name
		})
	}
	if !slices.ContainsFunc(who.token.grants, func(g grant) bool {
		return g.Type == n.kind && g.Name == n.name && slices.Contains(g.Actions, n.action)
	}) {
		return false
	}
	if n.kind == "registry" {
		return s.accounts.stillMay(who.account, "*", n.name)
	}
	return s.accounts.stillMay(who.account, n.name, n.action)
}

// authorize lets a request in or answers it. Too little scope is a 401 as well (RFC 6750 would have 403).
func (s *server) authorize(a *answer, r *http.Request, wants needs) (subject, bool) {
	header := r.Header.Get("Authorization")
	scheme, value, _ := strings.Cut(header, " ")
	var who subject
	switch {
	case header == "":
		s.challenge(a, r, wants, "")
		return subject{}, false
	case strings.EqualFold(scheme, "Bearer"):
		token, good := s.tokens.verify(strings.TrimSpace(value))
		if !good || token.kind != "access" || token.account != "" && !s.accounts.active(token.account) {
			s.challenge(a, r, wants, "invalid_token")
			return subject{}, false
		}
		who = subject{token.account, &token}
	default:
		name, password, _ := r.BasicAuth()
		kind, good := s.accounts.login(name, password)
		if !good || kind == kindToken {
			if !good && s.settings.get().BasicChallenge {
				s.basicChallenge(a)
			} else {
				s.challenge(a, r, wants, "")
			}
			return subject{}, false
		}
		who = subject{account: name}
	}
	a.entry.User = who.account
	if who.account == "" {
		a.entry.User = anonymousSubject
	}
	met := 0
	for _, n := range wants.list {
		if s.may(who, n) {
			met++
		}
	}
	if met == len(wants.list) || wants.or != nil && s.may(who, *wants.or) {
		return who, true
	}
	s.challenge(a, r, wants, "insufficient_scope")
	return subject{}, false
}

const authenticationRequired = "authentication required, visit https://aka.ms/acr/authorization for more information."

// maxUnwanted is how much of a refused request's body is taken in, as a registry behind nginx does it: clients that send a chunk
// before they know the token (the SDKs) would otherwise be cut off before they read the 401.
const maxUnwanted = 64 << 20

// challenge is the 401 to the letter: no space behind commas, keys of `detail` capitalised, one entry for every action.
func (s *server) challenge(a *answer, r *http.Request, wants needs, problem string) {
	realm := s.realm
	if realm == "" {
		realm = s.scheme + "://" + r.Host + "/oauth2/token"
	}
	header := fmt.Sprintf(`Bearer realm="%s",service="%s"`, realm, s.loginServer)
	if wants.scope != "" {
		header += fmt.Sprintf(`,scope="%s"`, wants.scope)
	}
	if problem != "" {
		header += fmt.Sprintf(`,error="%s"`, problem)
	}
	type entry struct{ Type, Name, Action string }
	var detail any
	if len(wants.list) > 0 {
		list := []entry{}
		for _, n := range wants.list {
			list = append(list, entry{n.kind, n.name, n.action})
		}
		detail = list
	}
	_, _ = io.CopyN(io.Discard, r.Body, maxUnwanted)
	a.Header().Set("Www-Authenticate", header)
	fails(http.StatusUnauthorized, "UNAUTHORIZED", authenticationRequired).with(detail).write(a)
}

func (s *server) basicChallenge(a *answer) {
	a.Header().Set("Www-Authenticate", fmt.Sprintf(`Basic realm="%s"`, s.loginServer))
	fails(http.StatusUnauthorized, "UNAUTHORIZED", authenticationRequired).with(nil).write(a)
}
