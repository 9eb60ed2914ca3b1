"""Sealing of signing secrets, and the settings around it."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest

from services.common.errors import ConfigurationError, ServiceError
from services.ledger.settings import LedgerSettings
from services.ledger.store.sealing import Sealer

SECRET = bytes(range(32))
SEALER = Sealer(b"k" * 32)


def test_what_is_sealed_opens_again_and_looks_different_each_time() -> None:
    one, two = (SEALER.seal(SECRET, master_id=7, key_id="k1") for _ in range(2))
    assert one.ciphertext != two.ciphertext
    assert SECRET not in one.ciphertext
    assert len(one.ciphertext) == 12 + 32 + 16
    assert SEALER.open(one, master_id=7, key_id="k1") == SEALER.open(two, master_id=7, key_id="k1") == SECRET


@pytest.mark.parametrize(("master_id", "key_id"), [(8, "k1"), (7, "k2")])
def test_a_row_that_was_moved_does_not_open(master_id: int, key_id: str) -> None:
    sealed = SEALER.seal(SECRET, master_id=7, key_id="k1")
    with pytest.raises(ServiceError) as raised:
        SEALER.open(sealed, master_id=master_id, key_id=key_id)
    assert raised.value.reason == "SEALED_DAMAGED"


@pytest.mark.parametrize("index", [0, 12, 59])
def test_a_damaged_row_does_not_open(index: int) -> None:
    sealed = SEALER.seal(SECRET, master_id=7, key_id="k1")
    damaged = bytearray(sealed.ciphertext)
    damaged[index] ^= 1
    with pytest.raises(ServiceError):
        SEALER.open(replace(sealed, ciphertext=bytes(damaged)), master_id=7, key_id="k1")


def test_another_sealing_key_is_told_apart_from_damage() -> None:
    sealed = Sealer(b"o" * 32).seal(SECRET, master_id=7, key_id="k1")
    with pytest.raises(ServiceError) as raised:
        SEALER.open(sealed, master_id=7, key_id="k1")
    assert raised.value.reason == "SEALED_UNDER_ANOTHER_KEY"


@pytest.mark.parametrize("text", ["", "short", base64.b64encode(bytes(31)).decode(), "!" * 44])
def test_a_sealing_key_that_is_none_is_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        Sealer.from_base64(text)
    assert str(raised.value).startswith("KEY_ENCRYPTION_KEY: ")
    assert "\n" not in str(raised.value)
    assert not text or text not in str(raised.value)


def test_the_sealing_key_is_no_part_of_what_settings_show() -> None:
    key = base64.b64encode(bytes(32)).decode()
    settings = LedgerSettings(service_token="t" * 16, key_encryption_key=key)
    assert key not in repr(settings)
    assert settings.database_role == "ledger_service"
