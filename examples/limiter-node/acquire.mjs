// Asks a RateLimitPolicy whether a call may be made, from Node: one FCALL, no library but a Redis client.
// Usage: node acquire.mjs REDIS_URL NAMESPACE POLICY SUBJECT
import { createClient } from 'redis';

const [url, namespace, policy, subject] = process.argv.slice(2);
// A call whose answer was lost may have been charged: never repeat it.
const client = createClient({ url, disableOfflineQueue: true, socket: { reconnectStrategy: false } });
client.on('error', () => {}); // The failed command says it too.
await client.connect();

const state = `shipkeeper:{${namespace}}:state:${policy}:${subject}`;
const config = `shipkeeper:{${namespace}}:config:${policy}`;
try {
  const reply = await client.sendCommand(['FCALL', 'shipkeeper_acquire', '1', state, config]);
  const { allowed, rule, reason, retryAt, now } = JSON.parse(reply);
  console.log(allowed ? 'allowed' : `denied by ${rule}: ${reason}, retry after ${(retryAt - now) / 1000}s`);
} catch (error) {
  console.error(`no verdict, so the call is not made: ${error.message}`);
  process.exitCode = 1;
} finally {
  client.destroy();
}
