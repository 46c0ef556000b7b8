// The microphone's sound on its way to the server while somebody speaks, and what is heard of it so far.

import { address, key } from "./api.js";

const RATE = 24_000; // samples a second
const HEARD = "conversation.item.input_audio_transcription.";

const encoded = (samples) => {
  const pcm = Int16Array.from(samples, (one) => 32_767 * Math.max(-1, Math.min(1, one)));
  return btoa(String.fromCharCode(...new Uint8Array(pcm.buffer)));
};

/**
 * Listens to a microphone's stream until the function that it returns is called. `language`: spoken; "": as it
 * is heard. `hear(turns)` is given the text of each turn whenever one has grown, `fail(message)` why there will
 * be no more.
 */
export function listen(microphone, language, hear, fail) {
  const turns = new Map();
  const secret = key() ? [`openai-insecure-api-key.${key()}`] : [];
  const socket = new WebSocket(address("v1/realtime").replace(/^http/, "ws"), ["realtime", ...secret]);
  const context = new AudioContext({ sampleRate: RATE });
  const send = (event) => socket.readyState === WebSocket.OPEN && socket.send(JSON.stringify(event));
  let ended = false;

  socket.addEventListener("open", async () => {
    const transcription = language ? { language } : {};
    send({ type: "session.update", session: { type: "transcription", audio: { input: { transcription } } } });
    try {
      await context.audioWorklet.addModule(address("ui/microphone.js"));
      const samples = new AudioWorkletNode(context, "microphone", { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" });
      samples.port.onmessage = ({ data }) => send({ type: "input_audio_buffer.append", audio: encoded(data) });
      context.createMediaStreamSource(microphone).connect(samples);
    } catch (error) {
      fail(error.message);
    }
  });
  socket.addEventListener("message", ({ data }) => {
    const event = JSON.parse(data);
    if (event.type === "error") fail(event.error.message);
    else if (event.type === `${HEARD}delta`) turns.set(event.item_id, (turns.get(event.item_id) ?? "") + event.delta);
    else if (event.type === `${HEARD}completed`) turns.set(event.item_id, event.transcript);
    else return;
    hear([...turns.values()]);
  });
  socket.addEventListener("close", () => ended || fail("The connection was lost."));
  return () => {
    ended = true;
    socket.close();
    context.close();
  };
}
