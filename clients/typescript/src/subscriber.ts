/**
 * A subscriber made of stock parts, @grpc/grpc-js and the contracts: it follows masters and prints every signal.
 *
 * It keeps its positions in a file, acknowledges, notices by itself when something is missing, and comes back whatever
 * happens to the connection. `ecp up` prints a license; the address is that of fanout:
 *
 *     node build/subscriber.js --fanout 127.0.0.1:50052 --plaintext --license ecp_... --master 1
 */

import { existsSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

import * as grpc from '@grpc/grpc-js';

import { FanoutService, positionsUnavailable } from './contracts.js';
import type { FanoutServiceClient, SequencedSignal, Snapshot, SubscribeResponse } from './contracts.js';
import { Following, Position } from './following.js';
import type { Hole, Kept } from './following.js';
import { parsed } from './options.js';
import type { Options } from './options.js';

const CLIENT = 'example-typescript/1.0';
const ACKNOWLEDGE_MS = 1_000;
const ACKNOWLEDGED_MAX = 100;
const CALL_MS_MAX = 5_000;
/** The server says something at least once a second; after this long nobody is there. */
const SILENCE_MS_MAX = 10_000;
const RECONNECT_MS_MIN = 100;
const RECONNECT_MS_MAX = 30_000;
/** Between two attempts at a full sync; meanwhile the stream goes on. */
const FULL_SYNC_MS = 30_000;
const FINAL = [grpc.status.UNAUTHENTICATED, grpc.status.PERMISSION_DENIED, grpc.status.INVALID_ARGUMENT];
const CHANNEL_OPTIONS = {
  'grpc.keepalive_time_ms': 20_000,
  'grpc.keepalive_timeout_ms': 10_000,
  'grpc.initial_reconnect_backoff_ms': RECONNECT_MS_MIN,
  'grpc.max_reconnect_backoff_ms': RECONNECT_MS_MAX,
};

/** Here a bridge would trade. A signal comes again if the process dies before its position is on disk. */
function act(one: SequencedSignal): void {
  const { kind, side, symbol, volumeLotsE8, priceE8, positionId } = one.signal!;
  const words = [kind.replace('SIGNAL_KIND_', '')];
  if (side !== 'SIDE_UNSPECIFIED') {
    words.push(side.replace('SIDE_', ''));
  }
  words.push(symbol, `${Number(volumeLotsE8) / 1e8} lots at ${Number(priceE8) / 1e8}, position ${positionId}`);
  const place = `${one.masterId}/${one.epoch}/${one.sequence}`;
  console.log(`${place} after ${one.previousEpoch}/${one.previousSequence}: ${words.join(' ')}`);
}

/** One subscriber's streams, one after the other. */
class Subscriber {
  readonly #options: Options;
  readonly #following: Following;
  readonly #client: FanoutServiceClient;
  readonly #metadata = new grpc.Metadata();
  readonly #acknowledged = new Map<string, Position>();
  readonly #stopping: AbortSignal;
  /** What a Drain asked for. */
  #reconnectAfterMs: number | null = null;
  #fullSyncAt = 0;
  #failures = 0;
  #signals = 0;

  constructor(options: Options, following: Following, stopping: AbortSignal) {
    this.#options = options;
    this.#following = following;
    this.#stopping = stopping;
    this.#client = new FanoutService(options.fanout, credentials(options), CHANNEL_OPTIONS);
    this.#metadata.set('authorization', `Bearer ${options.license}`);
  }

  /** Follows until every subscription has ended, or so many signals came; returns the exit code. */
  async run(): Promise<number> {
    const timer = setInterval(() => void this.#acknowledge(), ACKNOWLEDGE_MS);
    try {
      while (!this.#isDone) {
        const error = await this.#stream();
        if (error !== null && !this.#stopping.aborted) {
          console.log(`stream ended: ${grpc.status[error.code]} ${error.details}`);
          if (FINAL.includes(error.code)) {
            return 1;
          }
        }
        if (error?.code === grpc.status.OUT_OF_RANGE) {
          this.#following.cannotResume(positionsUnavailable(error));
        }
        if (!this.#isDone) {
          await sleep(this.#pauseMs(), null, { signal: this.#stopping }).catch(() => null);
        }
      }
      return 0;
    } finally {
      clearInterval(timer);
      await this.#acknowledge();
      this.#client.close();
    }
  }

  get #isDone(): boolean {
    const hasEnough = this.#options.count > 0 && this.#signals >= this.#options.count;
    return hasEnough || this.#following.isOver || this.#stopping.aborted;
  }

  #pauseMs(): number {
    const wait = this.#reconnectAfterMs;
    this.#reconnectAfterMs = null;
    if (wait !== null) {
      return wait;
    }
    const longest = Math.min(RECONNECT_MS_MAX, RECONNECT_MS_MIN * 2 ** this.#failures);
    this.#failures = Math.min(this.#failures + 1, 16);
    return longest * (0.5 + Math.random() / 2);
  }

  /** One stream, from its request to its end; returns how it failed, or null. */
  async #stream(): Promise<grpc.ServiceError | null> {
    const fullSync = this.#isFullSyncDue;
    if (fullSync) {
      this.#fullSyncAt = Date.now() + FULL_SYNC_MS;
    }
    const call = this.#client.subscribe(this.#following.request(CLIENT, fullSync), this.#metadata);
    const cancel = (): void => call.cancel();
    const silence = setTimeout(cancel, SILENCE_MS_MAX);
    this.#stopping.addEventListener('abort', cancel);
    try {
      for await (const response of call as AsyncIterable<SubscribeResponse>) {
        silence.refresh();
        this.#failures = 0;
        if (this.#take(response)) {
          this.#keep();
        }
        if (this.#following.wantsNewStream || this.#isFullSyncDue || this.#isDone) {
          break;
        }
      }
      return null;
    } catch (error) {
      if (isServiceError(error)) {
        return error;
      }
      throw error;
    } finally {
      clearTimeout(silence);
      this.#stopping.removeEventListener('abort', cancel);
      cancel();
    }
  }

  get #isFullSyncDue(): boolean {
    return this.#following.wantsFullSync && Date.now() >= this.#fullSyncAt;
  }

  /** Takes one message; whether a position moved. */
  #take(response: SubscribeResponse): boolean {
    const { signals, gap, snapshot, progress, stateChange, drain } = response;
    if (signals) {
      for (const one of this.#following.fresh(signals.signals)) {
        this.#takeSignal(one);
      }
    } else if (progress) {
      return this.#following.takeProgress(progress);
    } else if (gap) {
      if (this.#following.takeGap(gap)) {
        const through = `${Position.of(gap.from)} to ${Position.of(gap.to)}`;
        const reason = gap.reason.replace('GAP_REASON_', '');
        console.log(`gap of master ${gap.masterId}: ${through} will not come (${reason})`);
      }
    } else if (snapshot?.snapshot) {
      this.#takeSnapshot(snapshot.snapshot);
    } else if (stateChange) {
      this.#following.takeState(stateChange);
      const state = stateChange.state.replace('SUBSCRIPTION_STATE_', '');
      console.log(`state of master ${stateChange.masterId}: ${state} ${stateChange.reason}`);
    } else if (drain) {
      const { seconds, nanos } = drain.reconnectAfter ?? { seconds: '0', nanos: 0 };
      this.#reconnectAfterMs = Number(seconds) * 1_000 + nanos / 1e6;
      console.log(`drain: the server asks to come back in ${(this.#reconnectAfterMs / 1_000).toFixed(2)} s`);
      return false;
    }
    return true; // also for what is newer than this program
  }

  #takeSignal(one: SequencedSignal | Hole): void {
    if ('held' in one) {
      const what = `${one.held} is held, but ${one.previous} was sent`;
      console.log(`hole in the stream of master ${one.masterId}: ${what}`);
    } else {
      act(one);
      this.#signals += 1;
    }
  }

  #takeSnapshot(snapshot: Snapshot): void {
    if (!this.#following.takeSnapshot(snapshot)) {
      return;
    }
    // Here a bridge would compare the account with it, and bring it in line.
    const holds = `${snapshot.positions.length} positions, ${snapshot.orders.length} orders`;
    console.log(`snapshot of master ${snapshot.masterId} as of ${Position.of(snapshot.asOf)}: ${holds}`);
  }

  /** Puts the positions on disk, whole or not at all. */
  #keep(): void {
    const path = this.#options.positions;
    writeFileSync(`${path}.new`, JSON.stringify(this.#following.kept()));
    renameSync(`${path}.new`, path);
  }

  /** Tells the server how far we are. Positions are cumulative: what fails now is said again the next time. */
  async #acknowledge(): Promise<void> {
    const fresh = [...this.#following.held()]
      .filter(([masterId, held]) => !this.#acknowledged.get(masterId)?.equals(held))
      .slice(0, ACKNOWLEDGED_MAX);
    if (fresh.length === 0) {
      return;
    }
    const positions = fresh.map(([masterId, held]) => ({ masterId, position: held.toProto() }));
    await new Promise<void>((resolve) => {
      const deadline = Date.now() + CALL_MS_MAX;
      this.#client.acknowledge({ positions }, this.#metadata, { deadline }, (error) => {
        if (!error) {
          fresh.forEach(([masterId, held]) => this.#acknowledged.set(masterId, held));
        }
        resolve();
      });
    });
  }
}

function credentials(options: Options): grpc.ChannelCredentials {
  if (options.plaintext) {
    return grpc.credentials.createInsecure();
  }
  return grpc.credentials.createSsl(options.caFile === undefined ? null : readFileSync(options.caFile));
}

function isServiceError(error: unknown): error is grpc.ServiceError {
  return error instanceof Error && 'code' in error && 'details' in error && 'metadata' in error;
}

/** Where the positions file says that each master stands. Leaves the program when it is none. */
function kept(options: Options): Following {
  const path = options.positions;
  try {
    const known = existsSync(path) ? (JSON.parse(readFileSync(path, 'utf8')) as Kept) : {};
    return new Following(options.masters, known, options.start);
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    console.error(`${path} is no file of positions (${why}): remove it, or name another`);
    return process.exit(1);
  }
}

const options = parsed();
const following = kept(options);
const stopping = new AbortController();
for (const name of ['SIGINT', 'SIGTERM'] as const) {
  process.once(name, () => stopping.abort());
}
process.exitCode = await new Subscriber(options, following, stopping.signal).run();
