"""The results as one table of ratios, and as the tables in the documentation.

    python bench/summary.py [--write]

`--write` puts the tables between their marks in the documents;
`tests/bench/test_summary.py` checks that they are these.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

Figures = Any  # what a results file holds
Rows = Iterable[Iterable[str]]


def load(name: str) -> Figures:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def markdown(head: Iterable[str], rows: Rows) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _ms(seconds: float) -> str:
    return _number(1e3 * seconds)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


# -- the tables in the documentation


def headline() -> str:
    """README's claims and their figures: medians of ratios, and the sum of the parity matrix."""
    stream = load("engine")["models"]["random T5-small"]["stream"]
    pairs = (("tandem int8", "ctranslate2 int8"), ("tandem float32", "transformers"))  # each of one precision
    over_ctranslate2, over_transformers = (
        f"{stream[peer]['tandem_over_this'][ours]['median']:.1f}" for ours, peer in pairs
    )
    mixed = f"{load('placement')['workloads']['mixed']['ratio']['median']:.1f}"
    exact, total, models, ways = parity()
    whisper = load("speech")["models"]["base"]
    clip, eight, file = (
        f"{whisper[kind]['faster-whisper int8']['over_tandem']['tandem int8']['median']:.1f}"
        for kind in ("clip", "8", "file")
    )
    rows = [
        ["Continuous batching for encoder-decoder models, beam search in the same batch, self- and "
         "cross-attention in one pool of pages",
         f"In int8 **{over_ctranslate2} ×** CTranslate2's tokens/s in int8; in float32 {over_transformers} × "
         "transformers'"],
        ["Encoders and decoders as separate deployments that scale by themselves; an input is encoded once, "
         "whichever decoders answer",
         f"**{mixed} ×** the tokens/s of the same two workers colocated, on mixed requests"],
        ["Whisper's windows, of all requests and of long files, in one batch: fallback for each, times of "
         "segments and words, beams, while the speaker goes on",
         f"In int8 **{clip} ×** as fast as faster-whisper in int8 for one clip, {eight} × for eight at once, "
         f"{file} × for five minutes one window after another"],
        ["The tokens and beams of `transformers.generate` whatever the batch: preempted, resumed, "
         "tensor-parallel",
         f"**{exact} of {total}** requests exact in float32, on {models} tiny random checkpoints in {ways} "
         "ways of decoding"],
    ]  # fmt: skip
    return markdown(["What", "Measured"], rows)


def parity() -> tuple[int, int, int, int]:
    """Exact requests, requests, models and ways of decoding in the matrix of docs/parity.md."""
    text = (ROOT / "docs" / "parity.md").read_text(encoding="utf-8")
    table = text.partition("<!-- parity matrix -->\n")[2].partition("\n<!-- /parity matrix -->")[0]
    _, _, *rows = (line.strip("| ").split(" | ") for line in table.splitlines())
    cells = [cell.split("/") for _, *row in rows for cell in row if "/" in cell]
    exact, total = (sum(map(int, counts)) for counts in zip(*cells, strict=True))
    return exact, total, len(rows), len(rows[0]) - 1


SYSTEMS = {
    "tandem float32": "Tandem float32",
    "tandem bfloat16": "Tandem bfloat16",
    "tandem int8": "Tandem int8",
    "transformers": "transformers",
    "ctranslate2 float32": "CTranslate2 float32",
    "ctranslate2 int8": "CTranslate2 int8",
}


# Pairs of one precision: our system, its peer, and what the ratio's column is called.
PEERS = (
    ("tandem float32", "ctranslate2 float32", "float32, over CTranslate2's"),
    ("tandem int8", "ctranslate2 int8", "int8, over CTranslate2's"),
)


def engine() -> str:
    models = load("engine")["models"]
    there = [
        name for name in SYSTEMS if any(name in by for loads in models.values() for by in loads.values())
    ]

    def cell(of: Figures | None) -> str:
        return "–" if of is None else _number(of["tokens_per_s"]["median"])

    def ratio(by_system: Figures, ours: str, peer: str) -> str:
        over = by_system.get(peer, {}).get("tandem_over_this", {}).get(ours)
        return "–" if over is None else f"{over['median']:.2f}"

    rows = [
        [model, kind, *(cell(by_system.get(name)) for name in there),
         *(ratio(by_system, ours, peer) for ours, peer, _ in PEERS)]
        for model, loads in models.items()
        for kind, by_system in loads.items()
    ]  # fmt: skip
    return markdown(["model", "load", *(SYSTEMS[name] for name in there), *(one for *_, one in PEERS)], rows)


