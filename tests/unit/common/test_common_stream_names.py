from __future__ import annotations

import pytest
from redis.crc import key_slot

from services.common import stream
from services.common.stream import EntryId


def test_shard_0_has_the_names_that_the_runbook_uses() -> None:
    assert stream.log_name() == "signals:ingest"
    assert stream.heads_name() == "{signals:ingest}:heads"
    assert stream.snapshots_name() == "{signals:ingest}:snapshots"
    assert stream.meta_name() == "{signals:ingest}:meta"


@pytest.mark.parametrize("shard", [0, 1, 7, 123])
def test_all_keys_of_a_shard_are_in_one_cluster_slot(shard: int) -> None:
    names = [
        stream.log_name(shard),
        stream.heads_name(shard),
        stream.snapshots_name(shard),
        stream.meta_name(shard),
    ]
    assert len({key_slot(name.encode()) for name in names}) == 1
    assert len(set(names)) == 4


@pytest.mark.parametrize("text", ["", "x", "1-x", "-", "1-2-3"])
def test_malformed_entry_ids_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"invalid literal|entry id"):
        EntryId.parse(text)
