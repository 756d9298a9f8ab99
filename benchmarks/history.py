"""What a reconnect storm replays: sessions with events, and each session's cursor, the id of its first event."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.load import Request
from benchmarks.peers import Peer
from benchmarks.redis_server import RedisServer
from benchmarks.stage import Stage, command, publisher_address, publisher_process, wait_for_publisher

REPLAYED = 50  # events after each cursor


class History:
    """Events for ``count`` sessions in a Redis of their own or in a running nchan, until the `with` block is left."""

    def __init__(self, binary: Path, parent: Path, peer: Peer, count: int) -> None:
        self.replayed = REPLAYED
        self.sessions = [f"h{index}" for index in range(count)]
        self.cursors: list[str] = []
        self._binary = binary
        self._parent = parent
        self._peer = peer
        self._stack = ExitStack()
        self._redis: RedisServer | None = None
        self._stage: Stage | None = None

    def __enter__(self) -> History:
        with ExitStack() as stack:
            if self._peer.publishes_to_itself:
                self._stage = stack.enter_context(Stage(self._binary, self._parent, self._peer))
                self._write_to(self._stage)
            else:
                self._redis = stack.enter_context(RedisServer(self._parent))
                self._write_to_redis(self._redis)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def stage(self, peer: Peer) -> Iterator[Stage]:
        """A fresh service on the history; the same nchan again, whose memory holds it."""
        if self._stage is not None:
            yield self._stage
            return
        with Stage(self._binary, self._parent, peer, redis=self._redis, publishing=False) as stage:
            yield stage

    def _write_to_redis(self, redis: RedisServer) -> None:
        address = publisher_address(self._peer.way, 0, redis)
        with publisher_process(self._parent, self._peer.way, address) as publisher:
            wait_for_publisher(publisher)
            self.cursors = command(publisher, "history", 180, sessions=self.sessions, events=REPLAYED + 1)["ids"]

    def _write_to(self, stage: Stage) -> None:
        """Publish through the service, and learn the cursors as a client does."""
        assert stage.publisher is not None
        command(stage.publisher, "history", 180, sessions=self.sessions, events=REPLAYED + 1)
        load = stage.load([Request(f"/old/{session}") for session in self.sessions])
        load.open(each=1)
        self.cursors = load.ids()
        load.close()
