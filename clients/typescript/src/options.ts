/** The command line of the subscriber. */

import { parseArgs } from 'node:util';

import type { Start } from './following.js';

export interface Options {
  fanout: string;
  license: string;
  masters: string[];
  start: Start;
  /** Leave after so many signals; 0 is never. */
  count: number;
  /** The file of positions; it survives restarts. */
  positions: string;
  plaintext: boolean;
  /** Certificates to trust, PEM; those of Node.js when undefined. */
  caFile: string | undefined;
}

const USAGE = `usage: subscriber --fanout HOST:PORT --master ID [--master ID ...] [--license TOKEN]
         [--start beginning|now|snapshot] [--count N] [--positions FILE] [--plaintext | --ca-file FILE]
The license may also be in the environment as ECP_LICENSE.`;

/** What was asked for; ends the process with exit code 2 when it cannot be understood. */
export function parsed(): Options {
  try {
    return read();
  } catch (error) {
    console.error(`subscriber: ${(error as Error).message}\n${USAGE}`);
    process.exit(2);
  }
}

function read(): Options {
  const { values } = parseArgs({
    options: {
      fanout: { type: 'string' },
      license: { type: 'string', default: process.env['ECP_LICENSE'] ?? '' },
      master: { type: 'string', multiple: true, default: [] },
      start: { type: 'string', default: 'now' },
      count: { type: 'string', default: '0' },
      positions: { type: 'string', default: 'positions.json' },
      plaintext: { type: 'boolean', default: false },
      'ca-file': { type: 'string' },
    },
  });
  const { fanout, license, master, start, count, positions, plaintext } = values;
  if (!fanout || !license || master.length === 0) {
    throw new Error('--fanout, --master and a license are required');
  }
  if (!master.every((one) => /^[1-9]\d*$/.test(one)) || !/^\d+$/.test(count)) {
    throw new Error('--master and --count are whole numbers');
  }
  if (start !== 'beginning' && start !== 'now' && start !== 'snapshot') {
    throw new Error(`--start is beginning, now or snapshot, not ${start}`);
  }
  return {
    fanout,
    license: license.trim(),
    masters: master,
    start,
    count: Number(count),
    positions,
    plaintext,
    caFile: values['ca-file'],
  };
}
