// Recordings, of a file or the microphone, as text with times; of the microphone's, text already while it records.

import { events } from "./api.js";
import { samplesIn } from "./code.js";
import { $, fill, make, runs, save } from "./dom.js";
import { listen } from "./live.js";

const KINDS = ["audio/webm", "audio/mp4", "audio/ogg"]; // what browsers record

export const clock = (seconds, point = ".") => {
  const ms = Math.round(seconds * 1000);
  const two = (value) => String(Math.floor(value)).padStart(2, "0");
  return `${two(ms / 3_600_000)}:${two((ms / 60_000) % 60)}:${two((ms / 1000) % 60)}${point}${String(ms % 1000).padStart(3, "0")}`;
};

export const subtitles = (segments) =>
  segments.map(({ start, end, text }, at) => `${at + 1}\n${clock(start, ",")} --> ${clock(end, ",")}\n${text.trim()}\n`).join("\n");

export function transcribe(panel, { languages, translation }) {
  const [file, record, state, spoken, player, heard] = ["recording", "record", "recording-state", "spoken", "player", "heard"].map($);
  const english = $("into-english");
  const send = panel.querySelector(".send");
  const name = new Intl.DisplayNames("en", { type: "language", fallback: "code" });
  const named = (code) => { try { return name.of(code); } catch { return code; } };
  let recording = null; // the file to transcribe
  let segments = [];
  english.hidden = !translation;
  spoken.parentElement.hidden = languages.length < 2;
  fill(spoken, [["", "as it is heard"], ...languages.map((code) => [code, named(code)]).sort((a, b) => a[1].localeCompare(b[1]))]);

  const path = () => `v1/audio/${english.firstElementChild.checked ? "translations" : "transcriptions"}`;
  const fields = (stream) => ({ response_format: "verbose_json", ...(stream ? { stream } : {}), ...(spoken.value ? { language: spoken.value } : {}) });

  function take(given) {
    recording = given;
    send.disabled = !given;
    player.hidden = !given;
    URL.revokeObjectURL(player.src);
    if (given) player.src = URL.createObjectURL(given);
    update();
  }

  const { run, stop } = runs(panel, heard, async (signal) => {
    segments = [];
    heard.replaceChildren();
    $("subtitles").disabled = true;
    const form = new FormData();
    form.append("file", recording, recording.name);
    for (const [field, value] of Object.entries(fields(true))) form.append(field, value);
    for await (const event of events(path(), { body: form, signal })) {
      if (event.type !== "transcript.text.segment") continue;
      segments.push(event);
      const from = make("button", { type: "button", className: "quiet", textContent: clock(event.start).replace(/^00:/, "").slice(0, -2), ariaLabel: `Play from ${clock(event.start)}` });
      from.addEventListener("click", () => ((player.currentTime = event.start), player.play()));
      heard.append(make("p", {}, from, make("span", { textContent: event.text.trim() })));
    }
    if (!segments.length) heard.append("Nobody is heard to speak.");
    $("subtitles").disabled = !segments.length;
  });

  file.addEventListener("change", () => take(file.files[0] ?? null));
  $("subtitles").addEventListener("click", () => save(`${recording.name.replace(/\.\w+$/, "")}.srt`, new Blob([subtitles(segments)], { type: "text/plain" })));

  let recorder = null;
  record.hidden = !globalThis.MediaRecorder;
  if (!navigator.mediaDevices) {
    record.disabled = true;
    state.textContent = "A browser records on https:// or localhost only.";
  }
  record.addEventListener("click", async () => {
    if (recorder) return recorder.stop();
    let microphone;
    try {
      microphone = await navigator.mediaDevices.getUserMedia({ audio: true });
    } catch {
      state.textContent = "The microphone may not be used.";
      return;
    }
    const type = KINDS.find((kind) => MediaRecorder.isTypeSupported(kind));
    const pieces = [];
    let silence = async () => {};
    recorder = new MediaRecorder(microphone, { mimeType: type });
    recorder.addEventListener("dataavailable", ({ data }) => pieces.push(data));
    recorder.addEventListener("stop", async () => {
      const silent = silence();
      for (const track of microphone.getTracks()) track.stop();
      recorder = null;
      record.ariaPressed = "false";
      record.textContent = "● Record";
      state.textContent = "";
      const whole = new File(pieces, `recording.${type.split("/")[1]}`, { type });
      take(whole);
      await silent; // a caller may have one call at a time
      if (recording === whole && !recorder) run();
    });
    stop();
    heard.replaceChildren();
    $("subtitles").disabled = true;
    file.value = "";
    take(null);
    recorder.start();
    record.ariaPressed = "true";
    record.textContent = "■ Stop recording";
    state.textContent = "Recording …";
    // What is translated is heard at the end alone: live speech is written down as it is spoken.
    if (english.firstElementChild.checked) return;
    silence = listen(microphone, spoken.value,
      (turns) => heard.replaceChildren(...turns.map((one) => make("p", { className: "live", textContent: one }))),
      (why) => (state.textContent = `Recording … What is said is not shown yet: ${why}`));
  });

  const update = samplesIn(panel, () => {
    const file = recording?.name ?? "speech.mp3";
    return {
      "The whole": { path: path(), form: fields(false), file, after: 'print(answer.json()["text"])' },
      "As it grows": { path: path(), form: fields(true), file, stream: true },
    };
  });
  return { left: () => (stop(), recorder?.stop()) };
}
