/** Where a subscriber stands with each master, and what a stream's messages change about that; no I/O, no clock. */

import type {
  Gap,
  MasterStart,
  PositionUnavailable,
  Progress,
  SequencedSignal,
  Snapshot,
  StateChange,
  StreamPosition,
  SubscribeRequest,
} from './contracts.js';

/** Where to begin with a master of whom no position is held. */
export type Start = 'beginning' | 'now' | 'snapshot';

/** A place in a master's stream. */
export class Position {
  static readonly BEGINNING = new Position(0n, 0n);

  constructor(
    readonly epoch: bigint,
    readonly sequence: bigint,
  ) {}

  static of(position: StreamPosition | null): Position {
    return position === null ? Position.BEGINNING : new Position(BigInt(position.epoch), BigInt(position.sequence));
  }

  equals(other: Position): boolean {
    return this.epoch === other.epoch && this.sequence === other.sequence;
  }

  isAfter(other: Position): boolean {
    return this.epoch > other.epoch || (this.epoch === other.epoch && this.sequence > other.sequence);
  }

  /** As the contracts spell it. */
  toProto(): { epoch: string; sequence: string } {
    return { epoch: `${this.epoch}`, sequence: `${this.sequence}` };
  }

  toString(): string {
    return `${this.epoch}/${this.sequence}`;
  }
}

/** Signals are missing and no Gap said so: the stream is to be opened anew. */
export interface Hole {
  masterId: string;
  held: Position;
  /** What the server says was sent before; everything after `held` up to here is missing. */
  previous: Position;
}

/** Where one master's stream stands. */
interface Master {
  /** Everything up to here was processed or is known not to come; null before the start is known. */
  held: Position | null;
  /** A full sync is needed: the account may no longer show what the master has open. */
  missesSomething: boolean;
  isPaused: boolean;
  awaitsSnapshot: boolean;
  /** The server has just said so: the next stream begins without one. */
  hasNoSnapshot: boolean;
  /** The stream jumped without a word: nothing more of it is taken. */
  isStalled: boolean;
  jumpedAt: Position | null;
}

/** What is kept on disk of each master, by its id. */
export type Kept = Record<string, { epoch: string; sequence: string; missesSomething: boolean }>;

/** All masters of one subscriber, over any number of streams one after the other. */
export class Following {
  wantsNewStream = false;
  readonly #masters = new Map<string, Master>();
  readonly #start: Start;

  constructor(masterIds: string[], kept: Kept, start: Start) {
    this.#start = start;
    for (const masterId of masterIds) {
      const known = kept[masterId];
      const held = known === undefined ? null : new Position(BigInt(known.epoch), BigInt(known.sequence));
      this.#masters.set(masterId, newMaster(held, known?.missesSomething ?? false));
    }
  }

  /** Whether every subscription has ended. */
  get isOver(): boolean {
    return this.#masters.size === 0;
  }

  /** Whether a full sync would help now. */
  get wantsFullSync(): boolean {
    return [...this.#masters.values()].some((one) => one.missesSomething && !one.isPaused);
  }

  // Opening a stream.

  /** The next stream's request; `fullSync` begins what misses something with a snapshot. */
  request(client: string, fullSync: boolean): SubscribeRequest {
    this.wantsNewStream = false;
    const masters = [...this.#masters].map(([masterId, master]) => this.#startOf(masterId, master, fullSync));
    return { masters, client };
  }

  #startOf(masterId: string, master: Master, fullSync: boolean): MasterStart {
    const maySync = fullSync && master.missesSomething && !master.hasNoSnapshot;
    master.awaitsSnapshot = master.held === null ? this.#start === 'snapshot' : maySync;
    master.hasNoSnapshot = false;
    // A pause that goes on is told again.
    master.isStalled = master.isPaused = false;
    if (master.awaitsSnapshot) {
      return { masterId, fromSnapshot: {} };
    }
    if (master.held === null && this.#start === 'now') {
      return { masterId, fromNow: {} };
    }
    master.held ??= Position.BEGINNING;
    return { masterId, after: master.held.toProto() };
  }

  // What comes.

  /** Those to act upon, in order, each moving the position; what was held already is passed over. */
  *fresh(signals: SequencedSignal[]): Generator<SequencedSignal | Hole> {
    for (const one of signals) {
      const master = this.#masters.get(one.masterId);
      if (master === undefined || master.isStalled) {
        continue;
      }
      const position = new Position(BigInt(one.epoch), BigInt(one.sequence));
      const previous = new Position(BigInt(one.previousEpoch), BigInt(one.previousSequence));
      master.held ??= previous;
      if (!position.isAfter(master.held)) {
        continue;
      }
      const isFirst = master.held.equals(Position.BEGINNING) && previous.sequence === 0n;
      if (previous.isAfter(master.held) && !isFirst) {
        yield this.#jump(one.masterId, master, master.held, previous);
        continue;
      }
      master.held = position;
      yield one;
    }
  }

  #jump(masterId: string, master: Master, held: Position, previous: Position): Hole {
    // The first time it is asked for again from where we stand; the second time, for a full sync.
    master.missesSomething ||= master.jumpedAt?.equals(held) ?? false;
    master.jumpedAt = held;
    master.isStalled = this.wantsNewStream = true;
    return { masterId, held, previous };
  }

