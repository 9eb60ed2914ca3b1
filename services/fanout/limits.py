"""What the settings say about each part of the fan-out, as that part wants to know it; it makes no part but these."""

from __future__ import annotations

from services.fanout.acknowledgements import AcknowledgementLimits
from services.fanout.backlog import BacklogLimits
from services.fanout.domain.index import LogIndex
from services.fanout.domain.lag import LagLimits
from services.fanout.domain.pacing import Pacing
from services.fanout.domain.stream import StreamLimits
from services.fanout.entitlements import EntitlementLimits
from services.fanout.hub import HubLimits
from services.fanout.recorder import RecordLimits
from services.fanout.settings import FanoutSettings
from services.fanout.snapshots import SnapshotLimits
from services.fanout.tailer import TailLimits


def of_hub(settings: FanoutSettings) -> HubLimits:
    """How many streams, how old, and how they end."""
    return HubLimits(
        streams_max=settings.streams_max,
        streams_per_user_max=settings.streams_per_user_max,
        stream_age_seconds_max=settings.stream_age_seconds_max,
        progress_interval_seconds=settings.progress_interval_seconds,
        # The second half of the grace is for those that end slowly.
        drain_jitter_seconds=min(settings.drain_jitter_seconds, settings.drain_grace_seconds / 2),
        messages=of_stream(settings),
        first_stream_id=settings.first_stream_id,
    )


def of_stream(settings: FanoutSettings) -> StreamLimits:
    """How large messages get."""
    return StreamLimits(
        message_bytes_max=settings.message_bytes_max,
        message_signals_max=settings.message_signals_max,
        progress_interval_seconds=settings.progress_interval_seconds,
    )


def of_lag(settings: FanoutSettings) -> LagLimits:
    """When a reader is too slow."""
    return LagLimits(
        signals_max=settings.lag_signals_max,
        bytes_max=settings.lag_bytes_max,
        seconds_max=settings.lag_seconds_max,
        catch_up_seconds_max=settings.catch_up_seconds_max,
        unacknowledged_seconds_max=settings.unacknowledged_seconds_max,
    )


def new_index(settings: FanoutSettings) -> LogIndex:
    """An empty index of one shard."""
    return LogIndex(
        marks_max=max(1, settings.index_marks_max // settings.log_shards),
        block_entries=settings.index_block_entries,
    )


def new_pacing(settings: FanoutSettings) -> Pacing:
    """The pace of one shard: the load of all of them together is what counts."""
    return Pacing(
        load_max=settings.load_max / settings.log_shards,
        delay_seconds_max=settings.coalescing_delay_seconds_max,
    )


def of_tail(settings: FanoutSettings) -> TailLimits:
    """How one shard of the log is read."""
    return TailLimits(
        fill_entries_max=settings.fill_entries_max // settings.log_shards,
        fill_bytes_max=settings.fill_bytes_max // settings.log_shards,
        block_ms=settings.tail_block_ms,
        entries_max=settings.tail_entries_max,
        masters_max=settings.ring_masters_max,
        audit_interval_seconds=settings.audit_interval_seconds,
    )


def of_backlog(settings: FanoutSettings) -> BacklogLimits:
    """What may be read behind the ring."""
    return BacklogLimits(
        walk_entries_max=settings.walk_entries_max,
        page_records_max=settings.page_records_max,
        pages_cached_max=settings.pages_cached_max,
        reads_max=settings.backlog_reads_max,
        timeout_seconds=settings.backlog_timeout_seconds,
    )


def of_snapshot(settings: FanoutSettings) -> SnapshotLimits:
    """How long snapshots are waited for."""
    return SnapshotLimits(
        wait_seconds=settings.snapshot_wait_seconds,
        poll_seconds=settings.snapshot_poll_seconds,
        waits_max=settings.snapshot_waits_max,
    )


def of_entitlement(settings: FanoutSettings) -> EntitlementLimits:
    """What is remembered of licenses."""
    return EntitlementLimits(
        cached_max=settings.authenticate_cached_max,
        cached_seconds=settings.authenticate_cached_seconds,
        refused_seconds=settings.authenticate_refused_seconds,
        calls_max=settings.authenticate_calls_max,
        recent_max=settings.recent_changes_max,
    )


def of_record(settings: FanoutSettings) -> RecordLimits:
    """How positions go to the ledger."""
    return RecordLimits(
        interval_seconds=settings.record_interval_seconds,
        batch_max=settings.record_batch_max,
        pending_max=settings.record_pending_max,
        transitions_max=settings.record_transitions_max,
        timeout_seconds=settings.peer_call_timeout_seconds,
    )


def of_acknowledgement(settings: FanoutSettings) -> AcknowledgementLimits:
    """How acknowledgements go to other processes."""
    return AcknowledgementLimits(
        interval_seconds=settings.record_interval_seconds,
        batch_max=settings.acknowledge_batch_max,
        pending_max=settings.record_pending_max,
        entries_max=settings.acknowledge_entries_max,
        block_ms=settings.tail_block_ms,
    )
