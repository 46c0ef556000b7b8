// The microphone's sound on its way to the server while somebody speaks, and what is heard of it so far.

import { address, key } from "./api.js";

const RATE = 24_000; // samples a second
const LONGEST_MS = 2000; // that the end of the connection is waited for
const HEARD = "conversation.item.input_audio_transcription.";

const encoded = (samples) => {
  const pcm = Int16Array.from(samples, (one) => 32_767 * Math.max(-1, Math.min(1, one)));
  return btoa(String.fromCharCode(...new Uint8Array(pcm.buffer)));
};

/** The key among the subprotocols, whose names cannot have every character. */
function secret() {
  const bytes = [...new TextEncoder().encode(key())];
  return bytes.length ? [`tandem-api-key.${bytes.map((one) => one.toString(16).padStart(2, "0")).join("")}`] : [];
}

/**
 * Listens to a microphone's stream until the function that it returns is called, whose promise is kept when the
 * server has been told. `language`: spoken; "": as it is heard. `hear(turns)` is given the text of each turn
 * whenever one has grown, `fail(message)`, at most once, why there will be no more.
 */
export function listen(microphone, language, hear, fail) {
  const turns = new Map();
  let [ended, failed] = [false, false];
  const failing = (message) => {
    if (ended || failed) return;
    failed = true;
    fail(message);
  };
  let context, socket;
  try {
    context = new AudioContext({ sampleRate: RATE });
    socket = new WebSocket(address("v1/realtime").replace(/^http/, "ws"), ["realtime", ...secret()]);
  } catch (error) {
    context?.close();
    failing(error.message);
    return async () => {};
  }
  const send = (event) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(event));

  socket.addEventListener("open", async () => {
    if (ended) return socket.close();
    const transcription = language ? { language } : {};
    send({ type: "session.update", session: { type: "transcription", audio: { input: { transcription } } } });
    try {
      await context.audioWorklet.addModule(address("ui/microphone.js"));
      if (ended) return;
      const samples = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
      samples.port.onmessage = ({ data }) => send({ type: "input_audio_buffer.append", audio: encoded(data) });
      context.createMediaStreamSource(microphone).connect(samples);
    } catch (error) {
      failing(error.message);
    }
  });
  socket.addEventListener("message", ({ data }) => {
    const event = JSON.parse(data);
    if (event.type === "error") failing(event.error.message);
    else if (event.type === `${HEARD}delta`) turns.set(event.item_id, (turns.get(event.item_id) ?? "") + event.delta);
    else if (event.type === `${HEARD}completed`) turns.set(event.item_id, event.transcript);
    else return;
    hear([...turns.values()]);
  });
  socket.addEventListener("close", () => failing("The connection was lost."));
  const closed = new Promise((kept) => socket.addEventListener("close", kept));
  return () => {
    ended = true;
    if (socket.readyState !== WebSocket.CONNECTING) socket.close();
    context.close();
    return Promise.race([closed, new Promise((kept) => setTimeout(kept, LONGEST_MS))]);
  };
}
