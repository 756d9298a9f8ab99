"""One connection to one server: replies as they come, commands of one step of the loop in one write.

redis-py makes the connection (handshake, TLS, ACL, unix sockets), then its transport is taken over. Knows the protocol
(https://redis.io/docs/latest/develop/reference/protocol-spec/), nothing of scripts, clusters or channels.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, cast

import hiredis
from redis.asyncio.connection import AbstractConnection

from agent_sse.errors import RedisUnavailable

FAIR_SHARE = 64  # replies taken in one step of the loop: a burst must not starve the rest
WRITE_LIMIT = 256 * 1024  # bytes that the transport holds before it says that it is congested
WRITE_SIZE = 1024 * 1024  # bytes joined for one write, and waiting for it before the wire says so too
SLACK = 0.001  # s; a timer may fire that much before its time

Arg = str | bytes | int
Done = Callable[[Any], None]

_MORE = object()


def pack(command: tuple[Arg, ...]) -> bytes:
    """Return a command as it goes to the server."""
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]  # its stub says: of one item
    return packed


def pack_items(items: tuple[Arg, ...]) -> bytes:
    """Return items as they stand in a command, without the head that counts them."""
    packed = pack(items)
    return packed[packed.index(b"\n") + 1 :]


class ReplyError(Exception):
    """An error reply, as the server put it. ``code`` is its first word."""

    @property
    def code(self) -> str:
        """Return the kind of error: ``"NOSCRIPT"``, ``"MOVED"``, ``"ERR"``."""
        return str(self).partition(" ")[0]


class Wire(asyncio.Protocol):
    """A connection whose replies go to ``deliver``, one by one and in order. It must not raise.

    :meth:`write` never waits. Who heeds ``congested`` and waits for :meth:`drained` keeps what is held here bounded.
    """

    def __init__(self, deliver: Callable[[Any], None]) -> None:
        self.deliver = deliver
        self.congested = False
        self.heard = 0.0  # the loop's time of the last byte
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._loop = asyncio.get_running_loop()
        self._parser = hiredis.Reader(replyError=ReplyError, notEnoughData=_MORE)
        self._pending = False  # parsed in part: the rest is taken in the next step
        self._out: deque[bytes] = deque()
        self._held = 0  # bytes in `_out`
        self._paused = False  # the transport has enough
        self._drains: list[asyncio.Future[None]] = []
        self._reason = "connection closed by server"

    async def connect(self, connection: AbstractConnection, seconds: float) -> None:
        """Let redis-py connect within ``seconds``, and take the connection over. Raises what redis-py raises."""
        try:
            async with asyncio.timeout(seconds):
                await connection.connect()
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        reader, writer = connection._reader, connection._writer
        if reader is None or writer is None:
            raise RedisUnavailable("the connection was lost while it was made")
        connection._reader = connection._writer = None
        self._keep = writer  # a StreamWriter that is collected closes its transport
        self._transport = cast(asyncio.Transport, writer.transport)
        self._transport.set_write_buffer_limits(WRITE_LIMIT)
        self._transport.set_protocol(self)
        self.heard = self._loop.time()
        if rest := bytes(cast(Any, reader)._buffer):
            self.data_received(rest)
        if reader.at_eof() or reader.exception() is not None:
            self._transport.abort()
        else:
            self._transport.resume_reading()

    @property
    def alive(self) -> bool:
        """False once the connection is lost or being closed."""
        return not self._transport.is_closing()

    def abort(self, reason: str) -> None:
        """Close the connection now; ``connection_lost`` follows in a later step."""
        if self.alive:
            self._reason = reason
            self._transport.abort()  # `close` would wait for a flush, and over TLS for the peer

    async def aclose(self) -> None:
        """Close the connection and wait until it is."""
        self.abort("connection closed")
        await asyncio.wait([self.lost])

    # -- out ----------------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Send packed commands with the others of this step of the loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)
        self._held += len(data)
        if self._held > WRITE_SIZE:
            self.congested = True

    def _flush(self) -> None:
        out = self._out
        while out and not self._paused and self.alive:
            pieces, size = [], 0
            while out and size < WRITE_SIZE:
                piece = out.popleft()
                pieces.append(piece)
                size += len(piece)
            self._held -= size
            self._transport.write(b"".join(pieces) if len(pieces) > 1 else pieces[0])
        if self.congested and not out and not self._paused:
            self.congested = False
            self._wake()

    async def drained(self) -> None:
        """Wait until the peer has taken enough, or the connection is lost."""
        while self.congested and self.alive:
            waiter = self._loop.create_future()
            self._drains.append(waiter)
            await waiter

    def pause_writing(self) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._paused = self.congested = True

    def resume_writing(self) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._paused = False
        self._flush()

    def _wake(self) -> None:
        drains, self._drains = self._drains, []
        for waiter in drains:
            if not waiter.done():
                waiter.set_result(None)

    # -- in -----------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        self.heard = self._loop.time()
        self._parser.feed(data)
        if not self._pending:
            self._take(FAIR_SHARE)

    def _take(self, share: int) -> None:
        gets, deliver = self._parser.gets, self.deliver
        try:
            for _ in range(share):
                reply = gets()
                if reply is _MORE:
                    return
                deliver(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"it does not speak the protocol: {error}")
            return
        if self.alive:
            self._transport.pause_reading()
            self._pending = True
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._pending:
            self._pending = False
            self._take(FAIR_SHARE)
            if not self._pending and self.alive:
                self._transport.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        self._pending = False
        while self._parser.has_data():  # what arrived before the end is an answer still
            reply = self._last_reply()
            if reply is _MORE:
                break
            self.deliver(reply)
        self._out.clear()
        self._wake()
        if not self.lost.done():
            self.lost.set_result(None)

    def _last_reply(self) -> Any:
        try:
            return self._parser.gets()
        except hiredis.ProtocolError:
            return _MORE

    @property
    def reason(self) -> str:
        """Why the connection was lost."""
        return self._reason


class CommandWire(Wire):
    """A wire for commands: each reply goes to who asked for it, and each asker hears exactly once.

    ``timeout`` (seconds) bounds the wait for every single answer. When it is over and not one byte has come for as
    long, the connection counts as dead. ``on_lost`` is called before the askers hear of the loss.
    """

    def __init__(self, timeout: float, on_lost: Callable[[CommandWire], None] = lambda wire: None) -> None:
        super().__init__(self._answer)
        self._timeout = timeout
        self._on_lost = on_lost
        # Deadlines ascend, since all have the same time-out; so one timer serves them all, and the first ``_late``
        # are those that were told already. Their answers are still due, and are dropped.
        self._asked: deque[tuple[float, Done]] = deque()
        self._late = 0
        self._timer: asyncio.TimerHandle | None = None
        self._retired = False
        self.stale = False  # what comes next is to go over a new connection

    def send(self, commands: bytes, done: Done) -> None:
        """Send one packed command; ``done`` gets its reply, a :class:`ReplyError` or :class:`RedisUnavailable`."""
        deadline = self._loop.time() + self._timeout
        self._asked.append((deadline, done))
        self.write(commands)
        if self._timer is None:
            self._timer = self._loop.call_at(deadline, self._expire)

    def retire(self) -> None:
        """Close the connection as soon as everything that was asked is answered."""
        self._retired = True
        if not self._asked:
            self.abort("connection closed")

    def _answer(self, reply: Any) -> None:
        if not self._asked:
            self.abort("it answers what nobody asked")
            return
        _, done = self._asked.popleft()
        if self._late:
            self._late -= 1
        else:
            done(reply)
        if self._retired and not self._asked:
            self.abort("connection closed")

    def _expire(self) -> None:
        self._timer = None
        now = self._loop.time() + SLACK
        late = []
        while self._late < len(self._asked) and self._asked[self._late][0] <= now:
            late.append(self._asked[self._late][1])
            self._late += 1
        reason = f"no answer within {self._timeout:g} s"
        if late and self.heard + self._timeout <= now:
            self.abort(reason)
        elif self._late < len(self._asked):
            self._timer = self._loop.call_at(self._asked[self._late][0], self._expire)
        tell(late, RedisUnavailable(f"Redis is slow: {reason}"))

    def connection_lost(self, error: Exception | None) -> None:
        """See :class:`asyncio.BaseProtocol`."""
        super().connection_lost(error)
        if self._timer is not None:
            self._timer.cancel()
        waiting = [done for _, done in self._asked][self._late :]
        self._asked.clear()
        self._late = 0
        self._on_lost(self)
        tell(waiting, RedisUnavailable(f"Redis is not available: {str(error) if error else self.reason}"))


def tell(waiting: Iterable[Done], answer: object) -> None:
    """Give the same answer to all who wait."""
    for done in waiting:
        done(answer)
