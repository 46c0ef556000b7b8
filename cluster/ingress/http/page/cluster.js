// What the cluster does right now, from /metrics.

import { call } from "./api.js";
import { samplesIn } from "./code.js";
import { $, make } from "./dom.js";
import { grown, parse, quantile, sum } from "./metrics.js";

const PERIOD_MS = 2000;
const KEPT = 60; // scrapes: two minutes

const whole = (value) => Math.round(value).toLocaleString("en");
const seconds = (value) => (value === null ? "–" : value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`);

export function cluster(panel) {
  const kept = []; // {at, metrics} of the ingress replica that answered last
  let timer = null;

  async function look() {
    const metrics = parse(await (await call("metrics")).text());
    const replica = (one) => one.get("tandem_engines")?.[0]?.labels.replica;
    if (kept.length && replica(kept[0].metrics) !== replica(metrics)) kept.length = 0;
    kept.push({ at: performance.now(), metrics });
    if (kept.length > KEPT) kept.shift();
    show();
  }

  function rates(name, keeps) {
    return kept.slice(1).map(({ at, metrics }, index) => {
      const before = kept[index];
      return (1000 * grown(sum(before.metrics, name, keeps), sum(metrics, name, keeps))) / (at - before.at);
    });
  }

  function show() {
    const { metrics } = kept.at(-1);
    const first = kept[0].metrics;
    const tokens = rates("generation_tokens_total");
    const latency = (share) => seconds(quantile(share, "e2e_request_latency_seconds", metrics, kept.length > 1 ? first : null));
    const numbers = {
      "Tokens a second": whole(tokens.at(-1) ?? 0),
      "Requests under way": whole(sum(metrics, "router_requests")),
      "Waiting for room": whole(sum(metrics, "router_requests_waiting")),
      "Half are done in": latency(0.5),
      "99 % are done in": latency(0.99),
      "Requests refused": whole(sum(metrics, "refused_total")),
      "Engines": whole(sum(metrics, "engines")),
      "Encoders": whole(sum(metrics, "encoder_replicas")),
    };
    $("numbers").replaceChildren(...Object.entries(numbers).map(([name, value]) =>
      make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }))));
    const top = Math.max(1, ...tokens);
    const points = tokens.map((value, at) => `${(300 * (KEPT - tokens.length + at)) / (KEPT - 1)} ${46 - (44 * value) / top}`);
    $("rate").firstElementChild.setAttribute("d", points.length ? `M${points.join("L")}` : "");
    $("engines").replaceChildren(...(metrics.get("tandem_engine_slots") ?? []).map(({ labels: { engine }, value: slots }) => {
      const of = (labels) => labels.engine === engine;
      const running = sum(metrics, "num_requests_running", of);
      const used = sum(metrics, "kv_cache_usage", of);
      const cells = [engine, `${running} of ${slots}`, null, sum(metrics, "num_requests_waiting", of), whole(rates("engine_generated_tokens_total", of).at(-1) ?? 0)];
      const row = make("tr", {}, ...cells.map((text) => make("td", { textContent: text ?? "" })));
      row.children[2].append(make("meter", { value: used, ariaLabel: "Pages in use" }), `${Math.round(100 * used)} % of ${whole(sum(metrics, "kv_pages", of))}`);
      return row;
    }));
    $("cluster-note").textContent = "As the ingress replica that answers this page sees it; times are those of the last two minutes, while this panel is open.";
  }

  async function watch() {
    clearTimeout(timer);
    try {
      if (!document.hidden) await look();
    } catch (error) {
      $("cluster-note").textContent = error.status === 404 ? "The metrics are on a port of their own." : error.message;
      if (error.status === 404 || error.status === 401) return;
    }
    if (!panel.hidden) timer = setTimeout(watch, PERIOD_MS);
  }

  samplesIn(panel, () => ({ "Everything that is counted": { path: "metrics", after: "print(answer.text)" } }));
  return { shown: watch, left: () => clearTimeout(timer) };
}