STEPS = {"simulated": "10 ms, nothing computed", "real": "the model's"}


def cluster() -> str:
    figures, rows = load("cluster"), []
    for steps, what in STEPS.items():
        for answers, by_clients in figures[steps]["concurrency"].items():
            shortest, longest = figures["answers"][answers]
            for clients, values in by_clients.items():
                over = (_spread(values["over_engine"][name]) for name in ("unary", "streaming"))
                rows.append([what, f"{shortest} to {longest}", clients, *over])
    return markdown(
        ["steps", "tokens of an answer", "clients", "of the engine's tokens/s", "streaming"], rows
    )


def first_token() -> str:
    rows = []
    for steps, what in STEPS.items():
        for placement, values in load("cluster")[steps]["first_token_s"].items():
            least, most = _ms(values["added"]["min"]), _ms(values["added"]["max"])
            engine, cluster, added = (_ms(values[name]["median"]) for name in ("engine", "cluster", "added"))
            rows.append([what, placement, engine, cluster, f"{added} ({least} to {most})"])
    return markdown(["steps", "placement", "first token, engine, ms", "cluster, ms", "added, ms"], rows)


def placement() -> str:
    rows = []
    for name, figures in load("placement")["workloads"].items():
        both = [figures[placed] for placed in ("disaggregated", "colocated")]
        rates = (_number(one["tokens_per_s"]["median"]) for one in both)
        times = (f"{_ms(one['p50_s']['median'])}, {_ms(one['p95_s']['median'])}" for one in both)
        rows.append([name, *rates, _number(figures["ratio"]["median"]), *times])
    return markdown(
        ["workload", "disaggregated, tokens/s", "colocated, tokens/s", "ratio",
         "disaggregated, p50, p95, ms", "colocated, p50, p95, ms"], rows,
    )  # fmt: skip


def cache() -> str:
    figures = load("placement")["encoder_cache"]
    miss, hit = (figures[f"{name}_s"]["median"] for name in ("miss", "hit"))
    return markdown(
        ["questions of one document", "encoder passes", "hits", "new document, ms", "known document, ms"],
        [[*(f"{figures[name]:.0f}" for name in ("questions", "batches", "cache_hits")), _ms(miss), _ms(hit)]],
    )


def handoff() -> str:
    rows = [
        [f"{row['tokens']} × {row['d_model']}", row["dtype"], f"{row['bytes'] / 2**20:.2f}",
         _ms(row["seconds"]["median"])]
        for row in load("handoff")["handoff"]
    ]  # fmt: skip
    return markdown(["tokens × d_model", "", "MiB", "ms"], rows)


def clips() -> str:
    figures = load("handoff")
    rows = [
        [f"Whisper {figures['model']}, {figures['clips']} clips of {figures['clip_s']} s", name,
         f"{found['clips_per_s']['median']:.2f}", *(_ms(found[key]["median"]) for key in ("p50_s", "p95_s"))]
        for name, found in figures["placements"].items()
        if name != "ratio"
    ]  # fmt: skip
    return markdown(["load", "placement", "clips/s", "p50, ms", "p95, ms"], rows)


def scaling() -> str:
    return _simulated(load("simulate")["scaling"])


def saturation() -> str:
    return _simulated(load("simulate")["saturation"]["rows"])


def choices() -> str:
    rows = load("simulate")["choices"]
    names = ("the least loaded of all", "the better of two")
    return markdown(
        ["engine", "tokens/s", "answered", "busiest encoder", "busiest engine", "first token p50, p99, ms"],
        [
            [names[row["by_chance"]], f"{row['tokens_per_s']:.0f}", _percent(row["answered"]),
             _percent(row["busiest_encoder"]), _percent(row["busiest_decoder"]), _both(row, "first_token")]
            for row in rows
        ],
    )  # fmt: skip


