// Tests of challenges, tokens and rights.
package main

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestChallengesAreToTheLetter(t *testing.T) {
	s := newSim(t)
	realm := "http://" + s.listening["registry"] + "/oauth2/token"
	got := s.expect(401, "GET", "/v2/", nil)
	same(t, "challenge", got.Header["Www-Authenticate"], []string{`Bearer realm="` + realm + `",service="myregistry.azurecr.io"`})
	same(t, "body", string(got.text), `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required, visit https://aka.ms/acr/authorization for more information.","detail":null}]}`+"\n")
	same(t, "length", got.ContentLength, 149)
	same(t, "times of Strict-Transport-Security", len(got.Header["Strict-Transport-Security"]), 2)
	same(t, "times of Access-Control-Expose-Headers", len(got.Header["Access-Control-Expose-Headers"]), 4)

	got = s.expect(401, "DELETE", "/v2/library%2Fhello-world/manifests/sha256%3Acc15c5b292d8525effc0f89cb299f1804f3a725c8d05e158653a563f15e4f685", nil)
	same(t, "challenge", got.Header.Get("Www-Authenticate"), `Bearer realm="`+realm+`",service="myregistry.azurecr.io",scope="repository:library/hello-world:delete"`)
	same(t, "length", got.ContentLength, 215)
	for path, scope := range map[string]string{
		"GET /v2/a/b/manifests/v1":                                    "repository:a/b:pull",
		"GET /v2/a/b/tags/list":                                       "repository:a/b:pull",
		"POST /v2/a/blobs/uploads/":                                   "repository:a:pull,push",
		"POST /v2/a/blobs/uploads/?mount=sha256:" + hex64 + "&from=b": "repository:a:pull,push repository:b:pull",
		"GET /acr/v1/a%2Fb/_tags/v1":                                  "repository:a/b:metadata_read",
		"PATCH /acr/v1/a":                                             "repository:a:metadata_write",
		"DELETE /acr/v1/a/_tags/v1":                                   "repository:a:delete",
		"GET /v2/_catalog":                                            "registry:catalog:*",
		"GET /acr/v1/_catalog":                                        "registry:catalog:*",
		"GET /acr/v1/_deleted/_catalog":                               "registry:deleted_catalog:*",
		"GET /acr/v1/_deleted/a%2Fb/_manifests":                       "repository:a/b:deleted_read",
	} {
		method, target, _ := strings.Cut(path, " ")
		got := s.expect(401, method, target, nil)
		if !strings.HasSuffix(got.Header.Get("Www-Authenticate"), `,scope="`+scope+`"`) {
			t.Errorf("%s: %s", path, got.Header.Get("Www-Authenticate"))
		}
	}
	// What is no name is nothing: no credentials are asked for.
	got = s.expect(404, "GET", "/v2/Upper/manifests/v1", nil)
	same(t, "body", string(got.text), "404 page not found\n")
}

const hex64 = "0000000000000000000000000000000000000000000000000000000000000000"

func TestTokenHasClaimsAndNothingElse(t *testing.T) {
	s := newSim(t)
	got := s.expect(200, "GET", "/oauth2/token?service="+service+"&scope=repository:a/b:pull,push,nonsense", nil, "Authorization", basic(principal))
	fields := map[string]string{}
	if err := json.Unmarshal(got.text, &fields); err != nil || len(fields) != 1 {
		t.Errorf("more than access_token: %s", got.text)
	}
	same(t, "encoding", got.TransferEncoding, []string{"chunked"})
	claims := claimsOf(t, fields["access_token"])
	same(t, "aud", claims["aud"], service)
	same(t, "iss", claims["iss"], "Azure Container Registry")
	same(t, "access", string(encode(claims["access"])), `[{"Actions":["pull","push"],"Name":"a/b","Type":"repository"}]`+"\n")
	same(t, "exp-nbf", claims["exp"].(float64)-claims["nbf"].(float64), 4500)
	_, basicUser, _ := strings.Cut(principal, ":")
	same(t, "a secret leaked", strings.Contains(string(got.text), basicUser), false)
}

