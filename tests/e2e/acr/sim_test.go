// What the tests share: a simulator on loopback and a client that follows nothing by itself.
package main

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

const (
	principal = "11111111-1111-4111-8111-111111111111:sp-secret"
	service   = "myregistry.azurecr.io"
)

// sim is a running simulator.
type sim struct {
	t *testing.T
	*server
	client *http.Client
}

func newSim(t *testing.T, change ...func(*options)) *sim {
	t.Helper()
	o := options{registry: "127.0.0.1:0", storage: "127.0.0.1:0", control: "127.0.0.1:0", cloud: "127.0.0.1:0", loginServer: service,
		region: "westeurope", tenant: "tenant", root: t.TempDir(), settings: defaults(), access: io.Discard}
	for _, c := range change {
		c(&o)
	}
	s, err := start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return &sim{t, s, client}
}

// reply is an answer that was read to its end.
type reply struct {
	*http.Response
	text []byte
	// broken is why the body could not be read.
	broken error
}

// try sends a request to one of the listeners; a path that is a whole URL goes where it says.
func (s *sim) try(listener, method, path string, body io.Reader, headers ...string) (reply, error) {
	s.t.Helper()
	address := path
	if !strings.HasPrefix(path, "http") {
		address = "http://" + s.listening[listener] + path
	}
	request, err := http.NewRequest(method, address, body)
	if err != nil {
		s.t.Fatal(err)
	}
	for at := 0; at+1 < len(headers); at += 2 {
		request.Header.Set(headers[at], headers[at+1])
	}
	response, err := s.client.Do(request)
	if err != nil {
		return reply{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return reply{response, text, err}, nil
}

func (s *sim) do(method, path string, body io.Reader, headers ...string) reply {
	s.t.Helper()
	got, err := s.try("registry", method, path, body, headers...)
	if err != nil {
		s.t.Fatalf("%s %s: %v", method, path, err)
	}
	return got
}

// expect does a request and checks its status.
func (s *sim) expect(status int, method, path string, body io.Reader, headers ...string) reply {
	s.t.Helper()
	got := s.do(method, path, body, headers...)
	if got.StatusCode != status {
		s.t.Fatalf("%s %s: %d instead of %d: %s", method, path, got.StatusCode, status, got.text)
	}
	return got
}

// control posts to the control listener.
func (s *sim) control(path, body string) reply {
	s.t.Helper()
	got, err := s.try("control", "POST", "/control/"+path, strings.NewReader(body))
	if err != nil || got.StatusCode != http.StatusOK {
		s.t.Fatalf("POST /control/%s: %v %s", path, err, got.text)
	}
	return got
}

func basic(credentials string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(credentials))
}

// token gets an access token as docker does; no credentials: anonymous.
func (s *sim) token(credentials string, scopes ...string) string {
	s.t.Helper()
	headers := []string{}
	if credentials != "" {
		headers = []string{"Authorization", basic(credentials)}
	}
	got := s.expect(200, "GET", "/oauth2/token?"+url.Values{"service": {service}, "scope": scopes}.Encode(), nil, headers...)
	return field(s.t, got.text, "access_token")
}

// bearer is the header for everything in the given repositories.
func (s *sim) bearer(repositories ...string) []string {
	s.t.Helper()
	scopes := []string{"registry:catalog:*", "registry:deleted_catalog:*"}
	for _, name := range repositories {
		scopes = append(scopes, "repository:"+name+":*")
	}
	return []string{"Authorization", "Bearer " + s.token(principal, scopes...)}
}

func field(t *testing.T, text []byte, name string) string {
	t.Helper()
	values := map[string]any{}
	if err := json.Unmarshal(text, &values); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	value, _ := values[name].(string)
	if value == "" {
		t.Fatalf("no %s in %s", name, text)
	}
	return value
}

func code(t *testing.T, got reply) string {
	t.Helper()
	var body struct {
		Errors []struct{ Code string }
	}
	if err := json.Unmarshal(got.text, &body); err != nil || len(body.Errors) != 1 {
		t.Fatalf("no error body: %v: %s", err, got.text)
	}
	return body.Errors[0].Code
}

// pushBlob uploads monolithically and returns the digest.
func (s *sim) pushBlob(name string, content []byte, auth []string) string {
	s.t.Helper()
	digest := digestLike("", content)
	s.expect(201, "POST", "/v2/"+name+"/blobs/uploads/?digest="+digest, bytes.NewReader(content), auth...)
	return digest
}

// pushImage pushes a configuration, a layer and their manifest, and returns its digest.
func (s *sim) pushImage(name, reference, layer string, auth []string, more ...string) string {
	s.t.Helper()
	config := []byte(`{"architecture":"amd64","os":"linux"}`)
	text := fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":%q,"size":%d},`+
		`"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":%q,"size":%d}]%s}`,
		typeOCIManifest, s.pushBlob(name, config, auth), len(config), s.pushBlob(name, []byte(layer), auth), len(layer), strings.Join(more, ""))
	digest := digestLike("", []byte(text))
	if reference == "" {
		reference = digest
	}
	s.expect(201, "PUT", "/v2/"+name+"/manifests/"+reference, strings.NewReader(text), append([]string{"Content-Type", typeOCIManifest}, auth...)...)
	return digest
}

func same(t *testing.T, what string, got, want any) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s: %v\ninstead of %v", what, got, want)
	}
}