def validation() -> str:
    rows = []
    for point in load("simulate")["validation"]:
        for name, seconds in point["measured"].items():
            rows.append(
                [point["steps"], f"{point['requests_per_s']:.1f}", name.removesuffix("_s").replace("_", " "),
                 _ms(seconds), _ms(point["simulated"][name]), f"{100 * point['deviation'][name]:+.0f} %"]
            )  # fmt: skip
    return markdown(["steps", "requests/s", "", "measured, ms", "simulated, ms", "deviation"], rows)


def costs() -> str:
    found = load("simulate")["costs"]
    rows = [[name.replace("_", " "), _number(1e6 * seconds)] for name, seconds in found.items()]
    return markdown(["cost", "µs"], rows)


def _simulated(rows: list[Figures]) -> str:
    names = ("answered", "router", "encoder", "decoder")
    return markdown(
        ["encoders", "decoders", "routers", "requests/s", "tokens/s", *names, "first token p50, p99, ms",
         "whole p50, p99, ms"],
        [
            [*(str(row[name]) for name in ("encoders", "decoders", "routers")),
             f"{row['requests_per_s']:.0f}",
             f"{row['tokens_per_s']:.0f}", *(_percent(row[name]) for name in names),
             _both(row, "first_token"), _both(row, "whole")]
            for row in rows
        ],
    )  # fmt: skip


def _both(row: Figures, name: str) -> str:
    return f"{_ms(row[f'{name}_p50_s'])}, {_ms(row[f'{name}_p99_s'])}"


def roofline() -> str:
    """T5-small at the largest number of rows: by precision, microseconds and multiples of the floor."""
    precisions = load("roofline")["models"]["random T5-small"]
    steps = {precision: list(by_rows.values())[-1] for precision, by_rows in precisions.items()}

    def cells(op: str) -> Iterator[str]:
        for figures in steps.values():
            entry = figures["ops"][op]
            over = f"{entry['over_floor']:.1f}" if entry["over_floor"] else "–"
            yield f"{1e6 * entry['seconds']:.0f} ({_percent(entry['share'])})"
            yield over

    rows = [[op, *cells(op)] for op in next(iter(steps.values()))["ops"]]
    for name, key in (("step, op by op", "step_s"), ("step, recorded", "recorded_s")):
        whole = ((figures[key], figures[key] / figures["floor_s"]) for figures in steps.values())
        rows.append([name, *(cell for s, over in whole for cell in (f"{1e6 * s:.0f}", f"{over:.1f}"))])
    head = (cell for precision in steps for cell in (f"{precision}, µs", "× floor"))
    return markdown(["op", *head], rows)


def encoding() -> str:
    """Int8's rates of each op, and the share of the time that it takes, by load."""
    figures = load("encoding")
    loads = {
        f"{title}, {inputs}": by_precision
        for title, by_load in figures["models"].items()
        for inputs, by_precision in by_load.items()
    }
    ops = list(dict.fromkeys(op for by in loads.values() for op in by["int8"]["ops"]))

    def cell(by_precision: Figures, op: str) -> str:
        entry = by_precision["int8"]["ops"].get(op)
        if entry is None:
            return ""
        rate = f", {entry['operations_per_s'] / 1e9:.0f}" if entry["operations"] else ""
        return f"{_percent(entry['share'])}{rate}"

    rows = [[op, *(cell(by_precision, op) for by_precision in loads.values())] for op in ops]
    for precision in ("int8", "float32"):
        each = (f"{1e3 * by_precision[precision]['seconds']:.0f}" for by_precision in loads.values())
        rows.append([f"pass in {precision}, ms", *each])
    products = {name: rate / 1e9 for name, rate in figures["product_operations_per_s"].items()}
    rows.append([f"large products: {products['int8']:.0f} in int8, {products['float32']:.0f} in float32"])
    rows[-1] += [""] * len(loads)
    return markdown(["share of the time, GOP/s", *loads], rows)


SPEECH = {
    "tandem float32": "Tandem float32",
    "tandem bfloat16": "Tandem bfloat16",
    "tandem int8": "Tandem int8",
    "faster-whisper float32": "faster-whisper float32",
    "faster-whisper int8": "faster-whisper int8",
    "faster-whisper batched float32": "its batches, float32",
    "faster-whisper batched int8": "its batches, int8",
}
CLIPS = ("8", "32")  # the loads of so many clips


