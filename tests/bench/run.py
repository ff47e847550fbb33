#!/usr/bin/env python3
"""What the release binary costs as a whole process: CPU time for each request and tunnel, memory for each idle tunnel.

Needs Python 3.9, Linux, and a built binary; nothing else. See README.md beside it.
"""

import argparse
import os
import resource
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

BODY = b"x" * 1024
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1024\r\n\r\n" + BODY
CHUNK = 256 * 1024


def listener():
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    sock.listen(4096)
    return sock


def origin(sock):
    """Answers GETs with 1 KiB; D sends without end; anything else is echoed."""
    sock.setblocking(False)
    poll = select.epoll()
    poll.register(sock, select.EPOLLIN)
    open_, sending = {}, set()
    bulk = memoryview(b"x" * CHUNK)
    while True:
        for fd, _ in poll.poll():
            if fd == sock.fileno():
                try:
                    client, _ = sock.accept()
                except OSError:
                    continue
                client.setblocking(False)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                open_[client.fileno()] = client
                poll.register(client, select.EPOLLIN)
                continue
            client = open_[fd]
            try:
                if fd in sending:
                    client.send(bulk)
                    continue
                data = client.recv(65536)
                if data.startswith(b"D"):
                    sending.add(fd)
                    poll.modify(fd, select.EPOLLOUT)
                elif data.startswith(b"GET "):
                    client.sendall(ANSWER)
                elif data:
                    client.sendall(data)
                else:
                    raise ConnectionError
            except BlockingIOError:
                pass
            except OSError:
                sending.discard(fd)
                open_.pop(fd).close()


BY_UPSTREAM = "version: 1\nupstreams: {up: {url: 'http://%s:%d'}}\nrules: []\ndefault: {via: up}\n"
DIRECT = "version: 1\nrules: []\ndefault: {direct: true}\n"


