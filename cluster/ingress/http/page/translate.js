// Two panes: texts as they are translated, sentence by sentence; alternatives; documents.

import { ApiError, call, events, json } from "./api.js";
import { samplesIn } from "./code.js";
import { $, fill, runs, save } from "./dom.js";
import { cut } from "./streams.js";

const TOGETHER = 32; // sentences of one call
const PAUSE_MS = 700; // of somebody who types, before the text is translated
const ALTERNATIVES = 3;
const AUTO = "auto";

/** A text's parts in order: [what stands before a sentence, the sentence, what stands after it]. */
export function sentences(text, language) {
  const segmenter = new Intl.Segmenter(language === AUTO ? undefined : language, { granularity: "sentence" });
  return [...segmenter.segment(text)].map(({ segment }) => {
    const [, before, core, after] = /^(\s*)(.*?)(\s*)$/su.exec(segment);
    return /\p{L}/u.test(core) ? [before, core, after] : [segment, "", ""];
  });
}

export async function translate(panel) {
  const [languages, settings] = await Promise.all([json("languages"), json("frontend/settings")]);
  const names = new Map(languages.map(({ code, name }) => [code, name]));
  const sources = languages.filter(({ targets }) => targets.length);
  const [source, target, original, translation] = ["source", "target", "original", "translation"].map($);
  const detected = $("detected");

  const targetsOf = (code) =>
    code === AUTO ? [...new Set(sources.flatMap(({ targets }) => targets))] : names.has(code) ? languages.find((one) => one.code === code).targets : [];
  const listTargets = () =>
    fill(target, targetsOf(source.value).map((code) => [code, names.get(code)]), target.value || settings.language.target.code);
  const only = sources.length === 1 ? sources[0].code : AUTO;
  fill(source, [...(sources.length > 1 ? [[AUTO, "Detect the language"]] : []), ...sources.map(({ code, name }) => [code, name])], only);
  listTargets();
  const reversible = () => source.value !== AUTO && targetsOf(target.value).includes(source.value);
  const changed = () => {
    listTargets();
    $("swap").hidden = !sources.some(({ code }) => languages.some((one) => one.code !== code && one.targets.includes(code)));
    $("swap").disabled = !reversible();
  };
  changed();

  /** The source's code, found in the text where nobody says it. */
  async function sourceOf(text, signal) {
    detected.textContent = "";
    if (source.value !== AUTO) return source.value;
    const found = await json("detect", { body: { q: text }, signal });
    const fits = ({ language }) => sources.some(({ code, targets }) => code === language && targets.includes(target.value));
    const best = found.find(fits)?.language ?? sources.find(({ targets }) => targets.includes(target.value)).code;
    detected.textContent = `Detected: ${names.get(best)}`;
    return best;
  }

  /** The sentences, each where it belongs, while they grow. Returns why one was cut, if one was. */
  async function streamed(text, from, to, signal) {
    const parts = sentences(text, from);
    const made = parts.map(() => "");
    const places = parts.flatMap(([, core], at) => (core ? [at] : []));
    let why = "";
    const show = () => (translation.textContent = parts.map(([before, , after], at) => before + made[at] + after).join(""));
    show();
    for (let at = 0; at < places.length; at += TOGETHER) {
      const now = places.slice(at, at + TOGETHER);
      const body = { prompt: now.map((one) => parts[one][1]), source_language: from, target_language: to, stream: true };
      for await (const { choices } of events("v1/completions", { body, signal })) {
        for (const { index, text: grown, finish_reason: reason } of choices) {
          made[now[index]] += grown;
          why ||= cut(reason);
        }
        show();
      }
    }
    return why;
  }

  const asked = (count) => ({ q: original.value, source: source.value, target: target.value, ...(count ? { alternatives: count } : {}) });

  const { run, stop } = runs(panel, translation, async (signal) => {
    const text = original.value;
    $("others").hidden = true;
    translation.textContent = detected.textContent = "";
    if (!text.trim()) return;
    try {
      const why = await streamed(text, await sourceOf(text, signal), target.value, signal);
      if (why) throw new ApiError(200, why);
    } catch (error) {
      // /translate, which cuts what is too long for the model, has no stream.
      if (error.status !== 400) throw error;
      translation.textContent = (await json("translate", { body: asked(0), signal })).translatedText;
    }
    if (!$("alternatives").checked) return;
    const { alternatives } = await json("translate", { body: asked(ALTERNATIVES), signal });
    const others = alternatives.filter((one) => one !== translation.textContent);
    $("others").lastElementChild.replaceChildren(...others.map((one) => Object.assign(document.createElement("li"), { textContent: one })));
    $("others").hidden = !others.length;
  });

  let typed;
  const soon = () => {
    clearTimeout(typed);
    typed = setTimeout(run, PAUSE_MS);
  };
  original.addEventListener("input", soon);
  for (const one of [source, target, $("alternatives")]) one.addEventListener("change", () => (changed(), soon()));
  panel.querySelector("form").addEventListener("submit", () => clearTimeout(typed), true);
  $("swap").addEventListener("click", () => {
    const [from, to] = [source.value, target.value];
    original.value = translation.textContent || original.value;
    source.value = to;
    changed();
    target.value = from;
    changed();
    run();
  });

  const [file, state] = [$("document"), $("document-state")];
  file.accept = settings.supportedFilesFormat.join(",");
  file.addEventListener("change", async () => {
    if (!file.files.length) return;
    const form = new FormData();
    form.append("file", file.files[0]);
    form.append("source", source.value);
    form.append("target", target.value);
    state.textContent = `Translating ${file.files[0].name} …`;
    try {
      const { translatedFileUrl } = await json("translate_file", { body: form });
      const name = translatedFileUrl.slice(translatedFileUrl.indexOf("/download_file/") + 1);
      const data = await (await call(name)).blob();
      const shown = decodeURIComponent(name.split("/")[1].replace(/^[^.]*\./, ""));
      save(shown, data);
      state.textContent = `${shown} is saved.`;
    } catch (error) {
      state.textContent = error.message;
    }
    file.value = "";
  });

  const update = samplesIn(panel, () => {
    const [from, to] = [source.value, target.value];
    const body = { prompt: original.value, source_language: from === AUTO ? sources[0].code : from, target_language: to, stream: true };
    return {
      "A text": { path: "translate", body: asked($("alternatives").checked ? ALTERNATIVES : 0), after: 'print(answer.json()["translatedText"])' },
      "A sentence, as it grows": { path: "v1/completions", body, stream: true },
      "A document": { path: "translate_file", form: { source: from, target: to }, file: "letter.docx", after: 'print(answer.json()["translatedFileUrl"])' },
    };
  });
  $("swap").addEventListener("click", update);
  return { left: stop };
}