def speech() -> str:
    models = load("speech")["models"]
    there = [name for name in SPEECH if any(name in by for loads in models.values() for by in loads.values())]

    def cell(kind: str, of: Figures | None) -> str:
        if of is None:
            return "–"
        value = of["clips_per_s"] if kind in CLIPS else of["seconds"]
        return f"{value['median']:.2f}"

    rows = [
        [model, f"{kind}, clips/s" if kind in CLIPS else f"{kind}, s",
         *(cell(kind, by_system.get(name)) for name in there),
         f"{100 * by_system['tandem int8']['word_errors']:.1f} %"]
        for model, loads in models.items()
        for kind, by_system in loads.items()
    ]  # fmt: skip
    head = ["model", "load", *(SPEECH[name] for name in there), "words changed by int8"]
    return markdown(head, rows)


VISION = {
    "tandem float32": "Tandem float32",
    "tandem bfloat16": "Tandem bfloat16",
    "tandem int8": "Tandem int8",
    "transformers float32": "transformers float32",
    "transformers bfloat16": "transformers bfloat16",
}


def vision() -> str:
    models = load("vision")["models"]
    there = [name for name in VISION if any(name in by for loads in models.values() for by in loads.values())]
    ours = [name for name in there if name.startswith("tandem")]
    rows = [
        [model, count,
         *(f"{by_system[name]['images_per_s']['median']:.2f}" for name in there),
         *(f"{by_system[name]['over']['transformers float32']['median']:.2f}" for name in ours)]
        for model, loads in models.items()
        for count, by_system in loads.items()
    ]  # fmt: skip
    ratios = (f"{VISION[name].removeprefix('Tandem ')}, over float32's there" for name in ours)
    return markdown(["model", "images at once", *(VISION[name] for name in there), *ratios], rows)


def speech_parity() -> str:
    rows = []
    for size, checkpoint in load("speech_parity")["checkpoints"].items():
        for kind, counts in checkpoint["counts"].items():
            asked = counts["equal"] + counts["unequal"]
            wrong, int8_wrong, sd = (
                f"{100 * counts[name] / counts['words']:.1f} %"
                for name in ("errors", "int8_errors", "errors_sd")
            )
            numbers = (counts["equal"], counts["near_ties"], counts["unequal"] - counts["near_ties"])
            words = (counts["words"], wrong, f"{int8_wrong} (± {sd})")
            rows.append([f"{size}, {kind}s", asked, round(counts["audio_s"] / 60), *numbers, *words])
    head = ["", "asked", "minutes", "equal", "near ties", "unequal", "words", "wrong in float32", "in int8"]
    return markdown(head, [map(str, row) for row in rows])


FEW = 0.01  # drafts a token; below, the share that is right means nothing


def speculation() -> str:
    rows = []
    for model, loads in load("speculation")["models"].items():
        for kind, by_count in loads.items():
            ratios = (_spread(values["ratio"]) for values in by_count.values())
            alone = by_count["1"]
            right, drafted = (
                _percent(alone["accepted_per_drafted"]["median"]),
                alone["drafted_per_token"]["median"],
            )
            rows.append([model, kind, *ratios, right if drafted > FEW else "–"])
    return markdown(["model", "input", "1 request", "8", "32", "drafts right, of 1"], rows)


def admission() -> str:
    rows = []
    for kind, figures in load("admission")["loads"].items():
        for order, values in figures.items():
            ratios = (_spread(values[f"{name}_over_arrival"]) for name in ("tokens_per_s", "mean_s", "p99_s"))
            rows.append([kind, order, *ratios])
    return markdown(["load", "order", "tokens/s", "mean latency", "p99 latency"], rows)


BESIDE = {
    "alone": "nobody",
    "greedy": "a caller whose 64 clients send one request after the other",
    "slow headers": "20 attackers whose headers never end, 5 connections a second each",
    "connections": "20 attackers who connect and leave, 20 times a second each",
    "huge bodies": "20 attackers who each send a body of 64 MiB a second",
    "wrong keys": "20 attackers who guess 20 keys a second each",
}


