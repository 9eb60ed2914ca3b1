"""HMAC-SHA256 against RFC 4231, whose keys of 4, 20, 25 and 131 bytes every client must get right."""

from __future__ import annotations

import hmac

import pytest

from services.ingest.domain.mac import MacKey, login_mac, session_keys

RFC_4231 = [
    (b"\x0b" * 20, b"Hi There", "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (
        b"Jefe",
        b"what do ya want for nothing?",
        "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",
    ),
    (b"\xaa" * 20, b"\xdd" * 50, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (
        bytes(range(1, 26)),
        b"\xcd" * 50,
        "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b",
    ),
    (
        b"\xaa" * 131,
        b"Test Using Larger Than Block-Size Key - Hash Key First",
        "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54",
    ),
    (
        b"\xaa" * 131,
        b"This is a test using a larger than block-size key and a larger than block-size data."
        b" The key needs to be hashed before being used by the HMAC algorithm.",
        "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2",
    ),
]


@pytest.mark.parametrize(("key", "message", "expected"), RFC_4231)
def test_the_vectors_of_rfc_4231_hold(key: bytes, message: bytes, expected: str):
    assert MacKey(key).mac(message).hex() == expected


@pytest.mark.parametrize("length", [0, 1, 31, 32, 63, 64, 65, 128, 200])
def test_keys_of_all_lengths_agree_with_the_standard_library(length: int):
    key = bytes(range(length % 256))[:length].ljust(length, b"k")
    assert MacKey(key).mac(b"message") == hmac.digest(key, b"message", "sha256")


def test_a_key_makes_many_macs():
    key = MacKey(b"k" * 32)
    assert key.mac(b"one") == key.mac(b"one")
    assert key.fits(b"one", key.mac(b"one"))
    assert not key.fits(b"one", key.mac(b"two"))
    assert not key.fits(b"one", key.mac(b"one")[:31])
    assert not key.fits(b"one", b"")


def test_session_keys_differ_by_label_and_by_each_nonce():
    secret = b"s" * 32
    keys = session_keys(secret, b"c" * 16, b"n" * 32)
    others = session_keys(secret, b"d" * 16, b"n" * 32)
    macs = [
        key.mac(b"body")
        for key in (keys.signals, keys.snapshot, keys.gap_fill, others.signals, others.snapshot)
    ]
    assert len(set(macs)) == len(macs)
    assert login_mac(secret, b"c" * 16, b"n" * 32, b"body") == hmac.digest(
        secret, b"login" + b"c" * 16 + b"n" * 32 + b"body", "sha256"
    )
