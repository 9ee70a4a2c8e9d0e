"""Start HAProxy in Ray Serve's place, with the service's address as its only port.

Ray Serve writes HAProxy's configuration and starts the program that the variable
RAY_SERVE_HAPROXY_BINARY_PATH names: this script, called by a line that
:mod:`workflows.service.proxy` writes. The configuration opens two ports with HAProxy's state on
every interface, a control socket to every user of the machine, and sends the address of each
request to the machine's log. The script keeps the parts that answer requests, leaves out all
others, and becomes HAProxy. It runs without this package: it imports the standard library only.

    haproxy.py HOST PORT FOLDER PROGRAM [the arguments of HAProxy]...
"""

import ctypes
import fcntl
import json
import os
import re
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

_KEPT = re.compile(r"(global|defaults|backend [\w.-]+|frontend http_frontend)\n")
_DROPPED = re.compile(
    r"\s*(#|$|(bind|errorfile|stats|(no )?log|option (httplog|log-health-checks))\b)"
)
_CONTROL = re.compile(r"^ +stats socket (/\S+) ", re.MULTILINE)
_PR_SET_PDEATHSIG = 1

_LOCAL = "{ src 127.0.0.0/8 ::1 }"
_UNANSWERED = {
    "error": "SearchUnavailableError",
    "message": "no process of the service answers; ask again in a second",
}


def confined(text: str, host: str, port: int, errors: Path) -> str:
    """Return a configuration of Ray Serve's without ports but the service's.

    Sections that are unknown here are left out, so that those of another release of Ray open
    nothing either.

    Parameters
    ----------
    text
        The configuration that Ray Serve wrote.
    host, port
        The address of the service.
    errors
        File with the answer where no process answers, which takes the place of Ray Serve's 500.

    Raises
    ------
    ValueError
        The configuration has no part that answers requests, or no control socket in the file
        system.

    References
    ----------
    https://docs.haproxy.org/2.8/configuration.html
    """
    control = _CONTROL.findall(text)
    added = {
        "global": [
            f"stats socket {path} mode 600 level admin expose-fd listeners" for path in control
        ],
        "defaults": [
            "option http-buffer-request",  # it repeats only what was whole when it was sent
            "timeout http-request 30s",  # a client has this long for headers, and a buffer of body
            *(f"errorfile {status} {errors}" for status in (502, 503, 504)),
        ],
        "frontend http_frontend": [
            f"bind {_address(host, port)}",
            # The replicas see HAProxy's address, and believe these headers (Uvicorn's rule).
            f"http-request set-header X-Forwarded-For %[src] unless {_LOCAL}",
            f"http-request del-header X-Forwarded-Proto unless {_LOCAL}",
            # A client cannot know whether a POST was served on a connection that closes meanwhile.
            "http-request set-var(txn.post) bool(true) if METH_POST",
            "http-after-response set-header Connection close if { var(txn.post) -m bool }",
        ],
    }
    lines = []
    for section in re.split(r"(?m)^(?=\S)", text):
        if kept := _KEPT.match(section):
            head, *own = section.splitlines()
            own = [line for line in own if not _DROPPED.match(line)]
            lines += [head, *("    " + line for line in added.pop(kept[1], ())), *own]
    if added or len(control) != 1:
        raise ValueError("this release of Ray configures HAProxy in a way that is unknown here")
    return "\n".join([*lines, ""])


def _address(host: str, port: int) -> str:
    """Return an address as HAProxy reads it.

    Examples
    --------
    >>> _address("::1", 8000), _address("0.0.0.0", 8000)
    ('[::1]:8000', '0.0.0.0:8000')
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _answer() -> str:
    body = json.dumps(_UNANSWERED)
    head = (
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Retry-After: 1",
        "Connection: close",
    )
    return "\r\n".join([*head, "", body])


def main(host: str, port: str, folder: str, program: str, *arguments: str) -> None:
    """Confine the configuration, and become HAProxy."""
    path = Path(arguments[arguments.index("-f") + 1])
    errors, last = path.with_name("503.http"), path.with_name("last")
    errors.write_text(_answer(), newline="")
    text = confined(path.read_text(), host, int(port), errors)
    succession: tuple[str, ...] = ()
    if "-sf" not in arguments and last.exists():  # of a new actor, which knows no replica yet
        succession = _succession(_CONTROL.findall(text)[0])
        text = last.read_text()
    for file in (path, last):
        file.write_text(text)
    haproxy = os.getpid()
    os.setsid()  # Ray ends the process group of an actor that dies
    if os.fork() == 0:
        _end_with_the_service(folder, haproxy)
    os.execv(program, [program, *arguments, *succession])


def _succession(control: str) -> tuple[str, ...]:
    """Return the arguments that replace the HAProxy of an actor that died, if one answers."""
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(control)
        connection.sendall(b"show info\n")
        if found := re.search(rb"^Pid: (\d+)$", connection.makefile("rb").read(), re.MULTILINE):
            return ("-sf", found[1].decode(), "-x", control)
    return ()


def _end_with_the_service(folder: str, haproxy: int) -> None:
    """Wait for the end of the process that holds the folder, however it ends; then end HAProxy.

    The waiting process ends with HAProxy.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() == haproxy:
        fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_SH)
        os.kill(haproxy, signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