func claimsOf(t *testing.T, token string) map[string]any {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("no JWT: %s", token)
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	claims := map[string]any{}
	if err != nil || json.Unmarshal(text, &claims) != nil {
		t.Fatalf("no claims: %s", token)
	}
	return claims
}

func TestWaysToAToken(t *testing.T) {
	s := newSim(t)
	form := func(status int, path string, values url.Values) reply {
		t.Helper()
		return s.expect(status, "POST", path, strings.NewReader(values.Encode()), "Content-Type", "application/x-www-form-urlencoded")
	}
	id, secret, _ := strings.Cut(principal, ":")
	cloud, err := s.try("cloud", "POST", "/tenant/oauth2/v2.0/token", strings.NewReader(url.Values{"grant_type": {"client_credentials"}, "client_id": {id},
		"client_secret": {secret}, "scope": {"https://containerregistry.azure.net/.default"}}.Encode()), "Content-Type", "application/x-www-form-urlencoded")
	if err != nil {
		t.Fatal(err)
	}
	aad := field(t, cloud.text, "access_token")
	got := form(200, "/oauth2/exchange?api-version=2021-07-01", url.Values{"grant_type": {"access_token"}, "service": {service}, "tenant": {"t"}, "access_token": {aad}})
	refresh := field(t, got.text, "refresh_token")
	claims := claimsOf(t, refresh)
	same(t, "exp-nbf of the refresh token", claims["exp"].(float64)-claims["nbf"].(float64), 11700)
	got = form(200, "/oauth2/token", url.Values{"grant_type": {"refresh_token"}, "service": {service}, "scope": {"repository:a:pull"}, "refresh_token": {refresh}})
	s.expect(404, "GET", "/v2/a/manifests/v1", nil, "Authorization", "Bearer "+field(t, got.text, "access_token"))
	got = form(200, "/oauth2/token", url.Values{"grant_type": {"password"}, "service": {service}, "username": {"puller"}, "password": {"puller-secret"}})
	s.expect(200, "GET", "/v2/", nil, "Authorization", "Bearer "+field(t, got.text, "access_token"))
	s.expect(200, "GET", "/v2/", nil, "Authorization", "Bearer "+s.token(nullGUID+":"+refresh))

	s.expect(401, "GET", "/oauth2/token?service="+service, nil, "Authorization", basic("puller:wrong"))
	s.expect(401, "GET", "/oauth2/token?service="+service, nil)
	s.expect(400, "GET", "/oauth2/token?service=other.azurecr.io", nil, "Authorization", basic(principal))
	form(401, "/oauth2/exchange", url.Values{"grant_type": {"access_token"}, "service": {service}, "access_token": {refresh}})
	s.control("settings", `{"post_password_400":true,"basic_challenge":true}`)
	form(400, "/oauth2/token", url.Values{"grant_type": {"password"}, "service": {service}, "username": {"puller"}, "password": {"puller-secret"}})
	got = s.expect(401, "GET", "/v2/", nil, "Authorization", basic("puller:wrong"))
	same(t, "challenge", got.Header.Get("Www-Authenticate"), `Basic realm="myregistry.azurecr.io"`)
}

func TestBasicOnTheDataPlaneIsNotForScopedTokens(t *testing.T) {
	s := newSim(t)
	s.expect(200, "GET", "/v2/_catalog", nil, "Authorization", basic(principal))
	s.expect(200, "GET", "/v2/_catalog", nil, "Authorization", basic("myregistry:admin-secret"))
	s.expect(401, "GET", "/v2/", nil, "Authorization", basic("scoped:scoped-secret"))
	s.expect(200, "GET", "/v2/", nil, "Authorization", "Bearer "+s.token("scoped:scoped-secret"))
}

