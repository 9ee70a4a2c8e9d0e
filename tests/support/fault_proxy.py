"""An HTTP proxy in front of an S3 server that injects the faults it is given: faults are data.

It refuses, delays, cuts off or loses replies (a lost one took effect upstream), or kills a
process as a request passes. Clients are given its address as their endpoint.
"""

import http.client
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens to the requests whose method and path it names, and whose turn it is.

    Of those requests, counted from 0, it strikes the ones that ``turn`` accepts. ``refuse``
    answers with ``status`` and ``code`` and passes nothing on; ``slow`` waits ``delay_s`` first;
    ``cut`` sends half of the reply's body; ``lose`` passes the request on and drops the reply;
    ``kill`` ends process ``victim()`` with SIGKILL before the request is passed on,
    ``kill-after`` afterwards.
    """

    kind: Literal["refuse", "slow", "cut", "lose", "kill", "kill-after"]
    methods: tuple[str, ...] = ("GET", "HEAD", "PUT", "POST", "DELETE")
    path: str = ""
    turn: Callable[[int], bool] = lambda number: True
    delay_s: float = 0.0
    status: int = 503
    code: str = "SlowDown"
    victim: Callable[[], int] = lambda: 0

    def names(self, method: str, path: str) -> bool:
        return method in self.methods and self.path in path


@dataclass
class FaultProxy:
    """A running proxy: its address, what passed, and the faults that it is to make."""

    address: str
    upstream: str
    faults: list[Fault] = field(default_factory=list)
    passed: list[tuple[str, str]] = field(default_factory=list)
    struck: int = 0
    _counts: dict[int, int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def plan(self, *faults: Fault) -> None:
        """Make these faults from now on, counted anew."""
        with self._lock:
            self.faults, self._counts, self.struck, self.passed = list(faults), {}, 0, []

    def next_fault(self, method: str, path: str) -> Fault | None:
        """Note a request; return the fault that strikes it."""
        found = None
        with self._lock:
            self.passed.append((method, path))
            for number, fault in enumerate(self.faults):
                if fault.names(method, path):
                    count = self._counts.get(number, 0)
                    self._counts[number] = count + 1
                    if found is None and fault.turn(count):
                        found = fault
            self.struck += found is not None
        return found


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy in front of the server at an address."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.proxy = FaultProxy(f"http://127.0.0.1:{server.server_port}", upstream)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: FaultProxy

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: clients that die in the middle of a request are the purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""

    def _pass_on(self) -> None:
        body = self._body()
        fault = self.server.proxy.next_fault(self.command, self.path)
        kind = fault.kind if fault else ""
        if fault and kind == "refuse":
            body = f"<Error><Code>{fault.code}</Code></Error>".encode()
            self._answer(fault.status, {}, body, whole=True)
            return
        if fault and kind == "slow":
            time.sleep(fault.delay_s)
        if fault and kind == "kill":
            os.kill(fault.victim(), signal.SIGKILL)
            self._hang_up()
            return
        status, headers, reply = self._ask(body)
        if fault and kind in ("lose", "kill-after"):
            if kind == "kill-after":
                os.kill(fault.victim(), signal.SIGKILL)
            self._hang_up()
            return
        self._answer(status, headers, reply, whole=kind != "cut")

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass_on

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        host = urlsplit(self.server.proxy.upstream)
        connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        try:
            connection.request(self.command, self.path, body, headers)
            response = connection.getresponse()
            answer = {k: v for k, v in response.getheaders() if k.lower() != "connection"}
            return response.status, answer, response.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes, *, whole: bool) -> None:
        self.send_response_only(status)
        stated = {k: v for k, v in headers.items() if k.lower() not in _HOP}
        length = next((v for k, v in headers.items() if k.lower() == "content-length"), None)
        has_body = self.command != "HEAD" and status not in (204, 304)
        if not has_body and length is not None:
            stated["Content-Length"] = length
        elif has_body:
            stated["Content-Length"] = str(len(body))
        for name, value in stated.items():
            self.send_header(name, value)
        self.end_headers()
        if has_body:
            self.wfile.write(body if whole else body[: len(body) // 2])
        if not whole:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
