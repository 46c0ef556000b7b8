// Asks the server what its model can do, and shows that.

import { json, keep, key, whenRefused } from "./api.js";
import { cluster } from "./cluster.js";
import { $, complain, copy } from "./dom.js";
import { pictures } from "./pictures.js";
import { tabs } from "./tabs.js";
import { text } from "./text.js";
import { transcribe } from "./transcribe.js";
import { translate } from "./translate.js";

const HEALTH_MS = 10_000;

/** Asks for a key. Says whether there is one. */
function askForKey() {
  const dialog = $("key-dialog");
  $("change-key").hidden = false;
  $("key-title").textContent = key() ? "This key is not known here" : "A key is needed";
  $("key").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) =>
    dialog.addEventListener("close", () => {
      const given = dialog.returnValue === "given" && $("key").value.trim();
      if (given) keep(given);
      resolve(Boolean(given));
    }, { once: true }));
}

async function health() {
  const shown = $("health");
  try {
    const answer = await fetch("health");
    shown.textContent = answer.ok ? "ready" : (await answer.json()).reason;
    shown.classList.toggle("bad", !answer.ok);
  } catch {
    shown.textContent = "not reachable";
    shown.classList.add("bad");
  }
  setTimeout(health, HEALTH_MS);
}

async function start() {
  const [model] = (await json("v1/models")).data;
  const { capabilities } = model;
  $("model").textContent = model.id;
  document.title = `${model.id} · Tandem`;
  const found = {};
  if (capabilities.translation) found.translate = await translate($("translate"));
  if (capabilities.transcription) found.transcribe = transcribe($("transcribe"), capabilities.transcription);
  if (capabilities.images) found.pictures = pictures($("pictures"), model);
  if (capabilities.completion) found.text = text($("text"), model);
  found.cluster = cluster($("cluster"));
  tabs(found);
}

async function begin() {
  complain();
  try {
    await start();
    $("change-key").hidden = !key();
  } catch (error) {
    complain(error.message);
  }
}

whenRefused(askForKey);
$("key-dialog").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  $("key-dialog").close("given");
});
$("key-cancel").addEventListener("click", () => $("key-dialog").close());
$("change-key").addEventListener("click", async () => {
  if (await askForKey()) location.reload();
});
for (const button of document.querySelectorAll(".copy")) {
  button.addEventListener("click", () => copy($(button.dataset.of).innerText));
}
health();
begin();
