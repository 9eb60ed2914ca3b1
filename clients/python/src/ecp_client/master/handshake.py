"""How a master proves who it is: Hello, and the Login that answers the server's Challenge. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from ecp_client.errors import ServerProtocolError
from ecp_client.master.frames import SessionKeys, login_mac, session_keys
from execution.ingest.v1 import frames_pb2 as pb

VERSION = 1
# 0 in the Hello means: the same as VERSION.
VERSION_MIN = 1
NONCE_BYTES_MIN = 16


@dataclass(frozen=True, slots=True)
class Identity:
    """Who logs in."""

    master_id: int
    key_id: str
    secret: bytes = field(repr=False)
    license_token: str = field(repr=False)
    client: str = ""


@dataclass(frozen=True, slots=True)
class Resume:
    """What the outbox knows when the session starts."""

    epoch: int
    acknowledged: int
    maybe_sent: int
    """No signal behind this was ever sent."""
    begin_epoch: bool
    """Signals may have been lost before they were acknowledged."""


def hello(identity: Identity, nonce: bytes) -> pb.ClientFrame:
    """The first frame. `nonce` is 16 to 32 random bytes that were never used before."""
    return pb.ClientFrame(
        hello=pb.Hello(
            version=VERSION,
            version_min=VERSION_MIN if VERSION_MIN < VERSION else 0,
            master_id=identity.master_id,
            key_id=identity.key_id,
            nonce=nonce,
            client=identity.client,
        )
    )


def login(
    identity: Identity, resume: Resume, nonce: bytes, challenge: pb.Challenge
) -> tuple[pb.ClientFrame, SessionKeys]:
    """The second frame, and the keys that the session's bodies are signed with.

    Raises:
        ServerProtocolError: the server's nonce is no good: too short, or our own sent back.
    """
    if len(challenge.nonce) < NONCE_BYTES_MIN or challenge.nonce == nonce:
        raise ServerProtocolError("the server's nonce is too short, or ours sent back")
    body = pb.LoginBody(
        version=challenge.version,
        master_id=identity.master_id,
        license_token=identity.license_token,
        begin_epoch=resume.begin_epoch,
    )
    if resume.epoch:
        body.acknowledged.epoch = resume.epoch
        body.acknowledged.sequence = resume.acknowledged
    serialized = body.SerializeToString()
    proof = login_mac(identity.secret, nonce, challenge.nonce, serialized)
    frame = pb.ClientFrame(login=pb.Login(body=serialized, mac=proof))
    return frame, session_keys(identity.secret, nonce, challenge.nonce)