def neighbours() -> str:
    measured, rows = load("neighbours"), []
    for kind, what in BESIDE.items():
        figures = measured[kind]
        whole, sent = figures["ends"].get("200", 0), sum(figures["ends"].values())
        times = (f"{figures['whole_s'][quantile]:.2f} s" for quantile in ("p50", "p99"))
        rows.append([what, f"{whole} of {sent}", *times, f"{figures['ingress_grew_mib']:+.0f} MiB"])
    return markdown(["others", "whole answers", "p50", "p99", "memory of the ingress"], rows)


# The results that tables in the documents are made from, each written by the script of its name.
MEASURED = (
    "engine", "speech", "speculation", "cluster", "placement", "roofline", "encoding", "handoff", "simulate",
    "admission", "vision", "speech_parity", "neighbours",
)  # fmt: skip
VERSIONS = {
    "torch": "PyTorch",
    "transformers": "transformers",
    "ray": "Ray",
    "ctranslate2": "CTranslate2",
    "faster-whisper": "faster-whisper",
}


def versions() -> str:
    """Machine and versions of each results file; they differ where files were written on different days."""
    rows = []
    for name in MEASURED:
        machine = load(name)["machine"]
        installed = (machine["versions"].get(package) or "–" for package in VERSIONS)
        script = f"[`bench/{name}.py`](../bench/{name}.py)"
        rows.append([script, machine["date"], machine["cpu"], machine["python"], *installed])
    return markdown(["measured by", "on", "processor", "Python", *VERSIONS.values()], rows)


def _spread(values: Figures) -> str:
    return f"{values['median']:.2f} ({values['min']:.2f} to {values['max']:.2f})"


DOCUMENTS: dict[Path, tuple[Callable[[], str], ...]] = {
    ROOT / "README.md": (headline,),
    ROOT / "docs" / "operate.md": (neighbours,),
    ROOT / "docs" / "transcription.md": (speech_parity,),
    ROOT / "docs" / "performance.md": (
        engine, speech, vision, speculation, cluster, first_token, placement, cache, roofline, encoding,
        handoff, clips, costs, validation, saturation, scaling, choices, admission, versions,
    ),
}  # fmt: skip


def block(name: str) -> re.Pattern[str]:
    return re.compile(f"(?<=<!-- figures: {name} -->\n).*?(?=\n<!-- /figures -->)", re.DOTALL)


# -- the table of ratios

PAIRS = (
    ("tandem float32", "transformers"),
    ("tandem float32", "ctranslate2 float32"),
    ("tandem int8", "transformers"),
    ("tandem int8", "ctranslate2 float32"),
    ("tandem int8", "ctranslate2 int8"),
)


def ratios() -> Iterator[tuple[str, str, Figures]]:
    for model, loads in load("engine")["models"].items():
        for kind, by_system in loads.items():
            for ours, theirs in PAIRS:
                spread = by_system.get(theirs, {}).get("tandem_over_this", {}).get(ours)
                if spread is not None:
                    yield f"{model}, {kind}", f"{ours} / {theirs}", spread
    for model, loads in load("speech")["models"].items():
        for kind, by_system in loads.items():
            for theirs, values in by_system.items():
                for ours, spread in values["over_tandem"].items():
                    if theirs.startswith("faster-whisper"):
                        yield f"Whisper {model}, {kind}", f"{ours} / {theirs}", spread
    figures = load("cluster")
    for steps in ("real", "simulated"):
        for answers, by_clients in figures[steps]["concurrency"].items():
            for clients, values in by_clients.items():
                for how, spread in values["over_engine"].items():
                    what = f"{clients} clients, {steps} steps, {answers} answers"
                    yield what, f"cluster, {how} / engine", spread
    for name, values in load("placement")["workloads"].items():
        yield name, "disaggregated / colocated", values["ratio"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    table = Table("load", "tokens/s", "median", "least", "most")
    for kind, what, spread in ratios():
        table.add_row(kind, what, *(f"{spread[name]:.2f}" for name in ("median", "min", "max")))
    Console().print(table)
    if args.write:
        for path, made in DOCUMENTS.items():
            text = path.read_text(encoding="utf-8")
            for make in made:
                text = block(make.__name__).sub(lambda _, make=make: make(), text)  # type: ignore[misc]
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
