"""What goes over the socket between trainer and simulator: JSON behind its length, and nothing that executes.

The same file on both sides, one of which is Python 3.9: the standard library only.
"""

from __future__ import annotations

import hmac
import json
import socket
import struct
import time
from typing import Any

LOOPBACK = "127.0.0.1"
MOST = 16 * 2**20  # bytes of one message
HELLO = 256  # bytes of a token
PATIENCE = 5.0  # seconds in which a stranger has to say the token


class WireError(Exception):
    """The other side is gone, or what it says is no message."""


def send(sock: socket.socket, message: dict[str, Any]) -> None:
    """One message.

    Raises:
        ValueError: a number in it is not finite.
        OSError: the other side is gone.
    """
    payload = json.dumps(message, allow_nan=False).encode()
    sock.sendall(struct.pack("!I", len(payload)) + payload)


def receive(sock: socket.socket, most: int = MOST) -> dict[str, Any]:
    """The next message.

    Raises:
        WireError: the other side is gone, or it is no JSON object of at most ``most`` bytes.
        socket.timeout: it did not come in the socket's time.
    """
    (length,) = struct.unpack("!I", _read(sock, 4))
    if length > most:
        raise WireError(f"a message of {length} bytes")
    try:
        message = json.loads(_read(sock, length).decode())
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON ({error})") from error
    if not isinstance(message, dict):
        raise WireError(f"JSON of {type(message).__name__}")
    return message


def _read(sock: socket.socket, count: int) -> bytes:
    parts = []
    while count:
        try:
            part = sock.recv(min(count, 2**20))
        except socket.timeout:  # noqa: UP041  (in Python 3.9 it is not TimeoutError)
            raise
        except OSError as error:
            raise WireError(str(error)) from error
        if not part:
            raise WireError("the connection was closed")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def listen() -> socket.socket:
    """A socket that nobody outside of this machine reaches, at a port of the system's choice."""
    return socket.create_server((LOOPBACK, 0), backlog=4)


def accept(listener: socket.socket, token: str, seconds: float) -> socket.socket:
    """The first connection that says the token; others are closed.

    Raises:
        WireError: none came in time.
    """
    limit = time.monotonic() + seconds
    while (left := limit - time.monotonic()) > 0:
        listener.settimeout(left)
        try:
            sock, _ = listener.accept()
        except socket.timeout:  # noqa: UP041
            break
        sock.settimeout(PATIENCE)
        try:
            said = receive(sock, HELLO).get("token")
            if isinstance(said, str) and hmac.compare_digest(said.encode(), token.encode()):
                sock.settimeout(None)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return sock
        except (OSError, WireError):
            pass
        sock.close()
    raise WireError("nobody said the token")


def connect(port: int, token: str, seconds: float) -> socket.socket:
    """A connection to :func:`accept`.

    Raises:
        OSError: nobody listens.
    """
    sock = socket.create_connection((LOOPBACK, port), seconds)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    send(sock, {"token": token})
    return sock