func TestRightsOfAUserEndWhereItsRulesDo(t *testing.T) {
	s := newSim(t)
	names := []string{"samples/a", "samples/secret-a", "other"}
	for _, name := range names {
		s.pushImage(name, "v1", name, s.bearer(name))
	}
	for at, want := range []int{200, 401, 401} {
		token := s.token("scoped:scoped-secret", "repository:"+names[at]+":pull,push")
		got := s.expect(want, "GET", "/v2/"+names[at]+"/manifests/v1", nil, "Authorization", "Bearer "+token)
		if want == 401 && !strings.HasSuffix(got.Header.Get("Www-Authenticate"), `:pull",error="insufficient_scope"`) {
			t.Errorf("challenge: %s", got.Header.Get("Www-Authenticate"))
		}
	}
	puller := s.token("puller:puller-secret", "repository:other:pull,push,delete")
	s.expect(401, "POST", "/v2/other/blobs/uploads/", nil, "Authorization", "Bearer "+puller)
	s.expect(200, "GET", "/v2/other/manifests/v1", nil, "Authorization", "Bearer "+puller)

	// Rights that are revoked reach tokens that are out, unless they shall not.
	s.control("rights", `{"user":"puller","repositories":["other"],"actions":[],"immediate":false}`)
	s.expect(200, "GET", "/v2/other/manifests/v1", nil, "Authorization", "Bearer "+puller)
	s.control("rights", `{"user":"puller","repositories":["other"],"actions":[]}`)
	s.expect(401, "GET", "/v2/other/manifests/v1", nil, "Authorization", "Bearer "+puller)
	s.control("rights", `{"user":"puller","repositories":["other"],"actions":["pull"]}`)
	s.expect(200, "GET", "/v2/other/manifests/v1", nil, "Authorization", "Bearer "+puller)

	s.control("tokens/expire", "")
	got := s.expect(401, "GET", "/v2/other/manifests/v1", nil, "Authorization", "Bearer "+puller)
	if !strings.HasSuffix(got.Header.Get("Www-Authenticate"), `,error="invalid_token"`) {
		t.Errorf("challenge: %s", got.Header.Get("Www-Authenticate"))
	}
}

func TestPublicAndPrivateRepositoriesStandSideBySide(t *testing.T) {
	s := newSim(t, func(o *options) { o.settings.Anonymous = "public/*" })
	for _, name := range []string{"public/a", "private/a"} {
		s.pushImage(name, "v1", name, s.bearer(name))
	}
	pull := func(name string) int {
		token := s.token("", "repository:"+name+":pull")
		return s.do("GET", "/v2/"+name+"/manifests/v1", nil, "Authorization", "Bearer "+token).StatusCode
	}
	same(t, "public", pull("public/a"), 200)
	same(t, "private", pull("private/a"), 401)
	catalog := s.expect(200, "GET", "/v2/_catalog", nil, "Authorization", "Bearer "+s.token("", "registry:catalog:*"))
	same(t, "catalog", string(catalog.text), `{"repositories":["public/a"]}`+"\n")
	s.control("repository", `{"name":"private/a","public":true}`)
	s.control("repository", `{"name":"public/a","public":false}`)
	same(t, "public that became private", pull("public/a"), 401)
	same(t, "private that became public", pull("private/a"), 200)
}

func TestAnonymousTokenIsForPullOnly(t *testing.T) {
	s := newSim(t, func(o *options) { o.settings.Anonymous = "on" })
	s.pushImage("a", "v1", "layer", s.bearer("a"))
	token := s.token("", "repository:a:delete")
	claims := claimsOf(t, token)
	same(t, "access", string(encode(claims["access"])), `[{"Actions":["pull"],"Name":"*","Type":"repository"}]`+"\n")
	same(t, "sub", claims["sub"], "acr_anon_pull")
	same(t, "exp-nbf", claims["exp"].(float64)-claims["nbf"].(float64), 1200)
	s.expect(200, "GET", "/acr/v1/a/_tags/v1", nil, "Authorization", "Bearer "+token)
	s.expect(401, "DELETE", "/v2/a/manifests/sha256:"+hex64, nil, "Authorization", "Bearer "+token)
	// A token has to be fetched all the same.
	s.expect(http.StatusUnauthorized, "GET", "/v2/a/manifests/v1", nil)
}
