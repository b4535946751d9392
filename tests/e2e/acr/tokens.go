// Tokens: the signed JWTs (RFC 7519) with the registry's claims, and what is remembered of those that were issued.
package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"sync"
	"time"
)

// anonymousSubject is `sub` of a token for anonymous pull.
const anonymousSubject = "acr_anon_pull"

// grant is an entry of the claim `access`; its keys are capitalised.
type grant struct {
	Type    string
	Name    string
	Actions []string
}

// issued is what is known of a token: who got it, for what, and until when.
type issued struct {
	kind    string // "access", "refresh", "aad"
	account string // empty: anonymous
	grants  []grant
	expires time.Time
	epoch   int
}

type issuer struct {
	audience string
	key      *rsa.PrivateKey
	keyID    string
	// registryID is the claim rid.
	registryID string

	mu    sync.Mutex
	known map[string]issued
	epoch int
	count map[string]int
}

func newIssuer(audience string) (*issuer, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		return nil, err
	}
	// The key's name is the libtrust form: 240 bits of its hash in groups of four letters.
	hash := sha256.Sum256(public)
	letters := base32.StdEncoding.EncodeToString(hash[:30])
	groups := []string{}
	for part := range slices.Chunk([]byte(letters), 4) {
		groups = append(groups, string(part))
	}
	id := sha256.Sum256([]byte(audience))
	return &issuer{audience: audience, key: key, keyID: strings.Join(groups, ":"), registryID: fmt.Sprintf("%x", id[:16]),
		known: map[string]issued{}, count: map[string]int{}}, nil
}

// access issues an access token; account is empty for anonymous pull.
func (i *issuer) access(account string, grants []grant, grantType string, left, backdate time.Duration) string {
	subject := account
	if account == "" {
		subject = anonymousSubject
	}
	if grants == nil {
		grants = []grant{}
	}
	return i.issue(issued{kind: "access", account: account, grants: grants}, left, backdate, map[string]any{
		"sub": subject, "iss": "Azure Container Registry", "aud": i.audience, "version": "1.0", "rid": i.registryID,
		"access": grants, "roles": []string{}, "grant_type": grantType,
	})
}

func (i *issuer) refresh(account, tenant string, left, backdate time.Duration) string {
	return i.issue(issued{kind: "refresh", account: account}, left, backdate, map[string]any{
		"sub": account, "iss": "Azure Container Registry", "aud": i.audience, "version": "1.0", "rid": i.registryID,
		"grant_type": "refresh_token", "tenant": tenant, "roles": []string{},
		"permissions": map[string]any{"Actions": []string{"read", "write", "delete", "metadata/read", "metadata/write"}, "NotActions": nil},
	})
}

// cloud issues what Microsoft Entra ID would: a token of its own that /oauth2/exchange takes.
func (i *issuer) cloud(account, tenant, audience string, left time.Duration) string {
	return i.issue(issued{kind: "aad", account: account}, left, 5*time.Minute, map[string]any{
		"sub": account, "oid": account, "appid": account, "iss": "https://sts.windows.net/" + tenant + "/", "aud": audience, "tid": tenant, "ver": "1.0",
	})
}

func (i *issuer) issue(about issued, left, backdate time.Duration, claims map[string]any) string {
	now := time.Now()
	about.expires = now.Add(left)
	id := uuid()
	claims["jti"] = id
	claims["nbf"], claims["iat"], claims["exp"] = now.Add(-backdate).Unix(), now.Add(-backdate).Unix(), about.expires.Unix()
	i.mu.Lock()
	about.epoch = i.epoch
	i.known[id] = about
	i.count[about.kind]++
	i.mu.Unlock()
	text := segment(map[string]string{"alg": "RS256", "typ": "JWT", "kid": i.keyID}) + "." + segment(claims)
	hash := sha256.Sum256([]byte(text))
	signature, err := rsa.SignPKCS1v15(rand.Reader, i.key, crypto.SHA256, hash[:])
	if err != nil {
		panic(err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

// verify returns what a token is for, if it is one of ours that still holds.
func (i *issuer) verify(token string) (issued, bool) {
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return issued{}, false
	}
	signature, err := base64.RawURLEncoding.DecodeString(parts[2])
	if err != nil {
		return issued{}, false
	}
	hash := sha256.Sum256([]byte(parts[0] + "." + parts[1]))
	if rsa.VerifyPKCS1v15(&i.key.PublicKey, crypto.SHA256, hash[:], signature) != nil {
		return issued{}, false
	}
	text, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return issued{}, false
	}
	var claims struct {
		ID string `json:"jti"`
	}
	if json.Unmarshal(text, &claims) != nil {
		return issued{}, false
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	about, there := i.known[claims.ID]
	return about, there && about.epoch == i.epoch && time.Now().Before(about.expires)
}

// expireAll ends every token that was issued so far.
func (i *issuer) expireAll() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.epoch++
}

func (i *issuer) counts() map[string]int {
	i.mu.Lock()
	defer i.mu.Unlock()
	copied := map[string]int{}
	for kind, n := range i.count {
		copied[kind] = n
	}
	return copied
}

// keys is the public key as a JWK set (RFC 7517).
func (i *issuer) keys() map[string]any {
	encode := base64.RawURLEncoding.EncodeToString
	return map[string]any{"keys": []map[string]string{{
		"kty": "RSA", "use": "sig", "alg": "RS256", "kid": i.keyID,
		"n": encode(i.key.N.Bytes()), "e": encode(big.NewInt(int64(i.key.E)).Bytes()),
	}}}
}

func segment(value any) string {
	text, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return base64.RawURLEncoding.EncodeToString(text)
}

// uuid is a random one (RFC 9562, version 4).
func uuid() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
