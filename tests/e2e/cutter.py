"""A link that breaks: passes TCP connections on, counts the bytes towards the client, and ends or holds them when told to.

cutter.py LISTEN TO CONTROL [KEY=VALUE…], each an address HOST:PORT. `GET http://CONTROL/` answers with the state as JSON,
`GET http://CONTROL/set?KEY=VALUE&…` sets and answers the same:

  cut=N      a connection ends after N bytes towards the client, by turns with a FIN and with a RST; 0: never
  rate=N     a connection gets N bytes a second; 0: as many as it takes
  at=N       when N bytes in all have gone to clients, mode becomes what `then` says, once; 0: never
  then=MODE  refuse or hold
  for=S      S seconds after that mode becomes open again; 0: never
  mode=MODE  open; hold (connections stay, nothing is passed to clients); refuse (connections end, and new ones are refused)
  clear=1    counters back to zero

The state has all of these but clear, and the counters: bytes (towards clients), connections, cuts (that `cut` made), and
reached (whether `at` was).
"""

import fcntl
import http.server
import json
import socket
import struct
import sys
import termios
import threading
import time
import urllib.parse

CHUNK = 64 << 10
NUMBERS, WORDS = {"cut", "rate", "at", "for"}, {"then", "mode"}


class Link:
    def __init__(self, listen, to):
        self.listen, self.to = listen, to
        self.changed = threading.Condition()
        self.cut = self.rate = self.at = self.seconds = 0
        self.then, self.mode, self.until = "refuse", "open", None
        self.clear()
        self.open = set()

    def clear(self):
        self.bytes = self.connections = self.cuts = 0
        self.reached = False

    def state(self):
        with self.changed:
            return {
                "cut": self.cut, "rate": self.rate, "at": self.at, "then": self.then, "for": self.seconds, "mode": self.mode,
                "bytes": self.bytes, "connections": self.connections, "cuts": self.cuts, "reached": self.reached,
            }

    def set(self, pairs):
        with self.changed:
            for key, value in pairs:
                if key in NUMBERS:
                    setattr(self, {"for": "seconds"}.get(key, key), int(value))
                elif key in WORDS and value in ("open", "hold", "refuse"):
                    setattr(self, key, value)
                elif key == "clear":
                    self.clear()
                else:
                    raise ValueError(f"{key}={value}")
                if key == "mode":
                    self.until = None
            self.changed.notify_all()
        if self.mode == "refuse":
            self.end_all()

    def end_all(self):
        with self.changed:
            ending = list(self.open)
        for connection in ending:
            connection.end(reset=False)

    def reserve(self, connection, wanted):
        """How many bytes may go to the client now, none after the end; waits while the link is held."""
        with self.changed:
            while not connection.ended and (self.mode == "hold" or (self.mode == "open" and self.is_about_to_be_reached())):
                self.changed.wait()
            if connection.ended or self.mode == "refuse":
                return 0
            if self.cut:
                wanted = min(wanted, self.cut - connection.sent)
            if self.at and not self.reached:
                wanted = min(wanted, self.at - self.bytes)
            wanted = max(wanted, 0)
            # Before they are sent: too many rather than too few.
            self.bytes += wanted
            connection.sent += wanted
            return wanted

    def is_about_to_be_reached(self):
        """The last bytes before `at` are being sent by another connection."""
        return self.at and not self.reached and self.bytes >= self.at

    def sent(self, connection):
        """Whether the connection is to go on."""
        with self.changed:
            if self.is_about_to_be_reached():
                self.reached, self.mode = True, self.then
                self.until = time.monotonic() + self.seconds if self.seconds else None
                self.changed.notify_all()
            refuse = self.mode == "refuse"
            cut = self.cut and connection.sent >= self.cut
            if cut:
                self.cuts += 1
            turn = self.cuts
        if refuse:
            self.end_all()
        elif cut:
            connection.end(reset=turn % 2 == 0)
        return not (refuse or cut)

    def serve(self):
        listener = None
        while True:
            with self.changed:
                if self.until and time.monotonic() >= self.until:
                    self.mode, self.until = "open", None
                    self.changed.notify_all()
                refuse = self.mode == "refuse"
            if refuse:
                if listener:
                    listener.close()
                    listener = None
                time.sleep(0.02)
                continue
            if not listener:
                listener = socket.create_server(self.listen, backlog=128)
                listener.settimeout(0.02)
            try:
                client, _ = listener.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self.connect, args=(client,), daemon=True).start()

    def connect(self, client):
        client.settimeout(None)
        # What lies in there has been counted, and is lost if the client hangs up.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * CHUNK)
        try:
            server = socket.create_connection(self.to, timeout=10)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        connection = Connection(self, client, server)
        with self.changed:
            self.connections += 1
            self.open.add(connection)
        threading.Thread(target=connection.up, daemon=True).start()
        connection.down()
        with self.changed:
            self.open.discard(connection)


class Connection:
    def __init__(self, link, client, server):
        self.link, self.client, self.server = link, client, server
        self.sent, self.ended, self.due = 0, False, 0.0

    def up(self):
        """What the client sends; when it says that this was all, the server is told."""
        try:
            while data := self.client.recv(CHUNK):
                self.server.sendall(data)
            self.server.shutdown(socket.SHUT_WR)
        except OSError:
            self.end(reset=False)

    def down(self):
        try:
            while data := self.server.recv(CHUNK):
                data = memoryview(data)
                while data:
                    count = self.link.reserve(self, len(data))
                    if not count:
                        return
                    self.client.sendall(data[:count])
                    if not self.link.sent(self):
                        return
                    data = data[count:]
                    self.wait(count)
        except OSError:
            pass
        finally:
            self.end(reset=False)

    def wait(self, count):
        """A connection that was idle has saved nothing up."""
        if self.link.rate:
            now = time.monotonic()
            self.due = max(self.due, now) + count / self.link.rate
            time.sleep(max(0.0, self.due - now))

    def end(self, reset):
        """Both sides, once. shutdown wakes the thread that reads; close alone would not, and would wait for it."""
        with self.link.changed:
            if self.ended:
                return
            self.ended = True
            self.link.changed.notify_all()
        if reset:
            self.drain()
            self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            quietly(self.client.shutdown, socket.SHUT_RD)
        else:
            quietly(self.client.shutdown, socket.SHUT_RDWR)
        quietly(self.server.shutdown, socket.SHUT_RDWR)
        self.client.close()
        self.server.close()

    def drain(self):
        """What was counted is to have been sent before the RST; for two seconds at most."""
        for _ in range(200):
            if not struct.unpack("i", fcntl.ioctl(self.client, termios.TIOCOUTQ, b"\0" * 4))[0]:
                return
            time.sleep(0.01)


def quietly(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        pass


def control(link):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            url = urllib.parse.urlsplit(self.path)
            status = 200
            if url.path == "/set":
                try:
                    link.set(urllib.parse.parse_qsl(url.query))
                except ValueError as error:
                    print(f"cutter: {error}", file=sys.stderr)
                    status = 400
            body = json.dumps(link.state()).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    return Handler


def address(text):
    host, _, port = text.rpartition(":")
    return host, int(port)


def main():
    listen, to, controlled, *settings = sys.argv[1:]
    link = Link(address(listen), address(to))
    link.set([setting.split("=", 1) for setting in settings])
    server = http.server.ThreadingHTTPServer(address(controlled), control(link))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    link.serve()


main()
