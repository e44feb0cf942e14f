"""The doorman of a line's TCP sockets: CURVE for those whose key is allowed, and nothing at all for everyone else."""

from __future__ import annotations

import threading
import time

import structlog
import zmq
from zmq.utils import z85

from edge.errors import ResourceError
from edge.keys import Keyring, Pair, require_curve
from edge.messages import MAX_MESSAGE_BYTES

__all__ = ["Doorman", "bind_again", "secure_client"]

LOOK_INTERVAL_S = 0.1
"""How often the doorman looks whether the list of allowed keys has changed."""
HANDSHAKE_MS = 2_000
"""A connection that has shown no allowed key by then is closed. So late, at most, a client that was just allowed comes
in."""
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"


class Doorman:
    """Lets the allowed clients into the CURVE sockets of a context, and nobody else; knows each by its key.

    One per context, made before any socket is secured. It answers ZeroMQ's questions (ZAP, RFC 27) in a thread. Not
    `zmq.auth.ThreadAuthenticator`: that refuses with 400, whereupon libzmq's clients give up for good; 300 has them
    try again, so that a box that was switched on before its key was allowed comes in by itself.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keyring: Keyring) -> None:
        """Raises KeysError when the line has no keys, or libzmq no CURVE; ResourceError when the list cannot be
        read."""
        require_curve()
        self._log = structlog.get_logger()
        self._context, self._keyring, self._pair = context, keyring, keyring.pair()
        self._allowed = keyring.allowed()
        self._names = {key: name for name, key in self._allowed.items()}
        self._guarded: list[zmq.Socket[bytes]] = []
        self._next_look = 0.0
        self._refused, self._next_word = 0, 0.0
        zap = context.socket(zmq.REP)
        zap.linger = 0
        zap.bind(_ZAP_ENDPOINT)
        self._thread = threading.Thread(target=self._answer, args=(zap,), name="doorman", daemon=True)
        self._thread.start()

    def secure_server(self, socket: zmq.Socket[bytes]) -> None:
        """Make a socket speak CURVE only; before it is bound."""
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = self._pair.public, self._pair.secret
        socket.zap_domain = b"maskline"
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a doorman nobody comes in; libzmq would let in any key
        socket.handshake_ivl = HANDSHAKE_MS
        socket.maxmsgsize = MAX_MESSAGE_BYTES  # counts before the handshake too: a stranger fills no memory
        self._guarded = [s for s in self._guarded if not s.closed] + [socket]

    def sender(self, socket: zmq.Socket[bytes], frame: zmq.Frame) -> str | None:
        """The name of the client that sent this frame (received with copy=False); None for one that is not allowed.

        None for whatever came over a socket that is not secured, too: there anyone may claim any User-Id. Give a frame
        of the message itself: libzmq 4.3.4 says nothing about the routing id before it.
        """
        if not any(s is socket for s in self._guarded):
            return None
        try:
            return self._names.get(str(frame.get("User-Id")).encode())
        except zmq.ZMQError:
            return None

    def changed(self) -> set[str]:
        """The names that have lost their key since the last call. Cheap: call it at least every 100 ms.

        From then on none of them is let in or named as a sender; but they stay connected until the caller has closed
        the secured sockets and bound new ones.
        """
        if (now := time.monotonic()) < self._next_look:
            return set()
        self._next_look = now + LOOK_INTERVAL_S
        try:
            allowed = self._keyring.allowed()
        except ResourceError as error:  # out of descriptors, say: no reason to cut everyone off
            self._say("allowed_keys_unreadable", error=str(error))
            return set()
        left = {name for name, key in self._allowed.items() if allowed.get(name) != key}
        self._allowed, self._names = allowed, {key: name for name, key in allowed.items()}
        return left

    def close(self) -> None:
        """Close the secured sockets, then go."""
        for socket in self._guarded:
            socket.close(linger=0)
        with self._context.socket(zmq.REQ) as last:
            last.linger = 0
            last.connect(_ZAP_ENDPOINT)
            last.send(b"")
            self._thread.join()

    def __enter__(self) -> Doorman:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self, zap: zmq.Socket[bytes]) -> None:
        with zap:
            while len(question := zap.recv_multipart()) > 1:
                # version, request id, domain, address, routing id, mechanism, credentials
                _, request, _, address, _, mechanism, *credentials = question
                key = z85.encode(credentials[0]) if mechanism == b"CURVE" else b""
                if key in self._names:
                    zap.send_multipart([b"1.0", request, b"200", b"OK", key, b""])
                else:
                    self._refused += 1
                    self._say("client_refused", address=address.decode(), key=key.decode(), refused=self._refused)
                    zap.send_multipart([b"1.0", request, b"300", b"not allowed", b"", b""])

    def _say(self, event: str, **fields: object) -> None:
        """Log it, once a second at most: strangers do not fill the log."""
        if (now := time.monotonic()) >= self._next_word:
            self._next_word = now + 1.0
            self._log.warning(event, **fields)


def secure_client(socket: zmq.Socket[bytes], pair: Pair, server_key: bytes) -> None:
    """Make a socket speak CURVE, to the line with this public key and to nobody else; before it connects."""
    require_curve()
    socket.curve_serverkey = server_key
    socket.curve_publickey, socket.curve_secretkey = pair.public, pair.secret


def bind_again(socket: zmq.Socket[bytes], endpoint: str, patience_s: float = 2.0) -> None:
    """Bind an endpoint that a socket of this process has just left: libzmq lets go of it a little after `close`.

    Raises ZMQError when it is still taken after `patience_s`.
    """
    give_up = time.monotonic() + patience_s
    while True:
        try:
            socket.bind(endpoint)
            return
        except zmq.ZMQError as error:
            if error.errno != zmq.EADDRINUSE or time.monotonic() > give_up:
                raise
            time.sleep(0.005)
