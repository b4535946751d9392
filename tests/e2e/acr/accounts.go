// Accounts: who may do what in which repositories, and which repositories are public.
package main

import (
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// The kinds of accounts. An admin user and a service principal may show their password to any endpoint (Basic); a token
// (a repository-scoped one) only to the token endpoint.
const (
	kindAdmin     = "admin"
	kindPrincipal = "service-principal"
	kindToken     = "token"
)

// every is all there is to grant in a repository, in the order in which it is listed.
var every = []string{"pull", "push", "delete", "metadata_read", "metadata_write", "deleted_read", "deleted_restore"}

// rule gives actions in the repositories that a glob matches. Of an account's rules the last one that matches decides,
// so that one without actions takes away what an earlier one gave. "catalog" counts where a glob matches "*".
type rule struct {
	Repositories []string `json:"repositories"`
	Actions      []string `json:"actions"`
}

type account struct {
	Name     string `json:"name"`
	Password string `json:"password"`
	Kind     string `json:"kind"`
	Rules    []rule `json:"rules"`

	disabled bool
	// narrowed is set once rights were changed with effect on tokens already issued: they are compared with the rules.
	narrowed bool
}

func (a *account) may(repository, action string) bool {
	for _, r := range slices.Backward(a.Rules) {
		if matchesAny(r.Repositories, repository) {
			return slices.Contains(r.Actions, "*") || slices.Contains(r.Actions, action)
		}
	}
	return false
}

// accounts are guarded by mu; so are the accounts in it.
type accounts struct {
	mu     sync.Mutex
	byName map[string]*account
	// public overrules the anonymous-pull setting for single repositories.
	public  map[string]bool
	initial []account
}

func defaultAccounts(loginServer string) []account {
	registry, _, _ := strings.Cut(loginServer, ".")
	all := []rule{{[]string{"*"}, []string{"*"}}}
	return []account{
		{Name: registry, Password: "admin-secret", Kind: kindAdmin, Rules: all},
		{Name: "11111111-1111-4111-8111-111111111111", Password: "sp-secret", Kind: kindPrincipal, Rules: all},
		{Name: "pusher", Password: "pusher-secret", Kind: kindPrincipal, Rules: []rule{{[]string{"*"}, []string{"pull", "push", "metadata_read", "catalog"}}}},
		{Name: "puller", Password: "puller-secret", Kind: kindPrincipal, Rules: []rule{{[]string{"*"}, []string{"pull", "metadata_read", "catalog"}}}},
		{Name: "scoped", Password: "scoped-secret", Kind: kindToken, Rules: []rule{
			{[]string{"samples/*"}, []string{"pull", "push", "metadata_read", "metadata_write"}},
			{[]string{"samples/secret*"}, []string{}},
		}},
	}
}

func loadAccounts(path, loginServer string) (*accounts, error) {
	list := defaultAccounts(loginServer)
	if path != "" {
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		var file struct {
			Users []account `json:"users"`
		}
		if err := json.Unmarshal(text, &file); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		list = file.Users
	}
	for _, a := range list {
		if a.Name == "" || a.Password == "" || !slices.Contains([]string{kindAdmin, kindPrincipal, kindToken}, a.Kind) {
			return nil, fmt.Errorf("user %q: name, password and kind (admin, service-principal, token) are required", a.Name)
		}
	}
	s := &accounts{initial: list}
	s.reset()
	return s, nil
}

// reset forgets what was changed at run time.
func (s *accounts) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.byName, s.public = map[string]*account{}, map[string]bool{}
	for _, a := range s.initial {
		a.Rules = slices.Clone(a.Rules)
		s.byName[a.Name] = &a
	}
}

// login returns the kind of the account whose name and password these are.
func (s *accounts) login(name, password string) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, there := s.byName[name]
	if !there || a.disabled || subtle.ConstantTimeCompare([]byte(a.Password), []byte(password)) != 1 {
		return "", false
	}
	return a.Kind, true
}

func (s *accounts) active(name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, there := s.byName[name]
	return there && !a.disabled
}

func (s *accounts) may(name, repository, action string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, there := s.byName[name]
	return there && !a.disabled && a.may(repository, action)
}

// stillMay is may for a token that was issued before: rights that changed since count only if they were to.
func (s *accounts) stillMay(name, repository, action string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, there := s.byName[name]
	return there && (!a.narrowed || a.may(repository, action))
}

// rightsChange is what the control listener takes.
type rightsChange struct {
	User         string   `json:"user"`
	Repositories []string `json:"repositories"`
	Actions      []string `json:"actions"`
	// Immediate makes the change count for tokens already issued (default); else they keep what they say.
	Immediate *bool   `json:"immediate"`
	Disabled  *bool   `json:"disabled"`
	Password  *string `json:"password"`
}

func (s *accounts) change(c rightsChange) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, there := s.byName[c.User]
	if !there {
		return fmt.Errorf("user %q: no such account", c.User)
	}
	if len(c.Repositories) > 0 {
		a.Rules = append(a.Rules, rule{c.Repositories, c.Actions})
		a.narrowed = c.Immediate == nil || *c.Immediate
	}
	if c.Disabled != nil {
		a.disabled = *c.Disabled
	}
	if c.Password != nil {
		a.Password = *c.Password
	}
	return nil
}

func (s *accounts) setPublic(repository string, public bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.public[repository] = public
}

func (s *accounts) isPublic(current settings, repository string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if public, said := s.public[repository]; said {
		return public
	}
	return current.public(repository)
}

// anonymousOffered says whether an anonymous token can be had at all.
func (s *accounts) anonymousOffered(current settings) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, public := range s.public {
		if public {
			return true
		}
	}
	return current.Anonymous != "off" && current.Anonymous != ""
}

// whollyPublic says whether there is no repository that anonymous pull does not reach.
func (s *accounts) whollyPublic(current settings) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return current.Anonymous == "on" && len(s.public) == 0
}

// matchesAny compares with globs in which * stands for anything, slashes too.
func matchesAny(globs []string, name string) bool {
	for _, glob := range globs {
		pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(glob)), `\*`, `.*`)
		if matched, err := regexp.MatchString("^(?:"+pattern+")$", name); err == nil && matched {
			return true
		}
	}
	return false
}
