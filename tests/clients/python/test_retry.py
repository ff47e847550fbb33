import pytest


def fetch(opener, url, tries):
    for left in reversed(range(tries)):
        try:
            return opener.open(url).read()
        except OSError:
            if not left:
                raise


def test_a_client_that_tries_again_survives_a_reset(routecause_lab):
    lab = routecause_lab("api.lab.test: reset at client_hello first 1")
    assert fetch(lab.opener(), "https://api.lab.test/", tries=2) == b"GET / of api.lab.test by https\n"
    assert [record.get("error.type") for record in lab.records(2)] == ["tls.reset_after_client_hello", None]


def test_a_client_that_does_not_meets_it(routecause_lab):
    lab = routecause_lab("api.lab.test: reset at client_hello first 1")
    with pytest.raises(OSError, match="Connection reset by peer"):
        fetch(lab.opener(), "https://api.lab.test/", tries=1)


def test_a_fault_that_is_none_is_told(routecause_lab):
    with pytest.raises(RuntimeError, match="exit code is 2"):
        routecause_lab("api.lab.test: resett at client_hello")
