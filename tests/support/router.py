"""A router in user space, for a namespace where the kernel forwards nothing: it delays, and does what boxes on the way do.

router.py ONE_WAY_MS CLIENT_MAC SERVER_MAC; a rule a line on stdin, each answered by a line on stdout. It ends with stdin.

A rule is an object. Of which packets:
  from      client or server
  on        payload (unless told), ack (the client's bare ACK that completes a handshake), or any
  server    only of this address
  port      only of this port of the server
  contains  only with this text in the payload, or where a payload ends what the one before it began
  longer    only packets of more than so many bytes, their IP header counted
What happens then, where the box stands `at` milliseconds from the client:
  drop      it goes no further
  reset     so many resets to the client; `ttl` is theirs
  icmp      [type, code] to the client, in the router's name
  answer    an address: a forged answer to a question for a name (UDP)
"""
import heapq, ipaddress, json, os, select, socket, struct, sys, time

TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
FIN, SYN, RST, ACK = 1, 2, 4, 16
IPV4, IPV6 = 0x0800, 0x86DD
CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}
ROUTER = {4: "10.1.0.1", 6: "2001:db8:1::1"}


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def sealed(protocol, source, destination, body):
    """A body with its checksum; where a network card was to add it, it is missing."""
    at = CHECKSUM_AT.get(protocol)
    if at is None or len(body) < at + 2:
        return body
    body = body[:at] + b"\0\0" + body[at + 2 :]
    # The sum of IPv6 has wider fields, and the same result.
    pseudo = b"" if protocol == ICMP else source + destination + struct.pack("!HH", protocol, len(body))
    return body[:at] + checksum(pseudo + body) + body[at + 2 :]


def packet(protocol, source, destination, body, ttl=64):
    body = sealed(protocol, source, destination, body)
    if len(source) == 16:
        return struct.pack("!IHBB", 6 << 28, len(body), protocol, ttl) + source + destination + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, ttl, protocol, 0) + source + destination
    return head[:10] + checksum(head) + head[12:] + body


