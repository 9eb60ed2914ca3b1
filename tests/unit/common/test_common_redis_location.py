"""REDIS_URL in all its forms; nothing is asked."""

from __future__ import annotations

import pytest
from redis.asyncio.connection import SSLConnection
from redis.crc import key_slot

from services.common import stream
from services.common.errors import ConfigurationError
from services.common.redis_location import Location, Place, is_primary


def test_a_single_server_is_what_redis_py_makes_of_it():
    location = Location.parse("redis://user:secret@redis.example.com:6380/2")
    assert location.kind == "single"
    assert location.options == {
        "host": "redis.example.com",
        "port": 6380,
        "db": 2,
        "username": "user",
        "password": "secret",
    }
    assert location.locator("signals:ingest") is None


def test_sentinel_names_the_primary_among_several():
    location = Location.parse(
        "redis+sentinel://user:p%40ss@a.example.com,b.example.com:26380/execution-log/3"
        "?sentinel_username=watcher&sentinel_password=w%40tch"
    )
    assert location.kind == "sentinel"
    assert location.seeds == (Place("a.example.com", 26_379), Place("b.example.com", 26_380))
    assert location.service == "execution-log"
    assert location.options == {"db": 3, "username": "user", "password": "p@ss"}
    assert location.sentinel_options == {"username": "watcher", "password": "w@tch"}
    locator = location.locator("signals:ingest")
    assert locator is not None
    assert locator.is_sentinel


def test_sentinels_are_not_given_the_servers_password():
    assert Location.parse("redis+sentinel://:secret@a/name").sentinel_options == {}


def test_a_cluster_has_nodes_to_ask_and_no_database():
    location = Location.parse("redis+cluster://:secret@a.example.com:7000,[::1]:7001")
    assert location.kind == "cluster"
    assert location.seeds == (Place("a.example.com", 7_000), Place("::1", 7_001))
    assert location.options == {"db": 0, "password": "secret"}


def test_tls_goes_for_servers_and_sentinels():
    location = Location.parse("rediss+sentinel://a/name?ssl_ca_certs=/ca.pem")
    assert location.is_tls
    assert location.options["ssl_ca_certs"] == "/ca.pem"
    assert location.sentinel_options == {"connection_class": SSLConnection, "ssl_ca_certs": "/ca.pem"}


@pytest.mark.parametrize(
    "url",
    [
        "",
        "no-url",
        "http://:secret@a",
        "redis+ring://:secret@a",
        "unix+cluster:///a",
        "redis+sentinel://a",
        "redis+sentinel:///name",
        "redis+sentinel://a/name/0/more",
        "redis+sentinel://:secret@a/name/zero",
        "redis+sentinel://a:port/name",
        "redis+cluster://",
        "redis+cluster://:secret@a/0",
        "redis+cluster://a,,b",
    ],
)
def test_what_is_no_url_is_refused_without_showing_it(url: str):
    with pytest.raises(ConfigurationError, match="REDIS_URL: is not a redis://") as caught:
        Location.parse(url)
    assert "secret" not in str(caught.value)


def test_all_keys_of_a_shard_lie_in_one_slot():
    for shard in range(64):
        names = (stream.log_name, stream.heads_name, stream.snapshots_name, stream.meta_name)
        assert len({key_slot(name(shard).encode()) for name in names}) == 1


def test_three_shards_lie_in_different_thirds_of_a_cluster():
    slots = [key_slot(stream.log_name(shard).encode()) for shard in range(3)]
    assert {slot * 3 // 16_384 for slot in slots} == {0, 1, 2}


def test_a_masters_shard_is_the_remainder_of_its_number():
    assert [stream.shard_of(master_id, 3) for master_id in range(1, 8)] == [1, 2, 0, 1, 2, 0, 1]
    assert {stream.shard_of(master_id, 1) for master_id in range(1, 8)} == {0}


def test_only_a_primary_is_one():
    assert is_primary([b"master", 0, []])
    assert not is_primary([b"slave", b"127.0.0.1", 6379, b"connected", 0])
    assert not is_primary([b"sentinel", []])
    assert not is_primary(None)


def test_a_write_to_a_connection_that_was_reset_is_an_outage():
    """uvloop raises a RuntimeError for it, which redis-py lets through."""
    closed = RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")
    classified = stream.classify(closed)
    assert classified is not None
    assert classified.reason == "REDIS_UNREACHABLE"
    assert stream.classify(RuntimeError("anything else")) is None
