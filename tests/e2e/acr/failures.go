// Failures: error bodies, the headers that every answer of the registry has, and JSON answers.
package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strconv"
)

// failure is an error of the OCI distribution API ("Error Codes"). Some of the registry's errors have a `detail`, which
// may be null, and some have none.
type failure struct {
	status        int
	code, message string
	detail        any
	detailed      bool
}

func fails(status int, code, message string) *failure {
	return &failure{status: status, code: code, message: message}
}

func (f *failure) with(detail any) *failure {
	f.detail, f.detailed = detail, true
	return f
}

func (f *failure) write(w http.ResponseWriter) {
	type plain struct {
		Code    string `json:"code"`
		Message string `json:"message"`
	}
	var e any = plain{f.code, f.message}
	if f.detailed {
		e = struct {
			plain
			Detail any `json:"detail"`
		}{plain{f.code, f.message}, f.detail}
	}
	writeJSON(w, f.status, map[string]any{"errors": []any{e}})
}

// The errors that several places answer.
func disallowed() *failure {
	return fails(http.StatusMethodNotAllowed, "REGISTRY_DISALLOWED_OPERATION", "The operation is disallowed on this registry, repository or image. "+
		"View troubleshooting steps at https://aka.ms/acr/faq/#why-does-my-pull-or-push-request-fail-with-disallowed-operation")
}

func unsupported() *failure {
	return fails(http.StatusMethodNotAllowed, "UNSUPPORTED", "The operation is unsupported.")
}

func nameUnknown(repository string) *failure {
	return fails(http.StatusNotFound, "NAME_UNKNOWN", `repository "`+repository+`" is not found`).with(map[string]string{"name": repository})
}

func blobUnknown(digest string) *failure {
	return fails(http.StatusNotFound, "BLOB_UNKNOWN", "blob unknown to registry").with(digest)
}

// A broken upload, a finished one, one that is continued with an old _state: all look the same.
func uploadInvalid() *failure {
	return fails(http.StatusNotFound, "BLOB_UPLOAD_INVALID", "blob upload invalid")
}

func digestInvalid(message string) *failure {
	return fails(http.StatusBadRequest, "DIGEST_INVALID", message)
}

// registryHeaders are on every answer of /v2/ and /acr/v1/. Two of them come several times.
func registryHeaders(h http.Header, r *http.Request) {
	h.Set("Server", "openresty")
	h.Set("Docker-Distribution-Api-Version", "registry/2.0")
	h.Set("X-Content-Type-Options", "nosniff")
	h["Strict-Transport-Security"] = []string{"max-age=31536000; includeSubDomains", "max-age=31536000; includeSubDomains"}
	h["Access-Control-Expose-Headers"] = []string{"Docker-Content-Digest", "WWW-Authenticate", "Link", "X-Ms-Correlation-Request-Id"}
	h.Set("X-Ms-Correlation-Request-Id", uuid())
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodDelete {
		h.Set("X-Ms-Request-Id", uuid())
		if id := r.Header.Get("X-Ms-Client-Request-Id"); id != "" {
			h.Set("X-Ms-Client-Request-Id", id)
		}
	}
	if r.Method == http.MethodDelete {
		h.Set("X-Ms-Ratelimit-Remaining-Calls-Per-Second", "8.000000")
	}
}

// tokenHeaders are on every answer of /oauth2/.
func tokenHeaders(h http.Header) {
	h.Set("Server", "openresty")
	h.Set("Strict-Transport-Security", "max-age=31536000; includeSubDomains")
	h.Set("X-Ms-Correlation-Request-Id", uuid())
	h["x-ms-ratelimit-remaining-calls-per-second"] = []string{"166.65"}
}

func encode(value any) []byte {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(err)
	}
	return text.Bytes()
}

// writeJSON answers with Content-Length and a final newline, as the registry does.
func writeJSON(w http.ResponseWriter, status int, value any) {
	text := encode(value)
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Content-Length", strconv.Itoa(len(text)))
	w.WriteHeader(status)
	_, _ = w.Write(text)
}

// empty answers without a body.
func empty(w http.ResponseWriter, status int) {
	if status != http.StatusNoContent {
		w.Header().Set("Content-Length", "0")
	}
	w.WriteHeader(status)
}
