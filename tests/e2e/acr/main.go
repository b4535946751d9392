// Command acr is a simulator of Azure Container Registry: its tokens and challenges, the OCI distribution API, its own
// /acr/v1 API and the storage that blobs are redirected to, with faults that a test sets at run time.
//
// See README.md for what is offered, and for where the behaviour was taken from.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// options are what cannot change while the simulator runs.
type options struct {
	registry, storage, control, cloud string
	cert, key                         string
	loginServer, region, tenant       string
	realm                             string
	storageAuthority                  string
	users, root, log, addresses       string
	settings                          settings
	// access takes the access log.
	access io.Writer
}

func main() {
	log.SetFlags(log.Ltime | log.Lmicroseconds)
	log.SetPrefix("acr: ")
	o := parse(flag.CommandLine, os.Args[1:])
	s, err := start(o)
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range []string{"registry", "storage", "cloud", "control"} {
		if address, there := s.listening[name]; there {
			log.Printf("%s listens on %s", name, address)
		}
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	<-end
	s.close()
}

func parse(flags *flag.FlagSet, arguments []string) options {
	o := options{settings: defaults(), access: os.Stdout}
	flags.StringVar(&o.registry, "registry", "127.0.0.1:0", "address of the registry's listener")
	flags.StringVar(&o.storage, "storage", "127.0.0.1:0", "address of the storage's listener, which blobs are redirected to")
	flags.StringVar(&o.control, "control", "127.0.0.1:0", "address of the control listener (always plain HTTP)")
	flags.StringVar(&o.cloud, "cloud", "", "address of the listener with the Microsoft Entra and Resource Manager stubs; empty: none")
	flags.StringVar(&o.cert, "tls-cert", "", "certificate (PEM) for registry, storage and cloud; empty: plain HTTP")
	flags.StringVar(&o.key, "tls-key", "", "its key")
	flags.StringVar(&o.loginServer, "login-server", "myregistry.azurecr.io", "login server: service, audience and 'registry' in answers")
	flags.StringVar(&o.region, "region", "westeurope", "region, for the names of dedicated data endpoints and of the stubs")
	flags.StringVar(&o.tenant, "tenant", "72f988bf-0000-4000-8000-2d7cd011db47", "tenant of the stubs")
	flags.StringVar(&o.realm, "realm", "", "realm of the challenges; empty: SCHEME://HOST/oauth2/token with the Host of the request")
	flags.StringVar(&o.storageAuthority, "storage-authority", "", "HOST[:PORT] in redirects; empty: the storage listener's own address")
	flags.StringVar(&o.users, "users", "", "JSON file of the users; empty: the ones in README.md")
	flags.StringVar(&o.root, "root", "", "directory for blobs; empty: a temporary one, removed at the end")
	flags.StringVar(&o.log, "log", "", "file that gets a line of JSON for every request")
	flags.StringVar(&o.addresses, "addresses", "", "file to write the addresses to (JSON), once everything listens")
	o.settings.flags(flags)
	_ = flags.Parse(arguments) // ExitOnError
	if flags.NArg() > 0 {
		log.Fatalf("%q: no arguments are taken", flags.Args())
	}
	return o
}

// server is one simulated registry with its listeners.
type server struct {
	options
	scheme   string
	settings *settingsBox
	accounts *accounts
	tokens   *issuer
	store    *store
	uploads  *uploads
	faults   *faults
	requests *requestLog
	// listening says where each listener really is.
	listening map[string]string
	servers   []*http.Server
	temporary bool
}

func start(o options) (*server, error) {
	s := &server{options: o, scheme: "http", settings: &settingsBox{current: o.settings, initial: o.settings},
		faults: newFaults(), listening: map[string]string{}}
	if err := o.settings.check(); err != nil {
		return nil, err
	}
	var encryption *tls.Config
	if o.cert != "" {
		pair, err := tls.LoadX509KeyPair(o.cert, o.key)
		if err != nil {
			return nil, err
		}
		encryption, s.scheme = &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}, "https"
	}
	var err error
	if s.accounts, err = loadAccounts(o.users, o.loginServer); err != nil {
		return nil, err
	}
	if s.tokens, err = newIssuer(o.loginServer); err != nil {
		return nil, err
	}
	if s.requests, err = newRequestLog(o.log, o.access); err != nil {
		return nil, err
	}
	if s.root == "" {
		s.temporary = true
		if s.root, err = os.MkdirTemp("", "acr-"); err != nil {
			return nil, err
		}
	}
	if s.store, err = newStore(s.root); err != nil {
		return nil, err
	}
	s.uploads = &uploads{open: map[string]*upload{}}
	for _, l := range []struct {
		name, address string
		handler       http.Handler
		encryption    *tls.Config
	}{
		{"registry", o.registry, s.observed("registry", s.serveRegistry), encryption},
		{"storage", o.storage, s.observed("storage", s.serveStorage), encryption},
		{"cloud", o.cloud, s.observed("cloud", s.serveCloud), encryption},
		{"control", o.control, s.controlHandler(), nil},
	} {
		if l.address == "" {
			continue
		}
		if err := s.listen(l.name, l.address, l.handler, l.encryption); err != nil {
			s.close()
			return nil, err
		}
	}
	if o.addresses != "" {
		text, err := json.Marshal(s.listening)
		if err == nil {
			err = writeWhole(o.addresses, text)
		}
		if err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

func (s *server) listen(name, address string, handler http.Handler, encryption *tls.Config) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	s.listening[name] = listener.Addr().String()
	if encryption != nil {
		listener = tls.NewListener(listener, encryption)
	}
	// HTTP/1.1 only: a fault resets a connection, and that has to hit exactly one request.
	h := &http.Server{Handler: handler, ReadHeaderTimeout: 30 * time.Second, TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){}}
	s.servers = append(s.servers, h)
	go func() {
		if err := h.Serve(listener); err != nil && err != http.ErrServerClosed {
			log.Printf("%s: %v", name, err)
		}
	}()
	return nil
}

// close ends everything at once; what is under way is cut off.
func (s *server) close() {
	s.faults.clear()
	for _, h := range s.servers {
		_ = h.Close()
	}
	context, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s.requests.settle(context)
	s.requests.close()
	if s.temporary {
		_ = os.RemoveAll(s.root)
	}
}

// writeWhole replaces a file, so that who waits for it never sees a part.
func writeWhole(path string, text []byte) error {
	if err := os.WriteFile(path+".new", text, 0o644); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
