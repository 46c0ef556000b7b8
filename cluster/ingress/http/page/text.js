// A prompt and its answer, for models that do more than translate.

import { samplesIn } from "./code.js";
import { $, complain, fill, runs } from "./dom.js";
import { answerIn, cut } from "./streams.js";

export function text(panel, model) {
  const { chat, tasks } = model.capabilities;
  const others = tasks.filter((task) => !task.startsWith("translation_"));
  $("task-field").hidden = chat || !others.length;
  fill($("task"), [["", "none"], ...others.map((task) => [task, task.replaceAll("_", " ")])]);
  const path = chat ? "v1/chat/completions" : "v1/completions";
  const body = () => {
    const prompt = $("prompt").value;
    if (chat) return { model: model.id, messages: [{ role: "user", content: prompt }] };
    return { model: model.id, prompt, ...($("task").value ? { task: $("task").value } : {}) };
  };

  const { stop } = runs(panel, $("written"), async (signal) => {
    if (!$("prompt").value) return;
    const { finish_reason: reason } = await answerIn($("written"), path, body(), signal);
    complain(cut(reason));
  });
  samplesIn(panel, () => ({
    "The whole": { path, body: body() },
    "As it grows": { path, body: { ...body(), stream: true }, stream: true },
  }));
  return { left: stop };
}
