"""A peer that a test may stop and kill: peer.py origin|names ADDRESS PORT. Says `ready` when it listens.

An origin answers requests, `/slow` with a byte every 20 ms, and echoes tunnels that begin with `e`. A name server knows every
name as 127.0.0.1.
"""

import asyncio
import sys

SLOW = 10


async def answer(reader, writer):
    while first := await reader.read(1):
        if first == b"e":
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            return
        head = (first + await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = head.partition("\r\ncontent-length:")[2].partition("\r\n")[0]
        await reader.readexactly(int(length or 0))
        body = b"x" * SLOW if "/slow " in head else b"ok"
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body))
        for byte in body:
            if len(body) == SLOW:
                await asyncio.sleep(0.02)
            writer.write(bytes([byte]))
        await writer.drain()


async def serve(reader, writer):
    try:
        await answer(reader, writer)
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


class Names(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, query, client):
        end = query.index(b"\0", 12) + 5
        is_a = query[end - 3] == 1
        reply = query[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + b"\0\0\0\0" + query[12:end]
        if is_a:
            reply += b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + bytes([127, 0, 0, 1])
        self.transport.sendto(reply, client)


async def main(kind, address, port):
    if kind == "origin":
        await asyncio.start_server(serve, address, port, backlog=1024)
    else:
        loop = asyncio.get_running_loop()
        await loop.create_datagram_endpoint(Names, local_addr=(address, port))
    print("ready", flush=True)
    await asyncio.Event().wait()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
