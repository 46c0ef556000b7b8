// Two panes: texts as their translations grow; alternatives; documents.

import { call, events, json } from "./api.js";
import { samplesIn } from "./code.js";
import { $, complain, fill, make, runs, save } from "./dom.js";
import { cut } from "./streams.js";

const PAUSE_MS = 700; // of somebody who types, before the text is translated
const ALTERNATIVES = 3;
const AUTO = "auto";

export async function translate(panel) {
  const [languages, settings] = await Promise.all([json("languages"), json("frontend/settings")]);
  const names = new Map(languages.map(({ code, name }) => [code, name]));
  const sources = languages.filter(({ targets }) => targets.length);
  const [source, target, original, translation] = ["source", "target", "original", "translation"].map($);
  const detected = $("detected");

  const targetsOf = (code) =>
    code === AUTO ? [...new Set(sources.flatMap(({ targets }) => targets))] : (languages.find((one) => one.code === code)?.targets ?? []);
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

  const asked = (count) => ({ q: original.value, source: source.value, target: target.value, ...(count ? { alternatives: count } : {}) });

  const { run, stop } = runs(panel, translation, async (signal) => {
    $("others").hidden = true;
    translation.textContent = detected.textContent = "";
    if (!original.value.trim()) return;
    let whole;
    for await (const event of events("translate", { body: { ...asked(0), stream: true }, signal })) {
      if (event.detectedLanguage) {
        const { language } = event.detectedLanguage;
        detected.textContent = `Detected: ${names.get(language) ?? language}`;
      }
      if ("delta" in event) translation.append(event.delta);
      else whole = event;
    }
    complain(whole.truncated ? cut("length") : "");
    if (!$("alternatives").checked) return;
    const { alternatives } = await json("translate", { body: asked(ALTERNATIVES), signal });
    $("others").lastElementChild.replaceChildren(...alternatives.map((textContent) => make("li", { textContent })));
    $("others").hidden = !alternatives.length;
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
    return {
      "A text": { path: "translate", body: asked($("alternatives").checked ? ALTERNATIVES : 0), after: 'print(answer.json()["translatedText"])' },
      "As it grows": { path: "translate", body: { ...asked(0), stream: true }, stream: true },
      "A document": { path: "translate_file", form: { source: from, target: to }, file: "letter.docx", after: 'print(answer.json()["translatedFileUrl"])' },
    };
  });
  $("swap").addEventListener("click", update);
  return { left: stop };
}
