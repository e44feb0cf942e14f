"""The channel brings verdicts to those who must not miss one, and everything that is TCP is here.

It listens to the gate and reads its journal; the gate never waits for it. So strangers, floods and slow readers can
hurt this process alone. It never makes up a heartbeat: it passes on the gate's, while they are fresh, so that a gate
that is dead or stopped is silence for everyone.
"""

from __future__ import annotations

import time

import zmq

from edge.doorman import Doorman, bind_again
from edge.errors import EXIT_CONFIG, LineBusyError, MasklineError
from edge.history import JournalPages
from edge.journal import boot_id
from edge.keys import Keyring
from edge.messages import MAX_MESSAGE_BYTES, Heartbeat, ProtocolError, decode, place
from edge.paths import channel_endpoint, journal_path
from edge.settings import Outputs
from edge.subscribers import MAX_CREDIT, Peer, PeerGoneError, Subscribers
from edge.topics import HEALTH, HEARTBEAT_INTERVAL_MS, VERDICT, topic
from edge.worker import IDLE_MS, QUEUE_MESSAGES, Worker

__all__ = ["Server", "run"]

GATE_AT_ONCE = 500
PEERS_AT_ONCE = 200
"""Messages of all peers in one turn: a flood has to wait until the verdicts are out."""
MAX_REQUEST_BYTES = 4096
SEND_QUEUE = MAX_CREDIT + 64
"""Beyond its credit a peer gets heartbeats and answers, until it is forgotten."""
RETRY_JOURNAL_S = 0.25
REBIND_S = 2.0
"""A port that this process has just left is free a little later."""
WORD_INTERVAL_S = 1.0
LAST_WORDS_S = 1.0
"""At the end of the line: so long subscribers may still acknowledge."""

HEARTBEATS = topic(HEALTH)

Socket = zmq.Socket[bytes]


class InsecureError(MasklineError):
    """The recipe would have verdicts leave the machine in the open."""

    exit_code = EXIT_CONFIG


