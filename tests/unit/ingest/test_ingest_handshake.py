"""From the first frame to the Welcome."""

from __future__ import annotations

import pytest

from execution.ingest.v1 import frames_pb2 as pb
from services.ingest.domain.frames import FrameError
from services.ingest.domain.values import Authorise, Limits, LogHead, OpenLog
from tests.unit.ingest.dialogue import CHALLENGE, HOUR_US, Dialogue, only_reject
from tests.unit.ingest.signing import Credentials, Keys


def test_a_login_opens_a_session_where_the_log_stands():
    dialogue = Dialogue(Limits(window=64, heartbeat_ms=3_000, signal_age_ms_max=7_000))
    (challenge,) = dialogue.hello()
    assert challenge.challenge.nonce == CHALLENGE
    assert challenge.challenge.server_time_us == dialogue.now_us
    assert challenge.challenge.version == 1
    assert dialogue.login((3, 17)) == []
    assert dialogue.session.is_waiting
    assert dialogue.session.outbox.commands == [Authorise(1, "k1", "license-1")]
    assert dialogue.authorise(signals_per_second_max=20, signal_age_ms_max=2_000) == []
    assert dialogue.session.outbox.commands == [OpenLog(1, "k1", 3, 17, begin_epoch=False)]
    welcome = dialogue.open_log(LogHead(4, 17, 99, snapshot_epoch=4, snapshot_sequence=10))
    assert (welcome.position.epoch, welcome.position.sequence) == (4, 17)
    assert welcome.session_epoch == 99
    assert (welcome.window, welcome.heartbeat_ms) == (64, 3_000)
    assert (welcome.signals_per_second_max, welcome.signal_age_ms_max) == (20, 2_000)
    assert not welcome.snapshot_wanted
    assert not dialogue.session.is_waiting


@pytest.mark.parametrize(
    ("head", "wanted"),
    [
        (LogHead(1, 0, 1), True),
        (LogHead(1, 10, 1, snapshot_epoch=1, snapshot_sequence=1), False),
        (LogHead(2, 10, 1, snapshot_epoch=1, snapshot_sequence=10), True),
        (LogHead(1, 20_000, 1, snapshot_epoch=1, snapshot_sequence=1), True),
    ],
)
def test_a_snapshot_is_wanted_when_there_is_none_or_an_old_one(head: LogHead, wanted: bool):
    dialogue = Dialogue()
    dialogue.hello()
    dialogue.login()
    dialogue.authorise()
    assert dialogue.open_log(head).snapshot_wanted == wanted


@pytest.mark.parametrize(("version", "version_min"), [(0, 0), (3, 2), (2, 2)])
def test_without_a_common_version_there_is_no_session(version: int, version_min: int):
    dialogue = Dialogue()
    reject = only_reject(dialogue.hello(version=version, version_min=version_min))
    assert reject.code == pb.REJECT_CODE_UNSUPPORTED_VERSION
    assert dialogue.is_closed


def test_a_newer_client_that_also_speaks_version_1_is_welcome():
    (frame,) = Dialogue().hello(version=7, version_min=1)
    assert frame.challenge.version == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"master_id": 0},
        {"master_id": 2**53},
        {"key_id": ""},
        {"key_id": "x" * 65},
        {"key_id": "a\n"},
        {"nonce": b"n" * 15},
        {"nonce": b"n" * 33},
        {"client": "x" * 65},
    ],
)
def test_a_hello_with_a_bad_field_is_malformed(fields: dict[str, object]):
    dialogue = Dialogue()
    assert only_reject(dialogue.hello(**fields)).code == pb.REJECT_CODE_MALFORMED
    assert dialogue.is_closed


@pytest.mark.parametrize(
    "fields",
    [{"version": 2}, {"master_id": 2}, {"license_token": ""}, {"license_token": "x" * 129}],
)
def test_a_login_that_does_not_repeat_the_hello_is_malformed(fields: dict[str, object]):
    dialogue = Dialogue()
    dialogue.hello()
    assert only_reject(dialogue.login(**fields)).code == pb.REJECT_CODE_MALFORMED
    assert dialogue.is_closed


@pytest.mark.parametrize("acknowledged", [(0, 5), (2**53 - 1, 1), (1, 2**53)])
def test_an_impossible_acknowledged_position_is_malformed(acknowledged: tuple[int, int]):
    dialogue = Dialogue()
    dialogue.hello()
    assert only_reject(dialogue.login(acknowledged)).code == pb.REJECT_CODE_MALFORMED


def test_a_login_body_that_is_none_is_malformed():
    dialogue = Dialogue()
    dialogue.hello()
    frames = dialogue.send(pb.ClientFrame(login=pb.Login(body=b"\xff", mac=b"m" * 32)))
    assert only_reject(frames).code == pb.REJECT_CODE_MALFORMED


@pytest.mark.parametrize(
    "frame",
    [
        pb.ClientFrame(),
        pb.ClientFrame(ping=pb.Ping()),
        pb.ClientFrame(signals=pb.SignedSignals()),
        pb.ClientFrame(login=pb.Login()),
    ],
)
def test_other_frames_before_the_hello_are_malformed(frame: pb.ClientFrame):
    dialogue = Dialogue()
    dialogue.session.receive_frame(frame, dialogue.now_us, dialogue.now_seconds)
    assert only_reject(dialogue.answers()).code == pb.REJECT_CODE_MALFORMED
    assert dialogue.is_closed