  /** Moves behind the gap; false when it was known. */
  takeGap(gap: Gap): boolean {
    const master = this.#masters.get(gap.masterId);
    const resumeAfter = Position.of(gap.resumeAfter);
    if (master === undefined || master.isStalled || (master.held !== null && !resumeAfter.isAfter(master.held))) {
      return false;
    }
    master.held = resumeAfter;
    // The start of an epoch that lost nothing is told as a gap of no length.
    const isEmpty = Position.of(gap.from).equals(resumeAfter) && Position.of(gap.to).equals(resumeAfter);
    master.missesSomething ||= !isEmpty;
    return true;
  }

  /** The account is to be brought in line with it, and everything after it follows; false when nobody asked. */
  takeSnapshot(snapshot: Snapshot): boolean {
    const before = this.#masters.get(snapshot.masterId);
    if (before === undefined) {
      return false;
    }
    const { isPaused } = before;
    this.#masters.set(snapshot.masterId, { ...newMaster(Position.of(snapshot.asOf), false), isPaused });
    return true;
  }

  /** Moves over what the stream had nothing to say about; whether any position moved. */
  takeProgress(progress: Progress): boolean {
    let hasMoved = false;
    for (const entry of progress.positions) {
      const master = this.#masters.get(entry.masterId);
      const position = Position.of(entry.position);
      if (master === undefined || master.awaitsSnapshot || master.isStalled) {
        continue;
      }
      if (master.held === null || position.isAfter(master.held)) {
        master.held = position;
        hasMoved = true;
      }
    }
    return hasMoved;
  }

  /** Remembers pauses and what the server says is missing; forgets a master whose subscription ended. */
  takeState(change: StateChange): void {
    const master = this.#masters.get(change.masterId);
    if (master === undefined) {
      return;
    }
    master.isPaused = change.state.startsWith('SUBSCRIPTION_STATE_PAUSED_');
    // Also without a Gap here: an earlier stream may have told it. Only a full sync ends this state.
    master.missesSomething ||= change.state === 'SUBSCRIPTION_STATE_DEGRADED_GAP';
    if (change.state === 'SUBSCRIPTION_STATE_CANCELLED') {
      this.#masters.delete(change.masterId);
    }
  }

  /** What we hold is too old. A full sync heals that; where there is no snapshot, go on with the oldest left. */
  cannotResume(offers: PositionUnavailable[]): void {
    for (const [masterId, master] of this.#masters) {
      const offer = offers.find((one) => one.masterId === masterId);
      if (offer === undefined && offers.length > 0) {
        continue;
      }
      master.missesSomething = true;
      if (offer !== undefined && offer.snapshot === null) {
        master.held = Position.of(offer.oldest);
        master.hasNoSnapshot = true;
      }
    }
  }

  // What others are told.

  /** Where each master stands. */
  held(): Map<string, Position> {
    const found = new Map<string, Position>();
    for (const [masterId, { held }] of this.#masters) {
      if (held !== null) {
        found.set(masterId, held);
      }
    }
    return found;
  }

  /** What is to be kept on disk. */
  kept(): Kept {
    const found: Kept = {};
    for (const [masterId, { held, missesSomething }] of this.#masters) {
      if (held !== null) {
        found[masterId] = { ...held.toProto(), missesSomething };
      }
    }
    return found;
  }
}

function newMaster(held: Position | null, missesSomething: boolean): Master {
  return {
    held,
    missesSomething,
    isPaused: false,
    awaitsSnapshot: false,
    hasNoSnapshot: false,
    isStalled: false,
    jumpedAt: null,
  };
}
