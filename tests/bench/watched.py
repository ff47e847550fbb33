#!/usr/bin/env python3
"""What watching costs: requests a second with the metrics read each second and ten readers of the stream, and without, in pairs.

Needs Python 3.9, Linux, and a built binary; nothing else. See README.md beside it.
"""

import argparse
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time

import run

READERS = 10


class Watch:
    """A process that watches until it is told to end."""

    def __init__(self, admin):
        self.child = os.fork()
        if self.child == 0:
            for _ in range(READERS):
                threading.Thread(target=follow, args=(admin,), daemon=True).start()
            while True:
                ask(admin, "/metrics")
                time.sleep(1)

    def end(self):
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)


def ask(admin, path):
    sock = socket.create_connection(admin)
    sock.sendall(("GET %s HTTP/1.1\r\nHost: %s:%d\r\nConnection: close\r\n\r\n" % ((path,) + admin)).encode())
    answer = b""
    while more := sock.recv(65536):
        answer += more
    sock.close()
    return answer


def follow(admin):
    sock = socket.create_connection(admin)
    sock.sendall(("GET /v1/stream HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % admin).encode())
    buffer = bytearray(run.CHUNK)
    while sock.recv_into(buffer):
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("binary", nargs="?", default="target/release/routecause")
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--requests", type=int, default=20000, help="requests in each half of a pair")
    args = parser.parse_args()
    sock, free = run.listener(), run.listener()
    admin = free.getsockname()
    free.close()
    target, server = sock.getsockname(), os.fork()
    if server == 0:
        run.origin(sock)
    pairs = []
    with tempfile.TemporaryDirectory() as folder:
        proxy = run.Proxy(os.path.abspath(args.binary), folder, "%s:%d" % admin)
        try:
            run.gets(proxy, target, 2000, 64)
            for turn in range(args.pairs):
                pair = {}
                # Each goes first in turn.
                for is_watched in (turn % 2 == 0, turn % 2 != 0):
                    watch = Watch(admin) if is_watched else None
                    time.sleep(0.3)
                    pair[is_watched] = run.gets(proxy, target, args.requests, 64)
                    if watch:
                        watch.end()
                pairs.append(pair)
        finally:
            proxy.child.send_signal(signal.SIGKILL)
            proxy.child.wait()
            os.kill(server, signal.SIGKILL)
    print("%d pairs of %d requests, medians" % (args.pairs, args.requests))
    print("| | requests/s | CPU of the proxy, us/request |")
    print("| --- | --- | --- |")
    for name, is_watched in [("alone", False), ("watched", True)]:
        halves = [pair[is_watched] for pair in pairs]
        rate, cpu = (statistics.median(half[at] for half in halves) for at in (1, 0))
        print("| %s | %.0f | %.1f |" % (name, rate, cpu))
    ratios = [pair[True][1] / pair[False][1] for pair in pairs]
    print("| ratio of each pair [range] | %.3f [%.3f..%.3f] | |" % (statistics.median(ratios), min(ratios), max(ratios)))


if __name__ == "__main__":
    sys.exit(main())
