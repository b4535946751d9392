// Settings: the behaviour that flags choose and the control listener can change while the simulator runs.
package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"strings"
	"sync"
	"time"
)

// duration is written as Go writes it ("90s", "20m") in JSON too.
type duration struct{ time.Duration }

func (d duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d *duration) UnmarshalText(text []byte) (err error) {
	d.Duration, err = time.ParseDuration(string(text))
	return err
}

type settings struct {
	// Anonymous is "off", "on", or globs of repositories with commas between.
	Anonymous string `json:"anonymous"`
	// The lifetimes are what is left of a token when it is issued; nbf and iat lie Backdate before.
	RefreshTTL   duration `json:"refresh_ttl"`
	AccessTTL    duration `json:"access_ttl"`
	AnonymousTTL duration `json:"anonymous_ttl"`
	Backdate     duration `json:"backdate"`
	// PostPassword400 makes POST /oauth2/token with grant_type=password and a user answer 400.
	PostPassword400 bool `json:"post_password_400"`
	// BasicChallenge makes wrong Basic credentials get a Basic challenge.
	BasicChallenge bool `json:"basic_challenge"`
	PageSize       int  `json:"page_size"`
	// StorageStyle is "blob", "data-endpoint" or "data-query".
	StorageStyle string   `json:"storage_style"`
	DoubleSlash  bool     `json:"double_slash"`
	SASLifetime  duration `json:"sas_lifetime"`
	// RedirectMin is the size from which blobs are redirected; smaller ones are answered at once.
	RedirectMin  int64 `json:"redirect_min"`
	RedirectHead bool  `json:"redirect_head"`
	SoftDelete   bool  `json:"soft_delete"`
	// StrictAccept makes a manifest whose type no Accept header names unknown.
	StrictAccept bool `json:"strict_accept"`
	// SparseIndex takes an index whose manifests are not there.
	SparseIndex bool  `json:"sparse_index"`
	ManifestMax int64 `json:"manifest_max"`
}

func defaults() settings {
	return settings{
		Anonymous: "off", RefreshTTL: duration{3 * time.Hour}, AccessTTL: duration{time.Hour}, AnonymousTTL: duration{5 * time.Minute},
		Backdate: duration{15 * time.Minute}, PageSize: 100, StorageStyle: "blob", DoubleSlash: true,
		SASLifetime: duration{20 * time.Minute}, ManifestMax: 4 << 20,
	}
}

func (s *settings) flags(flags *flag.FlagSet) {
	flags.StringVar(&s.Anonymous, "anonymous", s.Anonymous, "anonymous pull: off, on, or globs of public repositories (a*,b/c)")
	flags.DurationVar(&s.RefreshTTL.Duration, "refresh-ttl", s.RefreshTTL.Duration, "what a refresh token has left when issued (exp-nbf is this and -backdate)")
	flags.DurationVar(&s.AccessTTL.Duration, "access-ttl", s.AccessTTL.Duration, "the same of an access token")
	flags.DurationVar(&s.AnonymousTTL.Duration, "anonymous-ttl", s.AnonymousTTL.Duration, "the same of an anonymous access token")
	flags.DurationVar(&s.Backdate.Duration, "backdate", s.Backdate.Duration, "how long before now nbf and iat of a token lie")
	flags.BoolVar(&s.PostPassword400, "post-password-400", s.PostPassword400, "POST /oauth2/token with a password answers 400")
	flags.BoolVar(&s.BasicChallenge, "basic-challenge", s.BasicChallenge, "wrong Basic credentials get a Basic challenge")
	flags.IntVar(&s.PageSize, "page-size", s.PageSize, "most entries of a page of any list")
	flags.StringVar(&s.StorageStyle, "storage-style", s.StorageStyle, "storage URLs: blob, data-endpoint (REG.REGION.data.HOST), data-query (all in the query)")
	flags.BoolVar(&s.DoubleSlash, "double-slash", s.DoubleSlash, "storage URLs hold a double slash")
	flags.DurationVar(&s.SASLifetime.Duration, "sas-lifetime", s.SASLifetime.Duration, "how long a redirect holds")
	flags.Int64Var(&s.RedirectMin, "redirect-min", s.RedirectMin, "size from which blobs are redirected to storage")
	flags.BoolVar(&s.RedirectHead, "redirect-head", s.RedirectHead, "HEAD of a blob is redirected too")
	flags.BoolVar(&s.SoftDelete, "soft-delete", s.SoftDelete, "what is deleted can be listed and restored")
	flags.BoolVar(&s.StrictAccept, "strict-accept", s.StrictAccept, "a manifest whose type Accept does not name is not found")
	flags.BoolVar(&s.SparseIndex, "sparse-index", s.SparseIndex, "an index may name manifests that are not there")
	flags.Int64Var(&s.ManifestMax, "manifest-max", s.ManifestMax, "largest manifest in bytes")
}

func (s settings) check() error {
	switch {
	case s.PageSize < 1:
		return fmt.Errorf("page_size %d: at least 1", s.PageSize)
	case s.StorageStyle != "blob" && s.StorageStyle != "data-endpoint" && s.StorageStyle != "data-query":
		return fmt.Errorf("storage_style %q: blob, data-endpoint or data-query", s.StorageStyle)
	}
	return nil
}

// public says whether anybody may pull from a repository, going by the setting alone.
func (s settings) public(repository string) bool {
	switch s.Anonymous {
	case "off", "":
		return false
	case "on":
		return true
	}
	return matchesAny(strings.Split(s.Anonymous, ","), repository)
}

// settingsBox holds the settings in force.
type settingsBox struct {
	mu               sync.Mutex
	current, initial settings
}

func (b *settingsBox) get() settings {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current
}

// update changes what the JSON names and leaves the rest.
func (b *settingsBox) update(text []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	changed := b.current
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&changed); err != nil {
		return err
	}
	if err := changed.check(); err != nil {
		return err
	}
	b.current = changed
	return nil
}

func (b *settingsBox) reset() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current = b.initial
}
