// A picture, and what the model reads in it.

import { CONTENT, samplesIn } from "./code.js";
import { $, complain, make, runs } from "./dom.js";
import { answerIn, cut } from "./streams.js";

const uri = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(new Error("The picture cannot be read.")));
    reader.readAsDataURL(file);
  });

export function pictures(panel, model) {
  const [file, preview, question, seen] = ["picture", "preview", "question", "seen"].map($);
  const send = panel.querySelector(".send");
  let picture = null;

  const body = (url) => {
    const content = [{ type: "image_url", image_url: { url } }];
    if (question.value) content.push({ type: "text", text: question.value });
    return { model: model.id, messages: [{ role: "user", content }] };
  };

  function take(given) {
    picture = given;
    send.disabled = preview.hidden = !given;
    URL.revokeObjectURL(preview.src);
    if (given) {
      preview.src = URL.createObjectURL(given);
      preview.alt = `The picture ${given.name}`;
    }
    update();
  }

  file.addEventListener("change", () => take(file.files[0] ?? null));
  panel.addEventListener("dragover", (event) => event.preventDefault());
  panel.addEventListener("drop", (event) => {
    event.preventDefault();
    const [given] = event.dataTransfer.files;
    if (given?.type.startsWith("image/")) take(given);
  });
  addEventListener("paste", ({ clipboardData }) => {
    const given = [...clipboardData.files].find(({ type }) => type.startsWith("image/"));
    if (given && !panel.hidden) take(given);
  });

  const { stop } = runs(panel, seen, async (signal) => {
    if (!picture) return;
    const last = await answerIn(seen, "v1/chat/completions", body(await uri(picture)), signal);
    if (last.parsed) seen.append(make("pre", { textContent: JSON.stringify(last.parsed, null, 2), tabIndex: 0 }));
    complain(cut(last.finish_reason));
  });
  const update = samplesIn(panel, () => {
    const [name, type] = [picture?.name ?? "picture.png", picture?.type ?? "image/png"];
    return { "A picture": { path: "v1/chat/completions", body: body(`data:${type};base64,${CONTENT}`), file: name, after: 'print(answer.json()["choices"][0]["message"]["content"])' } };
  });
  return { left: stop };
}
