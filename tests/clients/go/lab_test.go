package lab

import (
	"errors"
	"io"
	"net/http"
	"syscall"
	"testing"
)

func fetch(client *http.Client, url string, tries int) (string, error) {
	answer, err := client.Get(url)
	if err != nil {
		if tries > 1 {
			return fetch(client, url, tries-1)
		}
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	return string(body), err
}

func TestAClientThatTriesAgainSurvivesAReset(t *testing.T) {
	lab := Start(t, "api.lab.test: reset at client_hello first 1")
	body, err := fetch(lab.Client(), "https://api.lab.test/", 2)
	if err != nil || body != "GET / of api.lab.test by https\n" {
		t.Fatal(body, err)
	}
	if cause := lab.Record()["error.type"]; cause != "tls.reset_after_client_hello" {
		t.Fatal(cause)
	}
	if cause := lab.Record()["error.type"]; cause != nil {
		t.Fatal(cause)
	}
}

func TestAClientThatDoesNotMeetsIt(t *testing.T) {
	lab := Start(t, "api.lab.test: reset at client_hello first 1")
	_, err := fetch(lab.Client(), "https://api.lab.test/", 1)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Fatal(err)
	}
}
