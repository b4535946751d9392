// Tests of the listeners with TLS.
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestTLS(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	write := func(name, kind string, text []byte) string {
		path := filepath.Join(directory, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: text}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	s := newSim(t, func(o *options) {
		o.cert, o.key = write("cert.pem", "CERTIFICATE", certificate), write("key.pem", "PRIVATE KEY", secret)
		o.settings.Anonymous = "on"
	})
	connect := func() *tls.Conn {
		connection, err := tls.Dial("tcp", s.listening["registry"], &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		return connection
	}
	ask := func() (string, error) {
		connection := connect()
		defer connection.Close()
		same(t, "protocol", connection.ConnectionState().NegotiatedProtocol, "http/1.1")
		_, _ = connection.Write([]byte("GET /v2/ HTTP/1.1\r\nHost: myregistry.azurecr.io\r\n\r\n"))
		text := make([]byte, 4096)
		n, err := connection.Read(text)
		return string(text[:n]), err
	}
	text, err := ask()
	if err != nil || !strings.Contains(text, `realm="https://myregistry.azurecr.io/oauth2/token"`) {
		t.Errorf("%v: %s", err, text)
	}
	s.control("faults", `{"reset":true}`)
	if text, err = ask(); err == nil || !strings.Contains(err.Error(), "reset by peer") {
		t.Errorf("no reset but %v: %s", err, text)
	}
}
