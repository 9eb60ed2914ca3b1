/** The contracts, read from protos/ when the program starts, with the types that `npm run generate` makes of them. */

import { fileURLToPath } from 'node:url';

import * as grpc from '@grpc/grpc-js';
import * as loader from '@grpc/proto-loader';

import type { PositionUnavailable__Output } from './gen/execution/fanout/v1/PositionUnavailable.js';
import type { ProtoGrpcType } from './gen/fanout_service.js';
import type { Status__Output } from './gen/google/rpc/Status.js';

export type { SequencedSignal__Output as SequencedSignal } from './gen/execution/common/v1/SequencedSignal.js';
export type { Snapshot__Output as Snapshot } from './gen/execution/common/v1/Snapshot.js';
export type { StreamPosition__Output as StreamPosition } from './gen/execution/common/v1/StreamPosition.js';
export type { FanoutServiceClient } from './gen/execution/fanout/v1/FanoutService.js';
export type { Gap__Output as Gap } from './gen/execution/fanout/v1/Gap.js';
export type { MasterStart } from './gen/execution/fanout/v1/MasterStart.js';
export type { PositionUnavailable__Output as PositionUnavailable } from './gen/execution/fanout/v1/PositionUnavailable.js';
export type { Progress__Output as Progress } from './gen/execution/fanout/v1/Progress.js';
export type { StateChange__Output as StateChange } from './gen/execution/fanout/v1/StateChange.js';
export type { SubscribeRequest } from './gen/execution/fanout/v1/SubscribeRequest.js';
export type { SubscribeResponse__Output as SubscribeResponse } from './gen/execution/fanout/v1/SubscribeResponse.js';

const folders = ['../../../protos', '../protos'].map((path) => fileURLToPath(new URL(path, import.meta.url)));

// 64-bit integers stay decimal strings: ids go up to 2^63, beyond what a number holds.
const definition = loader.loadSync(['execution/fanout/v1/fanout_service.proto', 'google/rpc/status.proto'], {
  includeDirs: folders,
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
});

const { fanout } = (grpc.loadPackageDefinition(definition) as unknown as ProtoGrpcType).execution;

/** The client of execution.fanout.v1.FanoutService. */
export const FanoutService = fanout.v1.FanoutService;

/** What the server has instead of positions that it cannot resume from; empty when the error does not say. */
export function positionsUnavailable(error: grpc.ServiceError): PositionUnavailable__Output[] {
  const [details] = error.metadata.get('grpc-status-details-bin');
  if (!Buffer.isBuffer(details)) {
    return [];
  }
  return parse<Status__Output>('google.rpc.Status', details)
    .details.filter((one) => one.type_url.endsWith('/execution.fanout.v1.PositionUnavailable'))
    .map((one) => parse('execution.fanout.v1.PositionUnavailable', one.value));
}

function parse<T>(name: string, data: Buffer): T {
  return (definition[name] as loader.MessageTypeDefinition<object, T & object>).deserialize(data);
}