class Proxy:
    def __init__(self, binary, folder, admin="off", rules=DIRECT):
        policy = os.path.join(folder, "policy.yaml")
        with open(policy, "w") as file:
            file.write(rules)
        free = listener()
        self.address = free.getsockname()
        free.close()
        args = ["--policy", policy, "--log-format", "json", "--log-file", os.path.join(folder, "records.log")]
        env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        command = [binary, "--listen", "%s:%d" % self.address, "--admin", admin, *args]
        self.child = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(100):
            try:
                self.connect().close()
                return
            except OSError:
                time.sleep(0.05)
        sys.exit("the proxy does not listen")

    def connect(self):
        sock = socket.create_connection(self.address, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def cpu(self):
        """Seconds of all threads."""
        tasks = "/proc/%d/task" % self.child.pid
        times = (open("%s/%s/schedstat" % (tasks, task)).read() for task in os.listdir(tasks))
        return sum(int(time_.split()[0]) for time_ in times) / 1e9

    def end(self):
        """In order: a build that notes what it does (deploy/trained) writes that at its end."""
        self.child.send_signal(signal.SIGTERM)
        self.child.wait()

    def memory(self):
        """Private and shared pages of its own, in KiB."""
        for line in open("/proc/%d/smaps_rollup" % self.child.pid):
            if line.startswith("Pss:"):
                return int(line.split()[1])


def head(sock):
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            sys.exit("the proxy closed a connection: %r" % data)
        data += more
    return data


def gets(proxy, target, count, clients):
    """Keep-alive GETs, as many at a time as there are clients; the CPU time for each, in microseconds."""
    request = ("GET http://%s:%d/ HTTP/1.1\r\nHost: %s:%d\r\nUser-Agent: bench\r\n\r\n" % (target + target)).encode()
    socks = [proxy.connect() for _ in range(clients)]
    begun, before = time.perf_counter(), proxy.cpu()
    for _ in range(count // clients):
        for sock in socks:
            sock.sendall(request)
        for sock in socks:
            data = head(sock)
            left = 1024 - (len(data) - data.index(b"\r\n\r\n") - 4)
            while left > 0:
                left -= len(sock.recv(65536))
    time.sleep(0.05)
    cpu, took = proxy.cpu() - before, time.perf_counter() - begun
    for sock in socks:
        sock.close()
    done = count // clients * clients
    return cpu / done * 1e6, done / took


def tunnel(proxy, target):
    sock = proxy.connect()
    sock.sendall(("CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % (target + target)).encode())
    return sock


def socks_tunnel(proxy, target):
    """The same by SOCKS5."""
    sock = proxy.connect()
    sock.sendall(b"\x05\x01\x00")
    sock.recv(2)
    sock.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(target[0]) + target[1].to_bytes(2, "big"))
    return sock


def granted(sock):
    if sock.recv(10)[:2] != b"\x05\x00":
        sys.exit("the proxy refused a tunnel by SOCKS5")


def tunnels(proxy, target, count, clients, ask=tunnel, answered=head):
    """Tunnels that are opened, carry one byte each way and are closed; the CPU time for each, in microseconds."""
    begun, before = time.perf_counter(), proxy.cpu()
    for _ in range(count // clients):
        socks = [ask(proxy, target) for _ in range(clients)]
        for sock in socks:
            answered(sock)
            sock.sendall(b"e")
        for sock in socks:
            sock.recv(1)
            sock.close()
    time.sleep(0.1)
    cpu, took = proxy.cpu() - before, time.perf_counter() - begun
    done = count // clients * clients
    return cpu / done * 1e6, done / took


def download(proxy, target, gib):
    """Bulk in one tunnel; CPU seconds for a GiB."""
    sock = tunnel(proxy, target)
    head(sock)
    sock.sendall(b"D")
    buffer, left, before = bytearray(CHUNK), int(gib * 2**30), proxy.cpu()
    wanted, begun = left, time.perf_counter()
    while left > 0:
        left -= sock.recv_into(buffer)
    cpu, took = proxy.cpu() - before, time.perf_counter() - begun
    sock.close()
    return cpu / wanted * 2**30, wanted / 2**30 / took


def idle(proxy, target, counts):
    """What each idle tunnel takes, in KiB, by how many there are."""
    empty, socks, told = proxy.memory(), [], []
    for count in counts:
        while len(socks) < count:
            socks.append(tunnel(proxy, target))
            head(socks[-1])
            socks[-1].sendall(b"e")
            socks[-1].recv(1)
        time.sleep(0.5)
        told.append((count, (proxy.memory() - empty) / count))
    for sock in socks:
        sock.close()
    return empty, told


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary", nargs="?", default="target/release/routecause")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=20000, help="requests in each round")
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    sock = listener()
    target, server = sock.getsockname(), os.fork()
    if server == 0:
        origin(sock)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as other:
        binary, chained = os.path.abspath(args.binary), None
        proxy = Proxy(binary, folder)
        try:
            most = max(100, min(9000, hard // 2 - 800, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500))
            empty, told = idle(proxy, target, sorted({most // 9, most // 3, most}))
            # Not before: what two share of their memory is told of each by half.
            chained = Proxy(binary, other, rules=BY_UPSTREAM % proxy.address)
            rows = []
            # The first rounds warm up what is measured.
            gets(proxy, target, 2000, 64)
            tunnels(proxy, target, 500, 16)
            for name, unit, work in [
                ("GET 1 KiB, 1 client", "us/request", lambda: gets(proxy, target, args.requests // 4, 1)),
                ("GET 1 KiB, 64 clients", "us/request", lambda: gets(proxy, target, args.requests, 64)),
                ("GET 1 KiB, 512 clients", "us/request", lambda: gets(proxy, target, args.requests, 512)),
                ("tunnel, 64 at a time", "us/tunnel", lambda: tunnels(proxy, target, args.requests // 4, 64)),
                ("tunnel by SOCKS5, 64 at a time", "us/tunnel", lambda: tunnels(proxy, target, args.requests // 4, 64, socks_tunnel, granted)),
                ("bulk in one tunnel", "s/GiB", lambda: download(proxy, target, 1)),
                ("GET 1 KiB by an upstream, 64 clients", "us/request", lambda: gets(chained, target, args.requests // 2, 64)),
                ("tunnel by an upstream, 64 at a time", "us/tunnel", lambda: tunnels(chained, target, args.requests // 8, 64)),
            ]:
                results = [work() for _ in range(args.rounds)]
                rows.append((name, unit, [cpu for cpu, _ in results], statistics.median(rate for _, rate in results)))
        finally:
            for started in filter(None, [chained, proxy]):
                started.end()
            os.kill(server, signal.SIGKILL)
    print("| work | CPU of the proxy, median [range] | unit | rate in this run |")
    print("| --- | --- | --- | --- |")
    for name, unit, cpus, rate in rows:
        print("| %s | %.3g [%.3g..%.3g] | %s | %.4g/s |" % (name, statistics.median(cpus), min(cpus), max(cpus), unit, rate))
    print()
    print("| memory | KiB |")
    print("| --- | --- |")
    print("| empty | %d |" % empty)
    for count, each in told:
        print("| each of %d idle tunnels | %.2f |" % (count, each))


if __name__ == "__main__":
    main()
