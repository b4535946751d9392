// Command tokenserver issues the Bearer tokens of the end-to-end suite's private upstream.
//
// It signs JWTs (ES256, certificate in x5c) that Debian's docker-registry accepts with `auth.token` and
// `rootcertbundle`. One account exists; who shows its name and password gets what the scope asks for, everybody else
// gets 401. Both forms of the protocol are served: GET with Basic, and POST with a form. One access-log line per
// request goes to standard output, so that a test can count token requests.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"log"
	"math/big"
	"net/http"
	"os"
	"strings"
	"time"
)

// issuer signs tokens for one service and one account.
type issuer struct {
	name, service  string
	user, password string
	lifetime       time.Duration
	key            *ecdsa.PrivateKey
	certificate    []byte
}

// access is one granted entry of a token.
type access struct {
	Type    string   `json:"type"`
	Name    string   `json:"name"`
	Actions []string `json:"actions"`
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address to listen on")
	name := flag.String("issuer", "e2e-tokenserver", "issuer, as the registry's configuration names it")
	service := flag.String("service", "e2e-registry", "service, as the registry's configuration names it")
	user := flag.String("user", "", "name of the account (required)")
	passwordFile := flag.String("password-file", "", "file whose first line is its password (required)")
	bundle := flag.String("bundle", "", "file to write the certificate to, for the registry's rootcertbundle (required)")
	lifetime := flag.Duration("lifetime", 5*time.Minute, "how long a token holds")
	flag.Parse()
	if *user == "" || *passwordFile == "" || *bundle == "" {
		log.Fatal("tokenserver: -user, -password-file and -bundle are required")
	}
	text, err := os.ReadFile(*passwordFile)
	if err != nil {
		log.Fatalf("tokenserver: %v", err)
	}
	password, _, _ := strings.Cut(string(text), "\n")
	key, certificate, err := selfSigned(*name)
	if err != nil {
		log.Fatalf("tokenserver: %v", err)
	}
	pemText := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})
	if err := os.WriteFile(*bundle, pemText, 0o644); err != nil {
		log.Fatalf("tokenserver: %v", err)
	}
	i := &issuer{name: *name, service: *service, user: *user, password: password, lifetime: *lifetime, key: key, certificate: certificate}
	server := &http.Server{Addr: *listen, Handler: i, ReadHeaderTimeout: 10 * time.Second}
	log.Fatalf("tokenserver: %v", server.ListenAndServe())
}

// selfSigned makes a key and a certificate for it that is its own root.
func selfSigned(name string) (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(time.Now().UnixNano()),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	return key, certificate, err
}

func (i *issuer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status, answer := i.answer(r)
	text, err := json.Marshal(answer)
	if err != nil {
		status, text = http.StatusInternalServerError, []byte(`{}`)
	}
	w.Header().Set("Content-Type", "application/json")
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf("Basic realm=%q", i.name))
	}
	w.WriteHeader(status)
	if _, err := w.Write(text); err != nil {
		log.Printf("tokenserver: %v", err)
	}
	fmt.Printf("%s - - [%s] %q %d %d %q %q\n", r.RemoteAddr, time.Now().Format("02/Jan/2006:15:04:05 -0700"),
		r.Method+" "+r.RequestURI+" "+r.Proto, status, len(text), r.Referer(), r.UserAgent())
}

// answer is what a request gets: a token, or the reason why not.
func (i *issuer) answer(r *http.Request) (int, map[string]any) {
	refused := func(status int, code, message string) (int, map[string]any) {
		return status, map[string]any{"errors": []map[string]string{{"code": code, "message": message}}}
	}
	if err := r.ParseForm(); err != nil {
		return refused(http.StatusBadRequest, "UNSUPPORTED", err.Error())
	}
	var user, password string
	switch r.Method {
	case http.MethodGet:
		user, password, _ = r.BasicAuth()
	case http.MethodPost:
		if grant := r.PostForm.Get("grant_type"); grant != "password" {
			return refused(http.StatusBadRequest, "UNSUPPORTED", "grant_type "+grant+" is not offered")
		}
		user, password = r.PostForm.Get("username"), r.PostForm.Get("password")
	default:
		return refused(http.StatusMethodNotAllowed, "UNSUPPORTED", "GET or POST")
	}
	same := subtle.ConstantTimeCompare([]byte(user), []byte(i.user)) & subtle.ConstantTimeCompare([]byte(password), []byte(i.password))
	if same != 1 {
		return refused(http.StatusUnauthorized, "UNAUTHORIZED", "user name or password is wrong")
	}
	if service := r.Form.Get("service"); service != i.service {
		return refused(http.StatusBadRequest, "UNSUPPORTED", "service "+service+" is not served here")
	}
	token, err := i.sign(grants(r.Form["scope"]))
	if err != nil {
		return refused(http.StatusInternalServerError, "UNKNOWN", err.Error())
	}
	lifetime := int(i.lifetime / time.Second)
	return http.StatusOK, map[string]any{"token": token, "access_token": token, "expires_in": lifetime, "issued_at": time.Now().UTC().Format(time.RFC3339)}
}

// grants reads `TYPE:NAME:ACTION,ACTION`, several in one parameter parted by spaces, or in several parameters. A name
// may hold colons (host:port), so the type ends at the first and the actions begin after the last.
func grants(scopes []string) []access {
	granted := []access{}
	for _, scope := range strings.Fields(strings.Join(scopes, " ")) {
		first, last := strings.Index(scope, ":"), strings.LastIndex(scope, ":")
		if first < 0 || first == last {
			continue
		}
		granted = append(granted, access{Type: scope[:first], Name: scope[first+1 : last], Actions: strings.Split(scope[last+1:], ",")})
	}
	return granted
}

// sign makes the JWT (RFC 7519) with the header that the registry finds the key by.
func (i *issuer) sign(granted []access) (string, error) {
	now := time.Now()
	header := map[string]any{"typ": "JWT", "alg": "ES256", "x5c": []string{base64.StdEncoding.EncodeToString(i.certificate)}}
	claims := map[string]any{
		"iss": i.name, "sub": i.user, "aud": i.service,
		"iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": now.Add(i.lifetime).Unix(),
		"jti": fmt.Sprintf("%x", now.UnixNano()), "access": granted,
	}
	signed := ""
	for _, part := range []map[string]any{header, claims} {
		text, err := json.Marshal(part)
		if err != nil {
			return "", err
		}
		signed += base64.RawURLEncoding.EncodeToString(text) + "."
	}
	signed = strings.TrimSuffix(signed, ".")
	hash := sha256.Sum256([]byte(signed))
	r, s, err := ecdsa.Sign(rand.Reader, i.key, hash[:])
	if err != nil {
		return "", err
	}
	signature := make([]byte, 64)
	r.FillBytes(signature[:32])
	s.FillBytes(signature[32:])
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}
