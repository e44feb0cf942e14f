// A client of the acknowledged verdict channel, docs/protocol.md, for Node.js: npm install zeromq @msgpack/msgpack
//
//   node verdicts.mjs ENDPOINT [EPOCH SEQ]
//
// Prints one JSON object per event; each verdict once, in order. Goes on after EPOCH SEQ, the last verdict that was
// handled; without them, from now on. Where the endpoint speaks CURVE: MASKLINE_LINE_KEY, MASKLINE_PUBLIC_KEY and
// MASKLINE_SECRET_KEY in the environment. Times are BigInt: nanoseconds do not fit a double.
import { Dealer } from "zeromq";
import { decode, encode } from "@msgpack/msgpack";

const VERSION = 1, CREDIT = 256, SILENCE_INTERVALS = 3n, DRIFT_PPM = 500n;
const [endpoint, epoch = "", seq = "-1"] = process.argv.slice(2);
const { MASKLINE_LINE_KEY, MASKLINE_PUBLIC_KEY, MASKLINE_SECRET_KEY } = process.env;
const now = () => process.hrtime.bigint(); // monotonic, ns
const asJson = (_, value) => (typeof value === "bigint" ? value.toString() : value);
const say = (event, more) => process.stdout.write(JSON.stringify({ event, ...more }, asJson) + "\n");

let received = { epoch, seq: Number(seq) }; // the last verdict; printed is handled
let welcomed = false, silent = false, interval = 250n * 1_000_000n;
let nextHello = 0n, nextAck = 0n, acked = received.seq;
let alive = now(); // when the gate was alive for sure, on our clock
let lead = null; // at most so far is the line's clock ahead of ours: { boot, ns, at }

const socket = new Dealer({
  immediate: true, linger: 0, maxMessageSize: 1 << 20, heartbeatInterval: 1000, heartbeatTimeout: 3000,
  sendTimeout: 0, ipv6: true,
  ...(MASKLINE_LINE_KEY && {
    curveServerKey: MASKLINE_LINE_KEY, curvePublicKey: MASKLINE_PUBLIC_KEY, curveSecretKey: MASKLINE_SECRET_KEY,
  }),
});

let sent = Promise.resolve(); // one at a time
function send(type, fields) {
  const frame = encode({ v: VERSION, type, ...fields }, { useBigInt64: true });
  sent = sent.then(() => socket.send(frame)).catch(() => {}); // not connected: it is said again when its time comes
}

function handle(message) {
  const { type } = message;
  if (type === "welcome") {
    if (received.seq < 0) {
      received = { epoch: message.epoch, seq: message.seq };
    } else if (message.epoch !== received.epoch || message.seq < received.seq) { // a new journal, or it lost its end
      say("new_epoch", { epoch: message.epoch });
      received = { epoch: message.epoch, seq: message.epoch === received.epoch ? message.seq : 0 };
    }
    if (message.first > received.seq + 1) {
      say("gap", { first: received.seq + 1, last: message.first - 1 });
      received.seq = message.first - 1;
    }
    [welcomed, nextAck, acked] = [true, 0n, received.seq];
    interval = BigInt(message.interval_ms) * 1_000_000n;
  } else if (type === "refused") {
    if (!welcomed) say("refused", { why: message.why });
    welcomed = false; // say hello again
  } else if (!welcomed) {
    return;
  } else if (type !== "clock" && message.epoch !== received.epoch) {
    welcomed = false; // not what we were welcomed to: say hello again
  } else if (type === "verdict" && message.seq > received.seq) {
    if (message.seq > received.seq + 1) return void (welcomed = false); // one was lost: say hello again
    say("verdict", message);
    received.seq = message.seq;
  } else if (type === "clock") {
    const ns = BigInt(message.received_ns) - BigInt(message.sent_ns);
    const worn = lead && lead.ns + ((now() - lead.at) * DRIFT_PPM) / 1_000_000n;
    const at = BigInt(message.sent_ns);
    if (!lead || lead.boot !== message.boot_id || ns < worn) lead = { boot: message.boot_id, ns, at };
  } else if (type === "heartbeat" && lead?.boot === message.boot_id) {
    const made = BigInt(message.at_ns) - lead.ns - ((now() - lead.at) * DRIFT_PPM) / 1_000_000n; // at the earliest
    if (made > alive) alive = made;
    if (now() - alive >= SILENCE_INTERVALS * interval) return; // it was long on its way
    silent = false;
    say("heartbeat", message);
  }
}

function tick() {
  if (!welcomed && now() >= nextHello) {
    nextHello = now() + interval;
    send("hello", { ...received, credit: CREDIT, name: "verdicts.mjs" });
  } else if (welcomed && (now() >= nextAck || received.seq - acked >= CREDIT / 2)) {
    [nextAck, acked] = [now() + interval, received.seq];
    send("ack", { ...received, credit: CREDIT, sent_ns: now() });
  }
  if (!silent && now() - alive >= SILENCE_INTERVALS * interval) {
    silent = true;
    say("silence", { for_ms: Number((now() - alive) / 1_000_000n) });
  }
}

socket.connect(endpoint);
setInterval(tick, 10);
for await (const [frame] of socket) {
  const message = decode(frame, { useBigInt64: true });
  if (message.v !== VERSION) throw new Error(`protocol version ${message.v}; this client speaks ${VERSION}`);
  handle(message);
  tick();
}