def test_a_second_hello_is_malformed():
    dialogue = Dialogue()
    dialogue.hello()
    assert only_reject(dialogue.hello()).code == pb.REJECT_CODE_MALFORMED


def test_bytes_that_are_no_frame_are_malformed():
    dialogue = Dialogue()
    dialogue.session.receive_payload(b"\xff\xff\xff", dialogue.now_us, dialogue.now_seconds)
    assert only_reject(dialogue.answers()).code == pb.REJECT_CODE_MALFORMED
    assert dialogue.is_closed


def test_a_length_that_is_too_large_is_said_so():
    dialogue = Dialogue()
    dialogue.session.frame_failed(FrameError(pb.REJECT_CODE_TOO_LARGE, "too large"))
    assert only_reject(dialogue.answers()).code == pb.REJECT_CODE_TOO_LARGE
    assert dialogue.is_closed


def test_a_login_with_another_secret_is_refused():
    dialogue = Dialogue()
    dialogue.hello()
    dialogue.login()
    assert only_reject(dialogue.authorise(secret=b"another")).code == pb.REJECT_CODE_BAD_MAC
    assert dialogue.is_closed


def test_a_recorded_login_does_not_open_a_session_under_another_challenge():
    recorded = Keys(Credentials().secret, b"c" * 16, b"an older challenge".ljust(32))
    dialogue = Dialogue()
    dialogue.keys = recorded
    dialogue.hello()
    dialogue.login()
    assert only_reject(dialogue.authorise()).code == pb.REJECT_CODE_BAD_MAC


def test_an_expired_license_is_refused():
    dialogue = Dialogue()
    dialogue.hello()
    dialogue.login()
    reject = only_reject(dialogue.authorise(expires_at_us=dialogue.now_us))
    assert reject.code == pb.REJECT_CODE_LICENSE_EXPIRED
    assert dialogue.is_closed


@pytest.mark.parametrize(
    "code",
    [
        pb.REJECT_CODE_UNAUTHENTICATED,
        pb.REJECT_CODE_LICENSE_EXPIRED,
        pb.REJECT_CODE_LICENSE_REVOKED,
    ],
)
def test_what_the_ledger_refuses_ends_the_connection(code: pb.RejectCode.ValueType):
    dialogue = Dialogue()
    dialogue.hello()
    dialogue.login()
    dialogue.session.take_commands()
    dialogue.session.refused(code, "no")
    assert only_reject(dialogue.answers()).code == code
    assert dialogue.is_closed


def test_after_unavailable_the_same_login_may_come_again():
    dialogue = Dialogue(Limits(retry_after_ms=77))
    dialogue.hello()
    dialogue.login()
    dialogue.session.take_commands()
    dialogue.session.refused(pb.REJECT_CODE_UNAVAILABLE, "later")
    reject = only_reject(dialogue.answers())
    assert (reject.code, reject.retryable, reject.retry_after_ms) == (
        pb.REJECT_CODE_UNAVAILABLE,
        True,
        77,
    )
    assert not dialogue.is_closed
    dialogue.login()
    dialogue.authorise()
    assert dialogue.open_log().session_epoch == 50


def test_no_login_in_time_is_unauthenticated():
    dialogue = Dialogue(Limits(login_seconds_max=3))
    dialogue.hello()
    dialogue.pass_time(2.9)
    dialogue.session.tick(dialogue.now_us, dialogue.now_seconds)
    assert dialogue.answers() == []
    dialogue.pass_time(0.2)
    dialogue.session.tick(dialogue.now_us, dialogue.now_seconds)
    assert only_reject(dialogue.answers()).code == pb.REJECT_CODE_UNAUTHENTICATED
    assert dialogue.is_closed


def test_a_login_that_we_could_not_decide_in_time_is_sent_away_and_not_called_unauthenticated():
    """The client did its part: it is to connect again soon, and not to ask an operator."""
    refused = Dialogue(Limits(login_seconds_max=3))
    refused.hello()
    refused.login()
    refused.session.refused(pb.REJECT_CODE_UNAVAILABLE, "the ledger is away")
    refused.answers()
    waiting = Dialogue(Limits(login_seconds_max=3))
    waiting.hello()
    waiting.login()
    for dialogue in (refused, waiting):
        dialogue.pass_time(3.1)
        limit = dialogue.session.tick(dialogue.now_us, dialogue.now_seconds)
        assert limit == "unauthenticated_seconds"
        assert [frame.WhichOneof("frame") for frame in dialogue.answers()] == ["bye"]
        assert dialogue.is_closed


def test_a_bye_before_the_login_is_answered():
    dialogue = Dialogue()
    (frame,) = dialogue.send(pb.ClientFrame(bye=pb.Bye()))
    assert frame.HasField("bye")
    assert dialogue.is_closed


def test_an_answer_that_comes_too_late_opens_nothing():
    dialogue = Dialogue()
    dialogue.hello()
    dialogue.login()
    dialogue.session.end(pb.REJECT_CODE_TOO_MANY_CONNECTIONS, "too many")
    assert only_reject(dialogue.answers()).code == pb.REJECT_CODE_TOO_MANY_CONNECTIONS
    dialogue.authorise()
    dialogue.session.log_opened(LogHead(1, 0, 1), None, 0)
    assert dialogue.session.intake is None
    assert dialogue.answers() == []


def test_secrets_are_in_no_text():
    dialogue = Dialogue().open()
    texts = repr(dialogue.session.handshake.authorisation) + repr(Authorise(1, "k", "the token"))
    assert "sss" not in texts
    assert "the token" not in texts
    assert HOUR_US
