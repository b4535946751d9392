// Storage: the second listener, which blobs are redirected to. It looks at nothing but the signature in the URL ("Service
// SAS") and refuses a request that brings credentials along.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

const sasTime = "2006-01-02T15:04:05Z"

// storageURL is where a blob is for as long as the signature holds.
func (s *server) storageURL(digest string, current settings, now time.Time) string {
	expiry := now.Add(current.SASLifetime.Duration).UTC().Format(sasTime)
	registry, domain, _ := strings.Cut(s.loginServer, ".")
	host := s.listening["storage"]
	switch {
	case s.storageAuthority != "":
		host = s.storageAuthority
	case current.StorageStyle != "blob":
		// Only the name is of that form: whoever resolves it has to lead it to the storage listener.
		host = registry + "." + s.region + ".data." + domain + host[strings.LastIndex(host, ":"):]
	}
	if current.StorageStyle == "data-query" {
		query := "t=" + s.tokens.registryID + "&h=" + s.loginServer + "&d=" + digest + "&se=" + url.QueryEscape(expiry)
		return s.scheme + "://" + host + "?" + query + "&s=" + url.QueryEscape(s.sign(digest, expiry)) + "&v=1"
	}
	algorithm, hex, _ := strings.Cut(digest, ":")
	slash := "/"
	if current.DoubleSlash {
		slash = "//"
	}
	path := "/" + s.tokens.registryID + "-" + s.suffix() + slash + "docker/registry/v2/blobs/" + algorithm + "/" + hex[:2] + "/" + hex + "/data"
	return s.scheme + "://" + host + path + "?se=" + url.QueryEscape(expiry) + "&sig=" + url.QueryEscape(s.sign(path, expiry)) +
		"&sp=r&spr=https&sr=b&sv=2018-03-28&regid=" + s.tokens.registryID
}

// suffix is the second half of the container's name.
func (s *server) suffix() string {
	return strings.ToLower(s.tokens.keyID[:4] + s.tokens.keyID[5:9] + "x")
}

func (s *server) sign(what, expiry string) string {
	mac := hmac.New(sha256.New, s.tokens.key.D.Bytes())
	mac.Write([]byte(what + "\n" + expiry))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

func (s *server) serveStorage(a *answer, r *http.Request) {
	h := a.Header()
	h.Set("Server", "Windows-Azure-Blob/1.0 Microsoft-HTTPAPI/2.0")
	id := uuid()
	h["x-ms-request-id"] = []string{id}
	refuse := func(status int, code, message, detail string) {
		text := "\ufeff" + `<?xml version="1.0" encoding="utf-8"?><Error><Code>` + code + `</Code><Message>` + message +
			"\nRequestId:" + id + "\nTime:" + time.Now().UTC().Format(time.RFC3339Nano) + `</Message>` + detail + `</Error>`
		h["x-ms-error-code"] = []string{code}
		h.Set("Content-Type", "application/xml")
		h.Set("Content-Length", strconv.Itoa(len(text)))
		a.WriteHeader(status)
		_, _ = a.Write([]byte(text))
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(http.StatusMethodNotAllowed, "UnsupportedHttpVerb", "The resource doesn't support specified Http Verb.", "")
		return
	}
	if len(r.Header.Values("Authorization")) > 0 {
		refuse(http.StatusBadRequest, "InvalidAuthenticationInfo", "Authentication information is not given in the correct format. Check the value of Authorization header.", "")
		return
	}
	query := r.URL.Query()
	path, signature := r.URL.EscapedPath(), query.Get("sig")
	digest, signed := "", path
	if path == "/" && query.Has("d") {
		digest, signature = query.Get("d"), query.Get("s")
		signed = digest
	} else if parts := strings.Split(path, "/"); len(parts) > 4 {
		digest = parts[len(parts)-4] + ":" + parts[len(parts)-2]
	}
	const refused = "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly including the signature."
	expiry, err := time.Parse(sasTime, query.Get("se"))
	if err != nil || !hmac.Equal([]byte(signature), []byte(s.sign(signed, query.Get("se")))) {
		refuse(http.StatusForbidden, "AuthenticationFailed", refused, "<AuthenticationErrorDetail>Signature did not match.</AuthenticationErrorDetail>")
		return
	}
	if now := time.Now(); now.After(expiry) {
		refuse(http.StatusForbidden, "AuthenticationFailed", refused, fmt.Sprintf("<AuthenticationErrorDetail>Signature not valid in the specified time frame: Expiry [%s] - Current [%s]</AuthenticationErrorDetail>",
			expiry.Format(time.RFC1123), now.UTC().Format(time.RFC1123)))
		return
	}
	file, err := os.Open(s.store.blobPath(digest))
	if err != nil {
		refuse(http.StatusNotFound, "BlobNotFound", "The specified blob does not exist.", "")
		return
	}
	defer file.Close()
	about, err := file.Stat()
	if err != nil {
		refuse(http.StatusInternalServerError, "InternalError", "The server encountered an internal error.", "")
		return
	}
	size := about.Size()
	from, to, status := storageRange(r, size)
	if status == http.StatusRequestedRangeNotSatisfiable {
		h.Set("Content-Range", "bytes */"+strconv.FormatInt(size, 10))
		refuse(status, "InvalidRange", "The range specified is invalid for the current size of the resource.", "")
		return
	}
	for name, value := range map[string]string{
		"x-ms-blob-type": "AppendBlob", "x-ms-lease-state": "available", "x-ms-lease-status": "unlocked", "x-ms-version": "2018-03-28", "x-ms-server-encrypted": "true",
	} {
		h[name] = []string{value}
	}
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Accept-Ranges", "bytes")
	h.Set("Last-Modified", about.ModTime().UTC().Format(http.TimeFormat))
	h["ETag"] = []string{fmt.Sprintf(`"0x8D%X"`, about.ModTime().UnixNano())}
	h.Set("Content-Length", strconv.FormatInt(to-from, 10))
	if status == http.StatusPartialContent {
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, size))
	}
	a.WriteHeader(status)
	if r.Method == http.MethodGet {
		_, _ = io.Copy(a, io.NewSectionReader(file, from, to-from))
	}
}

// storageRange is what of a blob is asked for: from inclusive, to exclusive. Storage knows `bytes=A-B` and `bytes=A-`;
// anything else is not looked at ("Specifying the range header for Blob service operations").
func storageRange(r *http.Request, size int64) (int64, int64, int) {
	text := r.Header.Get("X-Ms-Range")
	if text == "" {
		text = r.Header.Get("Range")
	}
	first, last, good := strings.Cut(strings.TrimPrefix(text, "bytes="), "-")
	from, err := strconv.ParseInt(first, 10, 64)
	if !strings.HasPrefix(text, "bytes=") || !good || err != nil {
		return 0, size, http.StatusOK
	}
	to := size
	if last != "" {
		end, err := strconv.ParseInt(last, 10, 64)
		if err != nil || end < from {
			return 0, size, http.StatusOK
		}
		to = min(end+1, size)
	}
	if from >= size {
		return 0, 0, http.StatusRequestedRangeNotSatisfiable
	}
	return from, to, http.StatusPartialContent
}
