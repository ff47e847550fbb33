// Package lab runs `routecause lab` for tests: a network that fails on demand.
package lab

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// What must come is waited for this long.
const soon = 10 * time.Second

// Record is what a request left, by the names of its keys.
type Record map[string]any

// Lab is a running lab. It ends with its test.
type Lab struct {
	// URL is where the proxy listens.
	URL *url.URL
	// CAFile holds the certificate that clients are to trust.
	CAFile string
	// Environment has the variables by which programs learn of the lab.
	Environment map[string]string

	t       testing.TB
	records chan Record
}

// Start runs a lab with faults as in --fault: "api.lab.test: reset at client_hello first 1". The command is that of
// $ROUTECAUSE, or routecause.
func Start(t testing.TB, faults ...string) *Lab {
	t.Helper()
	program := os.Getenv("ROUTECAUSE")
	if program == "" {
		program = "routecause"
	}
	args := []string{"lab", "--json"}
	for _, fault := range faults {
		args = append(args, "--fault", fault)
	}
	command := exec.Command(program, args...)
	command.Stderr = os.Stderr
	out, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	lines := json.NewDecoder(bufio.NewReader(out))
	var greeting struct {
		ProxyURL    string            `json:"proxy_url"`
		CAFile      string            `json:"ca_file"`
		Environment map[string]string `json:"environment"`
	}
	if err := lines.Decode(&greeting); err != nil {
		_ = command.Wait()
		t.Fatalf("%v did not start: %v", command, err)
	}
	address, err := url.Parse(greeting.ProxyURL)
	if err != nil {
		t.Fatal(err)
	}
	lab := &Lab{
		URL:         address,
		CAFile:      greeting.CAFile,
		Environment: greeting.Environment,
		t:           t,
		records:     make(chan Record, 1024),
	}
	go func() {
		defer close(lab.records)
		for {
			var record Record
			if err := lines.Decode(&record); err != nil {
				return
			}
			lab.records <- record
		}
	}()
	t.Cleanup(func() {
		_ = command.Process.Signal(syscall.SIGTERM)
		for range lab.records {
		}
		_, _ = io.Copy(io.Discard, out)
		if err := command.Wait(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

// Client uses the lab and trusts it alone.
func (l *Lab) Client() *http.Client {
	l.t.Helper()
	pem, err := os.ReadFile(l.CAFile)
	if err != nil {
		l.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &http.Client{Transport: &http.Transport{
		Proxy:           http.ProxyURL(l.URL),
		TLSClientConfig: &tls.Config{RootCAs: roots},
		// A connection that is kept is a record that does not come.
		DisableKeepAlives: true,
	}}
}

// Record waits for the next record, in the order of the requests' ends.
func (l *Lab) Record() Record {
	l.t.Helper()
	select {
	case record, ok := <-l.records:
		if !ok {
			l.t.Fatal("the lab has ended")
		}
		return record
	case <-time.After(soon):
		l.t.Fatal("no record came")
	}
	return nil
}
