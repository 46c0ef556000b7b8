// What a panel does, as curl and Python. A key is named, never shown.

import { address, key } from "./api.js";
import { copy, make } from "./dom.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

function python(value, indent = "") {
  const inner = `${indent}    `;
  if (value === null || value === undefined) return "None";
  if (value === true || value === false) return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map((one) => python(one, indent)).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const lines = Object.entries(value).map(([name, one]) => `${inner}${JSON.stringify(name)}: ${python(one, inner)},\n`);
  return lines.length ? `{\n${lines.join("")}${indent}}` : "{}";
}

/** A piece of code under its name, to copy. */
export function sample(name, text) {
  const button = make("button", { type: "button", className: "quiet", textContent: "Copy", ariaLabel: `Copy ${name}` });
  button.addEventListener("click", () => copy(text));
  return make("div", {}, make("div", { className: "sample" }, make("h2", { textContent: name }), button),
    make("pre", { tabIndex: 0, role: "region", ariaLabel: name }, make("code", { textContent: text })));
}

/** Stands in a body for a file's content in base64. */
export const CONTENT = "…";

/**
 * A call: `form` has fields and `file`, the name of a file; else `body` is JSON, in which a text may end with
 * the content of `file`, and without it is a GET.
 */
export function samples({ path, body, form, file, field = "file", stream = false, after = "" }) {
  const curl = [`curl ${stream ? "-N " : ""}${address(path)}`];
  const arguments_ = [JSON.stringify(address(path))];
  const imports = ["import requests"];
  if (key()) {
    curl.push(`-H "Authorization: Bearer $TANDEM_API_KEY"`);
    imports.unshift("import os");
    arguments_.push('headers={"Authorization": "Bearer " + os.environ["TANDEM_API_KEY"]}');
  }
  if (form) {
    curl.push(`-F ${quoted(`${field}=@${file}`)}`, ...Object.entries(form).map(([name, value]) => `-F ${quoted(`${name}=${value}`)}`));
    arguments_.push(`files={${JSON.stringify(field)}: open(${JSON.stringify(file)}, "rb")}`, `data=${python(form, "    ")}`);
  } else if (body && file) {
    imports.unshift("import base64");
    const [json, name] = [JSON.stringify(body).replace(/[\\$`]/g, "\\$&"), quoted(file)];
    curl.push("-H 'Content-Type: application/json'", `-d @- <<END\n${json.replace(`${CONTENT}"`, () => `$(base64 < ${name} | tr -d '\\n')"`)}\nEND`);
    const content = `base64.b64encode(open(${JSON.stringify(file)}, "rb").read()).decode()`;
    arguments_.push(`json=${python(body, "    ").replace(`${CONTENT}"`, () => `" + ${content}`)}`);
  } else if (body) {
    curl.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
    arguments_.push(`json=${python(body, "    ")}`);
  }
  if (stream) arguments_.push("stream=True");
  const verb = body || form ? "post" : "get";
  const called = `answer = requests.${verb}(\n${arguments_.map((one) => `    ${one},\n`).join("")})\nanswer.raise_for_status()`;
  const read = stream ? "for line in answer.iter_lines():\n    print(line.decode())" : after || "print(answer.json())";
  return { curl: curl.join(" \\\n  "), Python: `${imports.join("\n")}\n\n${called}\n${read}` };
}

/** Shows in a panel's details the calls that `current()` names, whenever they are open and the panel has changed. */
export function samplesIn(panel, current) {
  const details = make("details", {}, make("summary", { textContent: "This as curl and Python" }));
  panel.append(details);
  const update = () => {
    if (!details.open) return;
    const shown = Object.entries(current()).flatMap(([title, call]) => Object.entries(samples(call)).map(([language, text]) =>
      sample(`${title}: ${language}`, text)));
    details.replaceChildren(details.firstElementChild, ...shown);
  };
  details.addEventListener("toggle", update);
  for (const kind of ["input", "change"]) panel.addEventListener(kind, update);
  return update;
}
