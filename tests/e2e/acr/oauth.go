// OAuth endpoints: /oauth2/exchange and /oauth2/token with all the ways to a token (ACR's AAD-OAuth.md and
// Token-BasicAuth.md).
package main

import (
	"net/http"
	"slices"
	"strings"
)

// nullGUID as a user name says that the password is a token.
const nullGUID = "00000000-0000-0000-0000-000000000000"

func (s *server) serveOAuth(a *answer, r *http.Request, endpoint string) {
	tokenHeaders(a.Header())
	if err := r.ParseForm(); err != nil {
		fails(http.StatusBadRequest, "BAD_REQUEST", err.Error()).write(a)
		return
	}
	switch {
	case endpoint == "exchange" && r.Method == http.MethodPost:
		s.exchange(a, r)
	case endpoint == "token" && r.Method == http.MethodGet:
		if s.wrongService(a, r) {
			return
		}
		user, password, given := r.BasicAuth()
		switch {
		case !given && r.Header.Get("Authorization") == "":
			s.answerAnonymous(a, r.Form["scope"])
		case user == nullGUID:
			s.answerForToken(a, password, r.Form["scope"], "refresh", "access")
		default:
			s.answerForPassword(a, user, password, r.Form["scope"])
		}
	case endpoint == "token" && r.Method == http.MethodPost:
		if s.wrongService(a, r) {
			return
		}
		form := r.PostForm
		switch form.Get("grant_type") {
		case "refresh_token":
			s.answerForToken(a, form.Get("refresh_token"), form["scope"], "refresh")
		case "password":
			user := form.Get("username")
			switch {
			case user == "" && form.Get("password") == "":
				s.answerAnonymous(a, form["scope"])
			case s.settings.get().PostPassword400:
				fails(http.StatusBadRequest, "BAD_REQUEST", "grant_type password is not supported").write(a)
			case user == nullGUID:
				s.answerForToken(a, form.Get("password"), form["scope"], "refresh", "access")
			default:
				s.answerForPassword(a, user, form.Get("password"), form["scope"])
			}
		default:
			fails(http.StatusBadRequest, "BAD_REQUEST", "grant_type "+form.Get("grant_type")+" is not supported").write(a)
		}
	default:
		unsupported().write(a)
	}
}

// wrongService refuses a token for another registry: who stands in front has to say `service` as the challenge did.
func (s *server) wrongService(a *answer, r *http.Request) bool {
	if r.Form.Get("service") == s.loginServer {
		return false
	}
	fails(http.StatusBadRequest, "BAD_REQUEST", "service "+r.Form.Get("service")+" is not "+s.loginServer).write(a)
	return true
}

// exchange gives a refresh token for a token of Microsoft Entra ID, or for one of its own.
func (s *server) exchange(a *answer, r *http.Request) {
	if s.wrongService(a, r) {
		return
	}
	form := r.PostForm
	var shown []string
	switch form.Get("grant_type") {
	case "access_token", "access_token_refresh_token":
		shown = []string{form.Get("access_token"), "aad"}
	case "refresh_token":
		shown = []string{form.Get("refresh_token"), "refresh"}
	default:
		fails(http.StatusBadRequest, "BAD_REQUEST", "grant_type "+form.Get("grant_type")+" is not supported").write(a)
		return
	}
	token, good := s.tokens.verify(shown[0])
	if !good || token.kind != shown[1] || !s.accounts.active(token.account) {
		s.refused(a)
		return
	}
	a.entry.User = token.account
	tenant := form.Get("tenant")
	if tenant == "" {
		tenant = s.tenant
	}
	current := s.settings.get()
	s.answerToken(a, "refresh_token", s.tokens.refresh(token.account, tenant, current.RefreshTTL.Duration, current.Backdate.Duration))
}

func (s *server) answerAnonymous(a *answer, scopes []string) {
	current := s.settings.get()
	if !s.accounts.anonymousOffered(current) {
		s.refused(a)
		return
	}
	a.entry.User = anonymousSubject
	// A registry that is wholly public does not look at what was asked for.
	granted := []grant{{"repository", "*", []string{"pull"}}}
	if !s.accounts.whollyPublic(current) {
		granted = []grant{}
		for _, asked := range parseScopes(scopes) {
			if asked.Type == "registry" && asked.Name == "catalog" || asked.Type == "repository" && s.accounts.isPublic(current, asked.Name) {
				granted = append(granted, grant{asked.Type, asked.Name, []string{"pull"}})
			}
		}
	}
	s.answerToken(a, "access_token", s.tokens.access("", granted, "access_token", current.AnonymousTTL.Duration, current.Backdate.Duration))
}

func (s *server) answerForPassword(a *answer, user, password string, scopes []string) {
	if _, good := s.accounts.login(user, password); !good {
		s.refused(a)
		return
	}
	s.answerAccess(a, user, scopes, "password")
}

// answerForToken takes a token of one of the kinds as proof of who asks.
func (s *server) answerForToken(a *answer, shown string, scopes []string, kinds ...string) {
	token, good := s.tokens.verify(shown)
	if !good || token.account == "" || !slices.Contains(kinds, token.kind) || !s.accounts.active(token.account) {
		s.refused(a)
		return
	}
	s.answerAccess(a, token.account, scopes, "refresh_token")
}

// answerAccess grants of what was asked as much as the account has; nothing of it is no error.
func (s *server) answerAccess(a *answer, account string, scopes []string, grantType string) {
	a.entry.User = account
	granted := []grant{}
	for _, asked := range parseScopes(scopes) {
		actions := []string{}
		switch asked.Type {
		case "repository":
			if slices.Contains(asked.Actions, "*") {
				asked.Actions = every
			}
			for _, action := range asked.Actions {
				if slices.Contains(every, action) && s.accounts.may(account, asked.Name, action) {
					actions = append(actions, action)
				}
			}
		case "registry":
			if s.accounts.may(account, "*", asked.Name) {
				actions = asked.Actions
			}
		}
		if len(actions) > 0 {
			granted = append(granted, grant{asked.Type, asked.Name, actions})
		}
	}
	current := s.settings.get()
	s.answerToken(a, "access_token", s.tokens.access(account, granted, grantType, current.AccessTTL.Duration, current.Backdate.Duration))
}

// answerToken is all there is: no `token`, no `expires_in`, no `issued_at`. The answer is chunked.
func (s *server) answerToken(a *answer, name, token string) {
	a.Header().Set("Content-Type", "application/json; charset=utf-8")
	a.WriteHeader(http.StatusOK)
	a.Flush()
	text := encode(map[string]string{name: token})
	_, _ = a.Write(text[:len(text)-1])
}

func (s *server) refused(a *answer) {
	if s.settings.get().BasicChallenge {
		s.basicChallenge(a)
		return
	}
	fails(http.StatusUnauthorized, "UNAUTHORIZED", authenticationRequired).with(nil).write(a)
}

// parseScopes reads `TYPE:NAME:ACTION,ACTION`, several in one parameter parted by spaces, or in several parameters. The
// type ends at the first colon and the actions begin behind the last.
func parseScopes(scopes []string) []grant {
	asked := []grant{}
	for _, scope := range strings.Fields(strings.Join(scopes, " ")) {
		first, last := strings.Index(scope, ":"), strings.LastIndex(scope, ":")
		if first >= 0 && first != last {
			asked = append(asked, grant{scope[:first], scope[first+1 : last], strings.Split(scope[last+1:], ",")})
		}
	}
	return asked
}
