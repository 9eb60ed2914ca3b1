"""The edge over TLS: ALPN, handshakes that stall, certificates that change under open streams, attacks."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest
import trustme
from h2.errors import ErrorCodes
from hyperframe.frame import PingFrame

from tests.integration.fanout_edge.attacker import attacking, repeated
from tests.integration.fanout_edge.counting_service import Edge, count, counting_edge


@pytest.fixture
async def edge(tmp_path: Path) -> AsyncIterator[Edge]:
    async with counting_edge(tmp_path, http2_handshake_seconds_max=0.5) as edge:
        yield edge


def context_of(edge: Edge, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(edge.ca_file))
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


async def hung_up(reader: asyncio.StreamReader) -> None:
    async with asyncio.timeout(20):
        with suppress(ConnectionError, ssl.SSLError):
            while await reader.read(1_000):
                pass


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)], ids=["none", "http/1.1"])
async def test_who_does_not_choose_h2_is_told_so(edge: Edge, protocols: tuple[str, ...]) -> None:
    async with attacking(edge.port, tls=context_of(edge, *protocols)) as peer:
        goaway = await peer.goaway()
    assert (goaway.error_code, goaway.additional_data) == (
        ErrorCodes.INADEQUATE_SECURITY,
        b"choose h2 by ALPN",
    )


async def test_h2_is_chosen_among_others(edge: Edge) -> None:
    async with attacking(edge.port, tls=context_of(edge, "http/1.1", "h2")) as peer:
        chosen = peer.writer.get_extra_info("ssl_object").selected_alpn_protocol()
        await peer.send(peer.request(1, 3))
        assert (await peer.answer(1)).status == "0"
    assert chosen == "h2"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_tls_older_than_1_2_is_refused(edge: Edge) -> None:
    context = context_of(edge, "h2")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionError)):
        async with attacking(edge.port, tls=context):
            pass


async def test_a_handshake_that_stalls_or_never_begins_is_given_up_and_others_do_not_wait_for_it(
    edge: Edge,
) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", edge.port) for _ in range(20)]
    # The first bytes of a ClientHello that never goes on.
    for _, writer in silent[:10]:
        writer.write(b"\x16\x03\x01\x02\x00\x01")
    async with edge.channel() as channel:
        assert await count(channel, 200) == 200
    for reader, writer in silent:
        await hung_up(reader)
        writer.close()


async def test_plaintext_on_a_tls_port_is_hung_up_on(edge: Edge) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", edge.port)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
    await hung_up(reader)
    writer.close()


async def test_a_new_certificate_is_for_new_connections_and_open_streams_do_not_notice(
    edge: Edge, tmp_path: Path
) -> None:
    async with edge.channel() as channel:
        reading = asyncio.create_task(count(channel, 400, slowly=True))
        while not edge.counting.running:  # noqa: ASYNC110  # the handler sets no event
            await asyncio.sleep(0.005)
        authority = trustme.CA()
        renewed = authority.issue_cert("localhost")
        renewed.private_key_pem.write_to_path(tmp_path / "server.key")
        renewed.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
        (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
        async with attacking(edge.port, tls=context_of(edge, "h2")) as peer:
            await peer.send(peer.request(1, 1))
            assert (await peer.answer(1)).status == "0"
        assert not reading.done()
        assert await reading == 400


async def test_a_flood_over_tls_is_answered_by_goaway_and_others_do_not_notice(edge: Edge) -> None:
    async with edge.channel() as channel:
        reading = [asyncio.create_task(count(channel, 300, slowly=True)) for _ in range(3)]
        async with attacking(edge.port, tls=context_of(edge, "h2")) as attacker:
            flood = repeated(PingFrame(0, opaque_data=b"ping-pon"), 20_000)
            sending = asyncio.create_task(attacker.send(*flood))
            assert (await attacker.goaway()).error_code == ErrorCodes.ENHANCE_YOUR_CALM
            await sending
        assert await asyncio.gather(*reading) == [300] * 3
