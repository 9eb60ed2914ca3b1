"""Turns what a stream says into journal, books, outcomes and one batch for the application; it knows no network."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from ecp_client.clock import ServerClock, monotonic_us, wall_us
from ecp_client.copying import (
    Copier,
    CopySettings,
    Scale,
)
from ecp_client.positions import BEGINNING, Position
from ecp_client.signals import OPEN, PENDING_PLACE
from ecp_client.subscriber.events import (
    Batch,
    Degraded,
    GapSeen,
    Resynced,
)
from ecp_client.subscriber.following import Following
from ecp_client.subscriber.hooks import Hooks, guarded
from ecp_client.subscriber.journal import Journal
from ecp_client.subscriber.journal_format import (
    LATENCY_US_MAX,
    SIGNAL_WITH_BODY,
    Entry,
    EntryType,
    encode,
    pack_body_length,
    pack_entry,
)
from ecp_client.subscriber.recovery import Recovered
from ecp_client.subscriber.reporting import Outcomes
from ecp_client.subscriber.session import (
    Delivery,
    Moved,
    SnapshotReceived,
    Step,
    SubscriberSession,
    WithheldAgain,
)
from ecp_client.subscriber.settings import SubscriberSettings
from ecp_client.subscriber.track import Track
from ecp_client.telling import Teller
from execution.common.v1 import position_pb2
from execution.common.v1.signal_pb2 import SequencedSignal
from execution.fanout.v1 import fanout_service_pb2 as pb

logger = logging.getLogger("ecp_client.subscriber")


@dataclass(slots=True)
class SubscriberStats:
    """Counts since the client was made."""

    messages: int = 0
    signals: int = 0
    """New ones, each counted once."""
    copied: int = 0
    skipped: int = 0
    replayed: int = 0
    """Delivered before a restart or a full sync; not acted on again."""
    duplicates: int = 0
    gaps: int = 0
    full_syncs: int = 0
    streams: int = 0
    callback_errors: int = 0


class Processor:
    """Everything between the stream and the application, for all masters of one subscriber."""

    def __init__(
        self,
        settings: SubscriberSettings,
        hooks: Hooks,
        journal: Journal | None,
        recovered: dict[int, Recovered],
        clock: ServerClock,
    ) -> None:
        self.stats = SubscriberStats()
        self.outcomes = Outcomes(settings.outcomes_max, settings.report)
        self.followings: dict[int, Following] = {}
        self.clock = clock
        self.tell = Teller(hooks.on_event, logger).tell
        self._settings = settings
        self._hooks = guarded(hooks, self._note_fault)
        self._journal = journal
        tracks = []
        for master_id in settings.masters or recovered:
            following = self._follow(master_id, recovered.get(master_id))
            tracks.append(following.track)
        self.session = SubscriberSession(tracks, settings.client)

    def _note_fault(self) -> None:
        self.stats.callback_errors += 1

    def _follow(self, master_id: int, known: Recovered | None) -> Following:
        settings = self._settings
        known = known or Recovered()
        track = Track(
            master_id,
            settings.start,
            known.checkpoint,
            known.processed,
            known.degraded_at,
            withheld=known.withheld,
        )
        copier = self._copier(master_id, known)
        following = Following(track, copier, known.decided, known.scales, known.told)
        self.followings[master_id] = following
        return following

    def _copier(self, master_id: int, known: Recovered) -> Copier:
        settings: CopySettings = self._settings.masters.get(master_id, self._settings.copy)
        return Copier(
            settings,
            known.mirror,
            known.account,
            protection=self._hooks.protection,
            quotes=self._hooks.quotes,
            equity=self._hooks.equity,
            point_value=self._hooks.point_value,
        )

    def following(self, master_id: int) -> Following:
        """What is known about a master; of one that the server brought up by itself, from then on."""
        following = self.followings.get(master_id)
        if following is None:
            track = self.session.tracks[master_id]
            following = Following(track, self._copier(master_id, Recovered()))
            self.followings[master_id] = following
        return following

    # Receiving

    def handle(self, response: pb.SubscribeResponse) -> Batch | None:
        """Takes one response; returns what the application is to be given, if anything is new.

        Raises:
            JournalError: it cannot be written; nothing of this response counts as received.
        """
        self.stats.messages += 1
        if response.HasField("signals"):
            return self._take_signals(response.signals)
        if response.HasField("progress"):
            self.clock.observe_one_way(response.progress.server_time_us, monotonic_us())
        now_us = wall_us()
        entries = []
        for step in self.session.take(response):
            entries += self._take_step(step, now_us)
        for following in list(self.followings.values()):
            entries += self._finish_full_sync(following, now_us)
        self._write(entries)
        return None

    def _take_signals(self, signals: pb.Signals) -> Batch | None:
        delivery = self.session.take_signals(signals)
        received_at_us = wall_us()
        server_now_us = self.clock.at(monotonic_us())
        if delivery.replayed or delivery.gaps:
            self._take_unusual(delivery, received_at_us)
        fresh = delivery.fresh
        if not fresh:
            return None
        batch = Batch(fresh, [], received_at_us, server_now_us)
        if self._journal is not None:
            self._journal.append(self._decide(batch))
        else:
            self._decide(batch)
        self.stats.signals += len(fresh)
        self.stats.duplicates = self.session.duplicates
        return batch

    def _decide(self, batch: Batch) -> bytes:
        """Decides each signal of a batch; returns the journal's entries. The hot path: everything is looked up once."""
        received_at_us, server_now_us = batch.received_at_us, batch.server_now_us
        decisions, parts = batch.decisions, []
        following: Following | None = None
        master_id = 0
        skipped = 0
        reports = bool(self._settings.risk_addresses)
        for sequenced in batch.signals:
            if following is None or sequenced.master_id != master_id:
                master_id = sequenced.master_id
                following = self.following(master_id)
            decision = following.take(sequenced, server_now_us)
            decisions.append(decision)
            signal = sequenced.signal
            kind = signal.kind
            latency_us = server_now_us - sequenced.sent_at_us
            if latency_us < 0:
                latency_us = 0
            elif latency_us > LATENCY_US_MAX:
                latency_us = LATENCY_US_MAX
            if decision.scale is not None:
                parts.append(_scale_entry(sequenced, decision.scale, received_at_us))
            action = decision.action
            skipped += action == 3
            parts.append(
                pack_entry(
                    SIGNAL_WITH_BODY,
                    kind,
                    action,
                    decision.reason,
                    sequenced.epoch,
                    sequenced.previous_epoch,
                    latency_us,
                    master_id,
                    sequenced.sequence,
                    sequenced.previous_sequence,
                    signal.position_id or signal.order_id,
                    received_at_us,
                )
            )
            body = signal.SerializeToString()
            parts.append(pack_body_length(len(body)))
            parts.append(body)
            if reports:
                self.outcomes.add_decision(sequenced, decision, latency_us, server_now_us)
        self.stats.skipped += skipped
        self.stats.copied += len(decisions) - skipped
        return b"".join(parts)

    def _take_unusual(self, delivery: Delivery, now_us: int) -> None:
        for sequenced in delivery.replayed:
            self.following(sequenced.master_id).replay(sequenced)
        self.stats.replayed += len(delivery.replayed)
        entries: list[bytes] = []
        for gap in delivery.gaps:
            self.tell(gap)
        first_fresh: dict[int, Position] = {}
        for sequenced in delivery.fresh:
            previous = Position(sequenced.previous_epoch, sequenced.previous_sequence)
            first_fresh.setdefault(sequenced.master_id, previous)
        for master_id, following in list(self.followings.items()):
            entries += self._finish_full_sync(following, now_us, mirror_at=first_fresh.get(master_id))
        self._write(entries)

    def _take_step(self, step: Step, now_us: int) -> list[bytes]:
        """Takes what is no signal; returns the journal's entries."""
        if isinstance(step, SnapshotReceived):
            self.following(step.master_id).begin_full_sync(step.snapshot, step.previous)
            return []
        if isinstance(step, WithheldAgain):
            self.following(step.master_id).pass_over()
            return []
        if isinstance(step, Moved):
            self.following(step.master_id).pass_over()
            return [encode(Entry(EntryType.PROGRESS, step.master_id, step.position, step.previous, now_us))]
        self.tell(step)
        if isinstance(step, GapSeen):
            self.stats.gaps += 1
            self.following(step.master_id).pass_over()
            previous = Position(step.first.epoch, max(0, step.first.sequence - 1))
            reason = position_pb2.GapReason.Value(f"GAP_REASON_{step.reason}")
            entry = Entry(EntryType.GAP, step.master_id, step.resume_after, previous, now_us, kind=reason)
            return [encode(entry)]
        if isinstance(step, Degraded):
            logger.warning(
                "master %d: signals are missing (%s); full sync follows", step.master_id, step.reason
            )
            # Where no gap tells it, a process after this one learns it from the checkpoint.
            made = self.following(step.master_id).checkpoint(now_us)
            return [] if made is None else [made]
        return []

    def _finish_full_sync(
        self, following: Following, now_us: int, mirror_at: Position | None = None
    ) -> list[bytes]:
        """Finishes it once the mirror has caught up; new signals that came with the last replay are not in it yet."""
        if not following.has_caught_up:
            return []
        master_id = following.track.master_id
        previous = following.synced_over or BEGINNING
        held = self._hooks.held_positions(master_id) if self._hooks.held_positions is not None else None
        plan = following.finish_full_sync(self.clock.at(monotonic_us()), held)
        self.stats.full_syncs += 1
        position = mirror_at or following.track.held or BEGINNING
        self.tell(Resynced(master_id, position, plan))
        entries = [encode(Entry(EntryType.SNAPSHOT, master_id, following.synced_as_of, previous, now_us))]
        checkpoint = following.checkpoint(now_us, mirror_at)
        return entries if checkpoint is None else [*entries, checkpoint]

    # What the application says

    def closed_by_user(self, master_id: int, ticket: int, *, is_order: bool) -> bool:
        """Notes a position closed, or an order cancelled, by hand."""
        account = self.following(master_id).copier.account
        noted = account.order_cancelled_by_user(ticket) if is_order else account.closed_by_user(ticket)
        if noted:
            self._note_ticket(EntryType.CLOSED_BY_USER, master_id, ticket, is_order)
        return noted

    def refused_by_broker(self, sequenced: SequencedSignal, reason: int) -> bool:
        """Notes that the broker refused what was decided to be copied."""
        signal = sequenced.signal
        account = self.following(sequenced.master_id).copier.account
        is_order = signal.kind == PENDING_PLACE
        if is_order:
            noted = account.order_refused(signal.order_id, reason)
        else:
            noted = account.refused(signal.position_id, reason)
        if noted:
            ticket = signal.order_id if is_order else signal.position_id
            self._note_ticket(EntryType.REFUSED_BY_BROKER, sequenced.master_id, ticket, is_order, reason)
        return noted

    def _note_ticket(
        self, entry_type: EntryType, master_id: int, ticket: int, is_order: bool, reason: int = 0
    ) -> None:
        now_us = wall_us()
        following = self.following(master_id)
        position = following.account_at
        kind = PENDING_PLACE if is_order else OPEN
        entry = Entry(
            entry_type, master_id, position, position, now_us, kind=kind, reason=reason, ticket=ticket
        )
        checkpoint = following.checkpoint(now_us)
        self._write([encode(entry)] if checkpoint is None else [encode(entry), checkpoint])

    # The journal

    def checkpoint(self) -> None:
        """Writes mirrors and accounts to the journal, in a new file when the last one is full."""
        if self._journal is None:
            return
        now_us = wall_us()
        entries = []
        is_one_older = False
        for following in self.followings.values():
            made = following.checkpoint(now_us)
            if made is None and following.track.processed > BEGINNING:
                is_one_older = True
                made = self._progress(following, now_us)
            if made is not None:
                entries.append(made)
        if self._journal.is_file_full:
            self._journal.begin_file(b"".join(entries), keeps_all=is_one_older)
        else:
            self._write(entries)

    def _progress(self, following: Following, now_us: int) -> bytes:
        """What keeps a master's position in the journal while its books cannot be written."""
        position = following.track.processed
        return encode(Entry(EntryType.PROGRESS, following.track.master_id, position, position, now_us))

    def _write(self, entries: list[bytes]) -> None:
        if entries and self._journal is not None:
            self._journal.append(b"".join(entries))

    def stream_ended(self, steps: list[Step]) -> None:
        """Takes what the session made of a stream's end."""
        now_us = wall_us()
        entries: list[bytes] = []
        for step in steps:
            entries += self._take_step(step, now_us)
        self._write(entries)


def _scale_entry(sequenced: SequencedSignal, scale: Scale, received_at_us: int) -> bytes:
    position = Position(sequenced.epoch, sequenced.sequence)
    body = scale.to_text().encode("ascii")
    return encode(Entry(EntryType.SCALE, sequenced.master_id, position, position, received_at_us, body=body))
