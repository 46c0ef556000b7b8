// /openapi.json, to read.

import { json } from "./api.js";
import { sample, samples } from "./code.js";
import { $, complain, make } from "./dom.js";

/** A schema in a few words. */
function kind(schema) {
  if (schema.enum) return schema.enum.map((one) => JSON.stringify(one)).join(" | ");
  if (schema.const) return JSON.stringify(schema.const);
  if (schema.anyOf) return [...new Set(schema.anyOf.map(kind))].filter((one) => one !== "null").join(" | ");
  if (schema.type === "array") return `[${schema.items ? kind(schema.items) : "…"}]`;
  if (schema.format === "binary") return "file";
  return schema.type ?? "any";
}

function fields({ properties = {}, required = [] }) {
  const rows = Object.entries(properties)
    .sort(([a], [b]) => required.includes(b) - required.includes(a))
    .map(([name, schema]) => make("tr", {},
      make("th", { scope: "row", textContent: required.includes(name) ? `${name} *` : name }),
      make("td", { textContent: kind(schema) }),
      make("td", { className: "about", textContent: schema.description ?? "" })));
  const head = make("tr", {}, ...["Field", "Type", ""].map((textContent) => make("th", { scope: "col", textContent })));
  head.lastElementChild.textContent = "Meaning";
  return make("div", { className: "wide", tabIndex: 0, role: "region", ariaLabel: "Fields" },
    make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function shown(path, method, operation) {
  const [first, ...rest] = (operation.description ?? "").split(/(?<=[.:])\s+/);
  const summary = make("summary", {}, make("span", { className: "method", textContent: method.toUpperCase() }),
    make("code", { textContent: path }), make("span", { className: "note", textContent: first }));
  const details = make("details", { className: "operation" }, summary);
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    if (rest.length) details.append(make("p", { textContent: rest.join(" ") }));
    const [type, content] = Object.entries(operation.requestBody?.content ?? {})[0] ?? [];
    if (content?.example) {
      const { curl } = samples({ path: path.slice(1), body: content.example });
      details.append(sample("curl", curl));
    }
    if (content) details.append(make("p", { className: "note", textContent: `${type}; * is required` }), fields(content.schema));
  });
  return details;
}

try {
  const described = await json("openapi.json");
  $("summary").textContent = `${described.info.summary} Version ${described.info.version}.`;
  const groups = Map.groupBy(
    Object.entries(described.paths).flatMap(([path, item]) => Object.entries(item).map(([method, operation]) => ({ path, method, operation }))),
    ({ operation }) => operation.tags[0]);
  for (const [tag, operations] of groups) {
    $("operations").append(make("h2", { textContent: tag }), ...operations.map(({ path, method, operation }) => shown(path, method, operation)));
  }
} catch (error) {
  complain(error.status === 401 ? "A key is needed: give it to the page first." : error.message);
}