class Packet:
    def __init__(self, data, side):
        self.data, self.side, self.version = data, side, data[0] >> 4
        if self.version == 4:
            start, self.protocol, self.source, self.destination = (data[0] & 15) * 4, data[9], data[12:16], data[16:20]
            self.data = data[: struct.unpack("!H", data[2:4])[0]]
        else:
            start, self.protocol, self.source, self.destination = 40, data[6], data[8:24], data[24:40]
        self.start, self.body = start, self.data[start:]
        self.payload, self.ports, self.flags, self.seq = b"", (0, 0), 0, 0
        if self.protocol == TCP:
            *self.ports, self.seq, self.ack, offset, self.flags = struct.unpack("!HHIIBB", self.body[:14])
            self.payload = self.body[(offset >> 4) * 4 :]
        elif self.protocol == UDP:
            self.ports, self.payload = struct.unpack("!HH", self.body[:4]), self.body[8:]
        server = self.destination if side == "client" else self.source
        self.server, self.port = ipaddress.ip_address(server), self.ports[1 if side == "client" else 0]
        self.flow = (self.source, self.destination, *self.ports)

    def forwarded(self):
        head = bytearray(self.data[: self.start])
        if self.version == 4:
            head[8] -= 1
            head[10:12] = b"\0\0"
            head[10:12] = checksum(bytes(head))
        else:
            head[7] -= 1
        return bytes(head) + sealed(self.protocol, self.source, self.destination, self.body)

    def resets(self, count, ttl, is_dropped):
        """As the server would say it: to the client, whichever side's packet this is."""
        length = len(self.payload) + bool(self.flags & SYN) + bool(self.flags & FIN)
        if self.side == "client":
            sport, dport, seq, ack = self.ports[1], self.ports[0], self.ack, self.seq + length
            source, destination = self.destination, self.source
        else:
            # Behind what it says itself, if that arrives.
            sport, dport, seq, ack = *self.ports, self.seq + (0 if is_dropped else length), self.ack
            source, destination = self.source, self.destination
        body = struct.pack("!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, 5 << 4, RST | ACK, 0, 0, 0)
        return [packet(TCP, source, destination, body, ttl)] * count

    def icmp(self, kind, code):
        protocol = ICMP if self.version == 4 else ICMP6
        body = struct.pack("!BBHI", kind, code, 0, 0) + self.data[:548]
        return packet(protocol, ipaddress.ip_address(ROUTER[self.version]).packed, self.source, body)

    def answer(self, address, ttl):
        """The question comes back with one address."""
        address, question = ipaddress.ip_address(address).packed, self.payload
        end = question.index(b"\0", 12) + 5
        kind = 1 if len(address) == 4 else 28
        head = question[:2] + struct.pack("!HHHHH", 0x8180, 1, 1, 0, 0)
        record = struct.pack("!HHHIH", 0xC00C, kind, 1, 300, len(address)) + address
        dns = head + question[12:end] + record
        body = struct.pack("!HHHH", self.ports[1], self.ports[0], 8 + len(dns), 0) + dns
        return packet(UDP, self.destination, self.source, body, ttl)


class Router:
    def __init__(self, one_way, client, server):
        self.one_way, self.rules, self.queue, self.count, self.opening = one_way, [], [], 0, set()
        self.tails = {}
        self.macs = {"client": client, "server": server}
        self.sockets = {}
        for side in self.macs:
            link = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
            link.bind((side, 3))
            link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            self.sockets[side] = link

    def send(self, after, side, data):
        self.count += 1
        heapq.heappush(self.queue, (self.now + after, self.count, side, data))

    def matches(self, rule, packet):
        is_opening = packet.flow in self.opening and packet.flags & (SYN | ACK) == ACK
        on = rule.get("on", "payload")
        return (
            rule["from"] == packet.side
            and (on == "any" or on == "payload" and packet.payload or on == "ack" and is_opening)
            and rule.get("server") in (None, str(packet.server))
            and rule.get("port") in (None, packet.port)
            and self.has(packet, rule.get("contains", "").encode())
            and len(packet.data) > rule.get("longer", 0)
        )

    def has(self, packet, text):
        """Whether a payload has a text, or its end where the payload before it ended with its beginning."""
        near = max(len(text) - 1, 0)
        tail = self.tails.get(packet.flow, {}).get(packet.seq, b"")
        return text in packet.payload or text in tail[max(len(tail) - near, 0) :] + packet.payload[:near]

    def receive(self, packet):
        other = "server" if packet.side == "client" else "client"
        rules = [rule for rule in self.rules if self.matches(rule, packet)]
        ttl = packet.data[8] if packet.version == 4 else packet.data[7]
        if ttl <= 1:
            self.send(0, packet.side, packet.icmp(*((11, 0) if packet.version == 4 else (3, 0))))
        elif not any(rule.get("drop") for rule in rules):
            self.send(self.one_way, other, packet.forwarded())
        for rule in rules:
            # From the client and back, or past the box on the way to the client: behind the packet itself.
            back = 2 * rule.get("at", 0) / 1000 if packet.side == "client" else self.one_way
            ttl = rule.get("ttl", 64)
            for data in packet.resets(rule.get("reset", 0), ttl, "drop" in rule):
                self.send(back, "client", data)
            if "icmp" in rule:
                self.send(back, "client", packet.icmp(*rule["icmp"]))
            if "answer" in rule:
                self.send(back, "client", packet.answer(rule["answer"], ttl))
        # Where a segment ends is chance; the boxes that are played here put segments together, also those that come again.
        if packet.payload and packet.protocol == TCP:
            end = (packet.seq + len(packet.payload)) & 0xFFFFFFFF
            self.tails.setdefault(packet.flow, {})[end] = packet.payload[-64:]
        if packet.side == "client" and packet.flags & SYN:
            self.tails.pop(packet.flow, None)
            self.opening.add(packet.flow)
        else:
            self.opening.discard(packet.flow)

    def run(self):
        own = {ipaddress.ip_address(a) for a in ("10.1.0.1", "10.2.0.1", "2001:db8:1::1", "2001:db8:2::1")}
        print("ready", flush=True)
        while True:
            self.now = time.monotonic()
            while self.queue and self.queue[0][0] <= self.now:
                _, _, side, data = heapq.heappop(self.queue)
                protocol = IPV4 if data[0] >> 4 == 4 else IPV6
                self.sockets[side].sendto(data, (side, protocol, 0, 0, self.macs[side]))
            wait = self.queue[0][0] - self.now if self.queue else None
            ready, _, _ = select.select([sys.stdin, *self.sockets.values()], [], [], wait)
            self.now = time.monotonic()
            for side, link in self.sockets.items():
                if link in ready:
                    data, (_, protocol, kind, *_) = link.recvfrom(65536)
                    if kind != socket.PACKET_HOST or protocol not in (IPV4, IPV6):
                        continue
                    packet = Packet(data, side)
                    destination = ipaddress.ip_address(packet.destination)
                    if not (destination in own or destination.is_multicast or destination.is_link_local):
                        self.receive(packet)
            if sys.stdin in ready:
                line = sys.stdin.readline()
                if not line:
                    return
                self.rules.append(json.loads(line))
                print("taken", flush=True)


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


# Punctual, whatever else the machine does, and before those who are as well.
try:
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(2))
except PermissionError:
    pass
Router(float(sys.argv[1]) / 1000, mac(sys.argv[2]), mac(sys.argv[3])).run()