class Server:
    """The channel's sockets, between the gate and its subscribers."""

    def __init__(self, worker: Worker) -> None:
        """Bind everything. Raises LineBusyError for a port in use, InsecureError, KeysError."""
        self.worker, self.log, self.outputs = worker, worker.log, worker.recipe.outputs
        self._routers: dict[int, Socket] = {}
        self._sockets = 0
        self._publisher: Socket | None = None
        self._doorman = self._hire_doorman(self.outputs)
        self._gate = self._listen_to_gate()
        self._pages = JournalPages(journal_path(worker.state_dir))
        self._poller = zmq.Poller()
        self._poller.register(self._gate, zmq.POLLIN)
        self._poller.register(self._pages.fd, zmq.POLLIN)
        self.subscribers = Subscribers(worker.recipe.line, boot_id(), HEARTBEAT_INTERVAL_MS, self._send)
        self._more = False
        self._ask_again = 0.0
        self._journal_trouble = ""
        self._refused, self._next_word = 0, 0.0
        self._patience_s = 0.0
        self._open_router([channel_endpoint(worker.runtime_dir)], secured=False)
        self._open_tcp()

    def turn(self) -> bool:
        """Pass on what has come; returns, within IDLE_MS, whether anything had come from the gate."""
        ready = dict(self._poller.poll(0 if self._more else IDLE_MS))
        heard = self._gate in ready and self._hear_gate()
        if self._pages.fd in ready:
            self._take_page()
        for number, router in list(self._routers.items()):
            if router in ready:
                self._hear_peers(number, router)
        self._more = self.subscribers.pump()
        self._ask_journal()
        if silent := self.subscribers.forget_silent(time.monotonic_ns()):
            self.log.warning("subscribers_silent", names=silent)
        self._report_refusals()
        if self._doorman and (revoked := self._doorman.changed()):
            self._cut_off(revoked)
        return heard

    def finish(self) -> None:
        """Pass on the gate's last words, and let subscribers acknowledge them."""
        give_up = time.monotonic() + LAST_WORDS_S
        while (self.turn() or self._more or self.subscribers.owed) and time.monotonic() < give_up:
            self.worker.beat()
        self.close()

    def close(self) -> None:
        """Close everything; what was sent may leave for a moment."""
        self._pages.close()
        for socket in (*self._routers.values(), *([self._publisher] if self._publisher else [])):
            socket.close(linger=500)
        if self._doorman:
            self._doorman.close()

    def _hear_gate(self) -> bool:
        for count in range(GATE_AT_ONCE):
            try:
                frames = self._gate.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return count > 0
            try:
                fresh = self._take_beat(frames[-1]) if frames[0].startswith(HEARTBEATS) else self._take(frames[-1])
            except ProtocolError as error:
                self.worker.count("failed")
                self.log.warning("message_refused", error=str(error))
                continue
            if self._publisher and fresh:
                self._publisher.send_multipart(frames)
        return True

    def _take(self, payload: bytes) -> bool:
        epoch, seq = place(payload)
        self.subscribers.published(epoch, seq, payload)
        return True

    def _take_beat(self, payload: bytes) -> bool:
        """Take a heartbeat of the gate; whether it is fresh, so that it may be passed on."""
        beat: Heartbeat = decode(payload, Heartbeat)
        fresh = (time.monotonic_ns() - beat.at_ns) / 1e6 <= beat.interval_ms
        self.subscribers.heartbeat(beat.epoch, beat.seq, payload if fresh else None)
        if not fresh:
            self.worker.count("stale")
        return fresh

    def _hear_peers(self, number: int, router: Socket) -> None:
        for _ in range(PEERS_AT_ONCE):
            try:
                frames = router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer = (number, frames[0].bytes)
            name = self._doorman.sender(router, frames[-1]) if self._doorman and number else None
            self.subscribers.receive(peer, name, frames[-1].bytes, time.monotonic_ns())

    def _send(self, peer: Peer, data: bytes) -> bool:
        try:
            self._routers[peer[0]].send_multipart([peer[1], data], zmq.NOBLOCK)
        except zmq.Again:
            return False
        except (zmq.ZMQError, KeyError) as error:  # EHOSTUNREACH
            raise PeerGoneError from error
        return True

    def _ask_journal(self) -> None:
        now = time.monotonic()
        if not self._pages.busy and now >= self._ask_again and (wanted := self.subscribers.wanted()):
            self._pages.ask(wanted)

    def _take_page(self) -> None:
        page = self._pages.take()
        if isinstance(page, str):
            if page != self._journal_trouble:
                self.log.error("journal_not_read", error=page)
            self._journal_trouble, self._ask_again = page, time.monotonic() + RETRY_JOURNAL_S
        elif page is not None:
            if self._journal_trouble:
                self.log.info("journal_read_again")
            self._journal_trouble = ""
            self.subscribers.take(page)

    def _report_refusals(self) -> None:
        """Say that garbage comes, once a second at most: it must not fill the log."""
        refused, now = self.subscribers.counters["refused"], time.monotonic()
        if refused > self._refused and now >= self._next_word:
            self.log.warning("subscribers_refused", messages=refused - self._refused, total=refused)
            self._refused, self._next_word = refused, now + WORD_INTERVAL_S

    def _listen_to_gate(self) -> Socket:
        gate: Socket = self.worker.zmq.socket(zmq.SUB)
        gate.rcvhwm = QUEUE_MESSAGES
        gate.maxmsgsize = MAX_MESSAGE_BYTES
        gate.reconnect_ivl = 20
        for kind in (VERDICT, HEALTH):
            gate.subscribe(topic(kind, self.worker.recipe.line))
        gate.connect(self.worker.verdict_endpoint)
        return gate

    def _hire_doorman(self, outputs: Outputs) -> Doorman | None:
        """A doorman, once the line has keys; None where everything is plain."""
        if not (outputs.publish or outputs.channel):
            return None
        keyring = Keyring(self.worker.state_dir)
        if not outputs.insecure and (keyring.folder / "line.key_secret").exists():
            return Doorman(self.worker.zmq, keyring)
        if outputs.insecure:
            self.log.warning("insecure", endpoints=[*outputs.publish, *outputs.channel], who="everyone may listen")
        elif outputs.beyond_loopback:
            raise InsecureError(
                f"outputs: {', '.join(outputs.beyond_loopback)}: others may reach this, and the line has no keys; make "
                "them (maskline keys new --line RECIPE), or let everyone listen (outputs.insecure = true)"
            )
        return None

    def _open_tcp(self) -> None:
        if self.outputs.channel:
            self._open_router(self.outputs.channel, secured=True)
        if self.outputs.publish:
            self._publisher = self.worker.zmq.socket(zmq.PUB)
            self._bind(self._publisher, self.outputs.publish, secured=True)

    def _open_router(self, endpoints: list[str] | tuple[str, ...], secured: bool) -> None:
        router: Socket = self.worker.zmq.socket(zmq.ROUTER)
        router.router_mandatory = True  # or what cannot be sent vanishes without a word
        router.sndhwm, router.rcvhwm = SEND_QUEUE, PEERS_AT_ONCE
        self._bind(router, endpoints, secured)
        self._routers[self._sockets] = router
        self._sockets += 1
        self._poller.register(router, zmq.POLLIN)

    def _bind(self, socket: Socket, endpoints: list[str] | tuple[str, ...], secured: bool) -> None:
        socket.linger = 0
        socket.ipv6 = True
        socket.heartbeat_ivl, socket.heartbeat_timeout = 1000, 3000
        if secured and self._doorman:
            self._doorman.secure_server(socket)
        socket.maxmsgsize = MAX_REQUEST_BYTES
        for endpoint in endpoints:
            try:
                bind_again(socket, endpoint, self._patience_s)
            except zmq.ZMQError as error:
                raise LineBusyError(
                    f"cannot publish on {endpoint}: {error.strerror}; is another line using it?"
                ) from error

    def _cut_off(self, revoked: set[str]) -> None:
        """Close and open the secured sockets: everybody comes back but those whose key is allowed no more."""
        self.log.warning("keys_revoked", names=sorted(revoked))
        for number in [n for n in self._routers if n > 0]:
            router = self._routers.pop(number)
            self._poller.unregister(router)
            self.subscribers.forget(number)
            router.close(linger=0)
        if self._publisher:
            self._publisher.close(linger=0)
        self._patience_s = REBIND_S
        self._open_tcp()


def run(worker: Worker) -> None:
    """The channel process."""
    server = Server(worker)
    worker.ready()
    while not worker.stopping:
        worker.beat()
        server.turn()
    server.finish()
