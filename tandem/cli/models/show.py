"""`tandem show`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tandem.cli.options import (
    DeviceOption,
    DtypeOption,
    KvCacheOption,
    MaxNumSeqsOption,
    ModelArgument,
    OverridesOption,
    QuantizationOption,
    TensorParallelOption,
    errors_shown,
)

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def show(
    model: ModelArgument = "quickstart",
    *,
    dtype: DtypeOption = "auto",
    device: DeviceOption = "auto",
    quantization: QuantizationOption = None,
    tensor_parallel_size: TensorParallelOption = 1,
    max_num_seqs: MaxNumSeqsOption = 64,
    kv_cache_gib: KvCacheOption = None,
    input_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Length of the inputs to fit in; by default an image's or a recording's, or 512."
        ),
    ] = None,
    output_tokens: Annotated[int, typer.Option(min=1, help="Length of the outputs to fit in.")] = 128,
    default: OverridesOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON; sizes in bytes.")] = False,
) -> None:
    """Show what MODEL is made of, how it decodes if not told otherwise, and the memory it takes.

    Nothing is loaded, and a folder without weights is enough, config.json alone: a model for a machine with
    eight GPUs can be looked at on a laptop.

    [bold]Examples[/bold]

      tandem show
      tandem show google/flan-t5-xl --dtype bfloat16 --kv-cache-gib 40 --input-tokens 1024
      tandem show ./my-t5 --json | jq .memory
    """
    with errors_shown():
        from tandem.batch.records import assignments
        from tandem.cli.models.describe import describe

        facts = describe(
            model,
            (input_tokens, output_tokens),
            assignments(default or []),
            dtype=dtype,
            device=device,
            quantization=quantization,
            tensor_parallel_size=tensor_parallel_size,
            max_num_seqs=max_num_seqs,
            kv_cache_gib=kv_cache_gib,
        )
    if as_json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    console = Console(markup=False, emoji=False)
    for table in (
        _stacks(facts),
        _model(facts),
        _defaults(facts),
        _speech(facts),
        _tasks(facts),
        _languages(facts),
        _memory(facts),
        _parts(facts),
        _workers(facts),
    ):
        if table.row_count:
            console.print(table)


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, title_justify="left", title_style="bold")


def _stacks(facts: dict[str, Any]) -> Table:
    """The stacks, side by side."""
    stacks = {side: _flat(facts["spec"][side]) for side in ("encoder", "decoder") if facts["spec"][side]}
    table = _table(f"{facts['model']}: {facts['family']}", "", *stacks)
    for name in dict.fromkeys(name for stack in stacks.values() for name in stack):
        values = [stack.get(name) for stack in stacks.values()]
        if any(value not in (None, (), []) for value in values):
            table.add_row(name, *map(_value, values))
    return table


def _model(facts: dict[str, Any]) -> Table:
    table = _table("The whole", "", "")
    for name, value in _flat(facts["spec"]).items():
        if not name.startswith(("encoder", "decoder.", "family")):
            table.add_row(name, _value(value))
    table.add_row("revision", facts["revision"])
    return table


def _defaults(facts: dict[str, Any]) -> Table:
    table = _table("Decoding, where a request does not say", "", "", "from")
    for name, default in facts["defaults"].items():
        table.add_row(name, _value(default["value"]), default["from"])
    return table


def _speech(facts: dict[str, Any]) -> Table:
    """What a speech model hears, and how it transcribes."""
    table = _table("Speech", "", "")
    if (speech := facts["speech"]) is None:
        return table
    languages = [f"{name} ({code})" for code, name in speech["languages"].items()]
    table.add_row("languages", f"{len(languages)}: {', '.join(languages)}")
    table.add_row("tasks", ", ".join(speech["tasks"]))
    table.add_row("times", _value(speech["timestamps"]))
    table.add_row("times of words", _value(speech["word_times"]))
    table.add_row("prompts", _value(speech["prompts"]))
    table.add_row("window", f"{speech['window_s']} s, {speech['mel_bins']} mel bins")
    table.add_row("samples a second", str(speech["sampling_rate"]))
    for name, value in speech["defaults"].items():
        table.add_row(name, _value(value))
    return table


def _tasks(facts: dict[str, Any]) -> Table:
    table = _table("Tasks", "", "text before the input", "decoding")
    for name, task in facts["tasks"].items():
        own = ", ".join(f"{key} {_value(value)}" for key, value in task.items() if key != "prefix")
        table.add_row(name, repr(task.get("prefix", "")), own)
    return table


def _languages(facts: dict[str, Any]) -> Table:
    """What the model translates from and to."""
    table = _table("Languages", "", "")
    if (languages := facts["languages"]) is None:
        return table
    sides = {"from": languages["sources"], "to": languages["targets"]}
    if sides["from"] == sides["to"]:
        sides = {"from and to": sides["to"]}
    for side, codes in sides.items():
        named = (code if name == code else f"{name} ({code})" for code, name in codes.items())
        table.add_row(side, f"{len(codes)}: {', '.join(named)}")
    return table


def _memory(facts: dict[str, Any]) -> Table:
    memory = facts["memory"]
    each = "" if memory["ranks"] == 1 else f", on each of {memory['ranks']} ranks"
    absent = "" if memory["counted_from"] == "weights" else ", whose weights are not there"
    table = _table(f"Memory: {memory['dtype']} on {memory['device']}{each}{absent}", "", "")
    for label, size in (
        ("encoder weights", memory["encoder_weights"]),
        ("decoder weights", memory["decoder_weights"]),
        ("self-attention K/V, a decoder position", memory["self_kv_per_position"]),
        ("cross-attention K/V, an encoder position", memory["cross_kv_per_position"]),
        ("hidden states on their way, an encoder position", memory["hidden_states_per_position"]),
        (f"K/V pool, {memory['pages']:,} pages of {memory['page_size']} positions", memory["kv_cache"]),
    ):
        if size:
            table.add_row(label, _size(size))
    fits = memory["fits"]
    lengths = f"{fits['input_tokens']} in, {fits['output_tokens']} out"
    table.add_row(f"sequences of {lengths} that fit in it", f"{fits['sequences']:,}")
    return table


def _parts(facts: dict[str, Any]) -> Table:
    """Weights by what they belong to, on one rank."""
    whole = [worker for worker in facts["workers"] if worker["ranks"] == 1]
    table = _table("Weights by part", "", *(_precision(worker) for worker in whole))
    encoder = facts["spec"]["encoder"]
    front = encoder and encoder["front"]
    labels = {
        "front": f"front ({front['modality']})" if front else "",
        "encoder": "encoder",
        "cross_attention": "cross-attention, and layers of it alone",
        "decoder": "decoder's other layers",
        "vocabulary": "embedding and output projection",
    }
    for part, label in labels.items():
        sizes = [worker["parts"][part] for worker in whole]
        if any(sizes):
            table.add_row(label, *map(_size, sizes))
    table.add_row("together", *(_size(worker["colocated"]) for worker in whole))
    return table


def _workers(facts: dict[str, Any]) -> Table:
    """What a worker of each kind takes, by precision and tensor-parallel size."""
    fits, workers = facts["memory"]["fits"], facts["workers"]
    encodes = any(worker["encoder_worker"] for worker in workers)
    kinds = {"encoder": "encoder_worker", "decoder": "decoder_worker", "colocated": "colocated"}
    if not encodes:
        kinds = {"decoder": "decoder_worker"}
    slots = list(workers[0]["kv"])
    lengths = f"{fits['input_tokens']} in, {fits['output_tokens']} out"
    table = _table(
        f"Each worker's weights, and K/V of so many sequences of {lengths}, on each rank",
        "", "ranks", *kinds, *(f"{count} {'slot' if count == '1' else 'slots'}" for count in slots),
    )  # fmt: skip
    for worker in workers:
        table.add_row(
            _precision(worker),
            str(worker["ranks"]),
            *(_size(worker[kind]) for kind in kinds.values()),
            *(_size(worker["kv"][count]) for count in slots),
        )
    return table


def _precision(worker: dict[str, Any]) -> str:
    return f"{worker['precision']} on {worker['device']}"


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _value(value: Any) -> str:
    if value is None or value in ((), []):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(count: int) -> str:
    """Bytes in the unit that leaves one to four digits before the point."""
    power = min((max(count, 1).bit_length() - 1) // 10, len(_UNITS) - 1)
    return f"{count / 1024**power:.4g} {_UNITS[power]}"
