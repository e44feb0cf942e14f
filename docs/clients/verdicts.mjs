// A client of the acknowledged verdict channel, docs/protocol.md, for Node.js: npm install zeromq @msgpack/msgpack
//
//   node verdicts.mjs ENDPOINT [EPOCH SEQ]
//
// Prints one JSON object per event; each verdict once, in order. Goes on after EPOCH SEQ, the last verdict that was
// handled; without them, from now on. MASKLINE_LINE in the environment: no other line will do; else the first that is
// heard. Where the endpoint speaks CURVE: MASKLINE_LINE_KEY, MASKLINE_PUBLIC_KEY and MASKLINE_SECRET_KEY.
import { Dealer } from "zeromq";
import { decode, encode } from "@msgpack/msgpack";

const VERSION = 1, CREDIT = 256, SILENCE_INTERVALS = 3n, DRIFT_PPM = 500n, MS = 1_000_000n;
const FIELDS = { // what is read of each message: text, and numbers; a double holds no time in ns
  welcome: ["line", "epoch", "seq", "first", "interval_ms"], verdict: ["epoch", "seq"], refused: ["why"],
  clock: ["sent_ns", "received_ns", "boot_id"], heartbeat: ["epoch", "at_ns", "boot_id"],
}, NUMBERS = { seq: Number, first: Number, interval_ms: Number, sent_ns: BigInt, received_ns: BigInt, at_ns: BigInt };
const [endpoint, epoch = "", seq = "-1"] = process.argv.slice(2);
const { MASKLINE_LINE_KEY, MASKLINE_PUBLIC_KEY, MASKLINE_SECRET_KEY } = process.env;
const now = () => process.hrtime.bigint(), worn = (since) => ((now() - since) * DRIFT_PPM) / 1_000_000n; // monotonic
const min = (a, b) => (a < b ? a : b), max = (a, b) => (a > b ? a : b);
const asJson = (_, value) => (typeof value === "bigint" ? value.toString() : value);
const say = (event, more) => console.log(JSON.stringify({ event, ...more }, asJson));

let line = process.env.MASKLINE_LINE, received = { epoch, seq: Number(seq) }; // the last verdict; printed is handled
let welcomed = false, silent = false, interval = 250n * MS, nextHello = 0n, nextAck = 0n, acked = received.seq;
let alive = now(), lead = null; // when the gate was alive for sure; how far the line's clock leads ours
const overdue = () => now() - alive >= SILENCE_INTERVALS * interval;

const socket = new Dealer({
  immediate: true, linger: 0, maxMessageSize: 1 << 20, heartbeatInterval: 1000, heartbeatTimeout: 3000,
  sendTimeout: 0, ipv6: true, ...(MASKLINE_LINE_KEY && {
    curveServerKey: MASKLINE_LINE_KEY, curvePublicKey: MASKLINE_PUBLIC_KEY, curveSecretKey: MASKLINE_SECRET_KEY }),
});
let sent = Promise.resolve(); // one at a time
function send(type, fields) {
  const frame = encode({ v: VERSION, type, ...fields }, { useBigInt64: true });
  sent = sent.then(() => socket.send(frame)).catch(() => {}); // not connected: it is said again when its time comes
}

function parse(frame) { // throws at what is no message of this protocol
  const message = decode(frame, { useBigInt64: true });
  if (message.v !== VERSION || !Object.hasOwn(FIELDS, message.type)) throw new TypeError("no message for us");
  for (const name of FIELDS[message.type]) {
    if ((typeof message[name] === "string") === name in NUMBERS) throw new TypeError(`${name} is not of its type`);
    if (name in NUMBERS) message[name] = NUMBERS[name](BigInt(message[name])); // throws at what is not whole
  }
  return message;
}

function learn({ boot_id: boot, received_ns, sent_ns }) {
  const at = now(), least = received_ns - at - worn(sent_ns), most = received_ns - sent_ns + worn(sent_ns);
  const [low, high] = lead?.boot === boot ? [lead.least - worn(lead.at), lead.most + worn(lead.at)] : [least, most];
  const fits = max(least, low) <= min(most, high); // else a clock stood still, and what was known is void
  lead = fits ? { boot, least: max(least, low), most: min(most, high), at } : { boot, least, most, at };
}

function enter(welcome) {
  if (line && welcome.line !== line) return say("refused", { why: `this is the line ${welcome.line}, not ${line}` });
  line = welcome.line;
  const { epoch, seq, first } = welcome, before = received;
  if (before.seq < 0) received = { epoch, seq };
  else if (epoch !== before.epoch) received = { epoch, seq: 0 }; // another journal
  else if (seq < before.seq) received = { epoch, seq }; // an older copy of it
  if (before.seq >= 0 && received !== before) say("new_epoch", { epoch });
  if (first > received.seq + 1) say("gap", { first: received.seq + 1, last: first - 1 });
  received.seq = max(received.seq, first - 1);
  [welcomed, nextAck, acked, interval] = [true, 0n, received.seq, BigInt(welcome.interval_ms) * MS];
}

function handle(message) {
  const { type, epoch, seq } = message;
  if (type === "welcome") return enter(message);
  if (type === "refused" && !welcomed) return say("refused", { why: message.why });
  if (type === "clock" && welcomed) return learn(message);
  const next = type === "heartbeat" || (type === "verdict" && seq <= received.seq + 1);
  if (!next || epoch !== received.epoch) welcomed = false; // lost, or not what we were welcomed to: say hello again
  if (!welcomed) return;
  if (type === "verdict" && seq > received.seq) { received = { epoch, seq }; say("verdict", message); }
  if (type !== "heartbeat" || lead?.boot !== message.boot_id) return;
  alive = max(alive, min(now(), message.at_ns - lead.most - worn(lead.at))); // at the earliest, and not after now
  if (!overdue()) { silent = false; say("heartbeat", message); } // else it was long on its way
}

function tick() {
  if (!welcomed && now() >= nextHello) {
    nextHello = now() + interval;
    send("hello", { ...received, credit: CREDIT, name: "verdicts.mjs" });
  } else if (welcomed && (now() >= nextAck || received.seq - acked >= CREDIT / 2)) {
    [nextAck, acked] = [now() + interval, received.seq];
    send("ack", { ...received, credit: CREDIT, sent_ns: now() });
  }
  if (!silent && overdue()) { silent = true; say("silence", { for_ms: Number((now() - alive) / MS) }); }
}

socket.connect(endpoint);
setInterval(tick, 10);
for await (const [frame] of socket) {
  try { handle(parse(frame)); } catch { /* garbage, or another version: dropped, and no sign of life */ }
  tick();
}
