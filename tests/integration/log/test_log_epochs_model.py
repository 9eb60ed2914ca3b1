"""Losses, restores and forgetful masters in any order: the archive never sees a position with two contents."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from importlib import resources

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common import stream

LIBRARY = resources.files("services.ingest").joinpath("functions.lua").read_bytes()
KEYS = (stream.log_name(), stream.heads_name(), stream.meta_name())
MASTER = 1

Place = tuple[int, int]

ACTIONS = st.lists(
    st.sampled_from(
        [
            "send",
            "send unheard",
            "archive",
            "back up",
            "restore",
            "wipe",
            "forget",
            "forget and say so",
            "log in",
        ]
    ),
    min_size=1,
    max_size=25,
)


@dataclass
class World:
    """One master, the real functions' idea of its stream, and what is archived; a content is a number of its own."""

    client: redis.Redis
    contents: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    log: dict[Place, int] = field(default_factory=dict)
    archive: dict[Place, int] = field(default_factory=dict)
    copy: tuple[bytes | None, dict[Place, int]] = (None, {})
    acknowledged: Place = (0, 0)
    outbox: dict[int, int] = field(default_factory=dict)
    """Sent and not acknowledged, by sequence."""
    begin: bool = False
    session: int = 0

    def log_in(self) -> None:
        archived = max(self.archive, default=(0, 0))
        if self.acknowledged == archived == (0, 0) and not self.client.hexists(KEYS[1], str(MASTER)):
            # Nobody remembers anything: numbers begin again, and docs/log.md says not to restore a copy from before.
            self.copy = None, {}
        value, _, _ = self.client.fcall(
            "ecp_ingest_v2_open",
            3,
            *KEYS,
            0,
            MASTER,
            "k1",
            1,
            *self.acknowledged,
            int(self.begin),
            "log",
            1,
            *archived,
        )
        epoch, sequence, session, *_ = [int(word) if word.isdigit() else 0 for word in value.split()]
        self.acknowledged, self.session, self.begin = (epoch, sequence), session, False
        for kept in sorted(self.outbox):
            if kept > sequence:
                self.append(self.outbox[kept])
        self.outbox.clear()
        self.acknowledged = self.head()

    def head(self) -> Place:
        value = self.client.hget(KEYS[1], str(MASTER))
        epoch, sequence, *_ = value.split()
        return int(epoch), int(sequence)

    def append(self, content: int) -> Place:
        epoch, last = self.head()
        answer = self.client.fcall(
            "ecp_ingest_v2_append", 2, *KEYS[:2], 0, MASTER, self.session, last + 1, last + 1, "-", b"x"
        )
        assert answer == [0]
        assert (epoch, last + 1) not in self.log
        self.log[epoch, last + 1] = content
        return epoch, last + 1

    def do(self, action: str) -> None:
        match action:
            case "send":
                self.log_in()
                self.acknowledged = self.append(next(self.contents))
            case "send unheard":
                self.log_in()
                content = next(self.contents)
                self.outbox[self.append(content)[1]] = content
            case "archive":
                for place, content in self.log.items():
                    assert self.archive.get(place, content) == content, (
                        f"{place} is archived with another content"
                    )
                self.archive |= self.log
            case "back up":
                self.copy = self.client.hget(KEYS[1], str(MASTER)), dict(self.log)
            case "restore" | "wipe":
                self.client.flushdb()
                head, log = self.copy if action == "restore" else (None, {})
                self.log = dict(log)
                if head is not None:
                    self.client.hset(KEYS[1], str(MASTER), head)
            case "forget" | "forget and say so":
                self.acknowledged, self.begin = (0, 0), action == "forget and say so"
                self.outbox.clear()
            case "log in":
                self.log_in()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_no_position_is_archived_with_two_contents(redis_session_url: str, actions: list[str]) -> None:
    with redis.Redis.from_url(redis_session_url) as client:
        client.flushdb()
        client.function_load(LIBRARY.decode(), replace=True)
        world = World(client)
        for action in (*actions, "send", "archive"):
            world.do(action)
        client.flushdb()
