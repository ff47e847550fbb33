"""A network that fails on demand, for tests: `routecause lab` behind a pytest fixture."""

import json
import os
import queue
import ssl
import subprocess
import threading
import urllib.request

import pytest

__all__ = ["Lab", "routecause_lab"]

#: What must come is waited for this long, in seconds.
SOON = 10


class Lab:
    """A running lab. `faults` are as in `--fault`: "api.lab.test: reset at client_hello first 1"."""

    def __init__(self, *faults, policy=None, command=None):
        command = command or os.environ.get("ROUTECAUSE", "routecause")
        args = [command, "lab", "--json"]
        for fault in faults:
            args += ["--fault", fault]
        if policy is not None:
            args += ["--policy", str(policy)]
        self._process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
        first = self._process.stdout.readline()
        if not first:
            self._process.wait()
            self._process.stdout.close()
            raise RuntimeError(f"{' '.join(args)} did not start: its exit code is {self._process.returncode}")
        #: What the lab says of itself: `proxy_url`, `ca_file`, `environment` and more.
        self.greeting = json.loads(first)
        self.url = self.greeting["proxy_url"]
        self.ca_file = self.greeting["ca_file"]
        #: The variables by which programs learn of the lab: `subprocess.run(…, env={**os.environ, **lab.environment})`.
        self.environment = self.greeting["environment"]
        self._records = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            self._records.put(json.loads(line))

    @property
    def proxies(self):
        """As `requests` takes it, with `verify=lab.ca_file`."""
        return {"http": self.url, "https": self.url}

    def opener(self):
        """A client of the standard library that uses the lab and trusts it alone."""
        context = ssl.create_default_context(cafile=self.ca_file)
        return urllib.request.build_opener(
            urllib.request.ProxyHandler(self.proxies), urllib.request.HTTPSHandler(context=context)
        )

    def records(self, count):
        """The next `count` records, in the order of their requests' ends; waits until there are so many."""
        return [self._records.get(timeout=SOON) for _ in range(count)]

    def close(self):
        """Ends the lab."""
        self._process.terminate()
        self._process.wait(timeout=SOON)
        self._reader.join(timeout=SOON)
        self._process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


@pytest.fixture
def routecause_lab():
    """Starts labs, which end with the test: `lab = routecause_lab("api.lab.test: reset at client_hello first 1")`."""
    labs = []

    def start(*faults, **more):
        labs.append(Lab(*faults, **more))
        return labs[-1]

    yield start
    for lab in labs:
        lab.close()
