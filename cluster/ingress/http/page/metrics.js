// Prometheus' text, and what is of interest in it. A scrape meets one ingress replica: its label says which.

/** Name → [{labels, value}]. */
export function parse(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    const [, name, inner, value] = /^([\w:]+)(?:\{(.*)\})? (\S+)/.exec(line) ?? [];
    if (!name) continue;
    const labels = Object.fromEntries([...(inner ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, one]) => [key, one]));
    found.set(name, [...(found.get(name) ?? []), { labels, value: Number(value.replace("+Inf", "Infinity")) }]);
  }
  return found;
}

export const sum = (metrics, name, keeps = () => true) =>
  (metrics.get(`tandem_${name}`) ?? []).reduce((total, { labels, value }) => total + (keeps(labels) ? value : 0), 0);

/** What grew between two scrapes of a counter; all of it where the server has started anew. */
export const grown = (before, now) => (now >= before ? now - before : now);

/** A quantile of a histogram's growth, in its unit, as Prometheus computes it; null where nothing was seen. */
export function quantile(share, name, now, before) {
  const at = (metrics) => new Map((metrics?.get(`tandem_${name}_bucket`) ?? []).map(({ labels, value }) => [Number(labels.le.replace("+Inf", "Infinity")), value]));
  const old = at(before);
  const buckets = [...at(now)].map(([bound, count]) => [bound, grown(old.get(bound) ?? 0, count)]).sort((a, b) => a[0] - b[0]);
  const rank = share * (buckets.at(-1)?.[1] ?? 0);
  if (!rank) return null;
  let [low, below] = [0, 0];
  for (const [bound, count] of buckets) {
    if (count >= rank) return bound === Infinity ? low : low + ((bound - low) * (rank - below)) / (count - below);
    [low, below] = [bound, count];
  }
  return null;
}
