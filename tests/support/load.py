"""Tunnels through a proxy by name, some at a time, each with a talk of a few seconds: python3 load.py PROXY PORT ORIGIN PORT.
Told to end, it prints how they fared: `done` to their end, `lost` after they were granted, `unserved` by any address that the
name has."""

import json
import random
import signal
import socket
import sys
import threading
import time

proxy, proxy_port, origin, origin_port = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
WORKERS, WORDS, PAUSE, PATIENCE = 8, 30, 0.1, 10
ending = threading.Event()
counts = {"done": 0, "lost": [], "unserved": [], "passed_over": 0}
lock = threading.Lock()


def note(key, what=None):
    with lock:
        if what is None:
            counts[key] += 1
        else:
            counts[key].append(what)


def read(stream, count):
    found = b""
    while len(found) < count:
        chunk = stream.recv(count - len(found))
        if not chunk:
            raise OSError("the end came early")
        found += chunk
    return found


def grant():
    """A tunnel by the first address that grants one; a replica that goes may still be in somebody's answer."""
    found = socket.getaddrinfo(proxy, proxy_port, socket.AF_INET, socket.SOCK_STREAM)
    addresses = [address for *_, address in found]
    random.shuffle(addresses)
    reasons = []
    for address in addresses:
        try:
            stream = socket.create_connection(address, PATIENCE)
            stream.sendall(f"CONNECT {origin}:{origin_port} HTTP/1.1\r\nHost: {origin}:{origin_port}\r\n\r\n".encode())
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += read(stream, 1)
            if not head.startswith(b"HTTP/1.1 200 "):
                raise OSError(head.decode())
            return stream, address[0]
        except OSError as error:
            reasons.append(f"{address[0]}: {error}")
            note("passed_over")
    raise OSError("; ".join(reasons))


def work():
    while not ending.is_set():
        try:
            stream, address = grant()
        except OSError as error:
            note("unserved", str(error))
            time.sleep(PAUSE)
            continue
        try:
            with stream:
                for _ in range(WORDS):
                    stream.sendall(b"word")
                    if read(stream, 4) != b"word":
                        raise OSError("another word came back")
                    time.sleep(PAUSE)
                stream.shutdown(socket.SHUT_WR)
                if stream.recv(1):
                    raise OSError("something came behind the end")
            note("done")
        except OSError as error:
            note("lost", f"{address}: {error}")


signal.signal(signal.SIGTERM, lambda *_: ending.set())
workers = [threading.Thread(target=work) for _ in range(WORKERS)]
for worker in workers:
    worker.start()
while counts["done"] < WORKERS and not ending.is_set():
    time.sleep(PAUSE)
print("loaded", flush=True)
for worker in workers:
    worker.join()
print(json.dumps(counts), flush=True)
