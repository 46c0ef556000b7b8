"""What the Triton kernels take of a Hopper GPU, at the shapes of real models: the real launchers and stacks
run, on tensors without numbers, for a device of 132 multiprocessors; each launch is compiled with its exact
signature. The bounds are what the kernels take now: more registers, spills or shared memory mean fewer
programs at once, more barriers and launches mean time."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, Final, NamedTuple

import pytest
import torch

pytest.importorskip("triton")

from fake_cuda import FakeCuda
from launches import Launch
from transformers import BartConfig, MllamaConfig, T5Config, WhisperConfig

from tandem import kernels
from tandem.kernels.triton import splits
from tandem.workers.config import EngineConfig
from tandem.workers.distributed import Group
from tandem.workers.execution import warm_up
from tandem.workers.execution.decode_state import DecodeState
from tandem.workers.execution.packet import BEAM, SINGLE
from tandem.workers.execution.runner import _decode
from tandem.workers.models.families import spec_of
from tandem.workers.models.kv_pool import KVPool
from tandem.workers.models.layers import Placement
from tandem.workers.models.spec import ModelSpec
from tandem.workers.models.stacks import DecoderStack, EncoderStack

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1", reason="the kernels run here"
)

PAGES: Final = 1000
_REGISTERS, _STACK = 0x2F, 0x11  # EIATTR_REGCOUNT and EIATTR_FRAME_SIZE in a cubin's .nv.info


def _config(architecture: str, config: Any) -> dict[str, Any]:
    return {**config.to_dict(), "architectures": [architecture]}


def _t5(width: int, hidden: int, heads: int, feed_forward: str) -> dict[str, Any]:
    return _config(
        "T5ForConditionalGeneration",
        T5Config(d_model=width, d_ff=hidden, num_heads=heads, feed_forward_proj=feed_forward,
                 decoder_start_token_id=0, vocab_size=32128),
    )  # fmt: skip


CONFIGS: dict[str, Callable[[], dict[str, Any]]] = {
    "flan-t5-xl": lambda: _t5(2048, 5120, 32, "gated-gelu"),
    "t5-small": lambda: _t5(512, 2048, 8, "relu"),
    "bart-large": lambda: _config("BartForConditionalGeneration", BartConfig()),
    "whisper-large-v3": lambda: _config(
        "WhisperForConditionalGeneration",
        WhisperConfig(d_model=1280, encoder_attention_heads=20, decoder_attention_heads=20, num_mel_bins=128,
                      encoder_ffn_dim=5120, decoder_ffn_dim=5120, vocab_size=51866),
    ),
    "llama-3.2-11b-vision": lambda: _config("MllamaForConditionalGeneration", MllamaConfig()),
}  # fmt: skip


class Traced(NamedTuple):
    """A model's launches, and the operators of its decode steps by rows."""

    launches: list[Launch]
    steps: dict[int, list[str]]


def _spec(model: str, layers: int) -> ModelSpec:
    spec = spec_of(CONFIGS[model]())
    assert spec.encoder is not None
    decoder = replace(spec.decoder, layers=layers)
    if decoder.cross_layers is not None:
        decoder = replace(decoder, cross_layers=tuple(range(1, layers, 2)))  # every second one
    encoder = replace(spec.encoder, layers=min(1, spec.encoder.layers))
    return replace(spec, encoder=encoder, decoder=decoder, output_bias=False)


def _decoder(model: str, layers: int, device: torch.device) -> Iterator[tuple[int, Callable[[], object]]]:
    """Decode steps of some numbers of rows, each to be called."""
    spec = _spec(model, layers)
    decoder = DecoderStack(spec, tied_output=False, place=Placement(device, torch.bfloat16, Group()))
    decoder.prepare()
    config, stack = EngineConfig("model", device="cuda", max_num_seqs=128), spec.decoder
    longest = min(config.max_decoder_length, stack.max_positions or config.max_decoder_length)
    config = replace(config, max_decoder_length=longest)
    pool = KVPool(spec.kv_planes, PAGES + 1, stack.shared_heads, 64, stack.head_dim, device, torch.bfloat16)
    state = DecodeState(
        config, device, 64, PAGES, drafts=True, cross_planes=1, spans=spec.media_token_id is not None
    )

    def step(kind: int, rows: int) -> object:
        return _decode(decoder, state, pool, kind, torch.zeros(4, rows, dtype=torch.int64, device=device))

    for rows in (1, 8, 32, 128):
        yield rows, lambda rows=rows: step(SINGLE, rows)  # type: ignore[misc]
    state.make_beams()
    yield 0, lambda: step(BEAM, 128)

    def others() -> None:
        """An admission, prefills and drafts."""
        assert spec.encoder is not None
        for packet in warm_up.steps(config, spec, 64, PAGES):
            state.take(packet)
            if len(packet.admissions):
                slots = state.take_inputs(packet, [0])
                hidden = torch.zeros(len(slots), spec.encoder.d_model, dtype=torch.bfloat16, device=device)
                decoder.admit(hidden, slots, pool)
            decoder(state.batch(packet), pool)

    yield 0, others


@cache
def traced(model: str, layers: int = 1) -> Traced:
    steps: dict[int, list[str]] = {}
    device = torch.device("cuda", 0)
    with FakeCuda(meta=True) as cuda:
        for rows, run in _decoder(model, layers, device):
            before = len(cuda.operators)
            run()
            if rows:
                steps[rows] = cuda.operators[before:]
        spec = _spec(model, layers).encoder
        assert spec is not None
        encoder = EncoderStack(spec, Placement(device, torch.bfloat16, Group()))
        encoder.prepare()
        length = spec.max_positions or 350
        encoder.encode(
            torch.zeros(8 * length, spec.d_model, dtype=torch.bfloat16, device=device), [length] * 8
        )
        return Traced(list(cuda.launches), steps)


# Whisper's own history, of 448 positions at most, is never split. Every second one of Llama's layers attends
# to the image instead of the text; in the others, rotary positions take seven launches.
@pytest.mark.parametrize(
    ("model", "layer", "launches", "split", "merges"),
    [
        ("flan-t5-xl", 1, 13, (1, 8), 2), ("bart-large", 1, 13, (1, 8), 2),
        ("t5-small", 1, 13, (1, 8, 32), 2), ("whisper-large-v3", 1, 13, (1, 8), 1),
        ("llama-3.2-11b-vision", 2, 17, (1, 8), 1), ("llama-3.2-11b-vision", 3, 14, (1, 8), 1),
    ],
)  # fmt: skip
def test_launches_of_a_decoder_layer(
    model: str, layer: int, launches: int, split: tuple[int, ...], merges: int
) -> None:
    """Thirteen of T5's, BART's and Whisper's, and a merge for each attention whose keys are split, where the
    batch is too small for the device. layer: from 0 on."""
    two, three = traced(model, layer), traced(model, layer + 1)
    for rows in (1, 8, 32, 128):
        more = list(three.steps[rows])
        for name in two.steps[rows]:
            more.remove(name)
        expected = merges if rows in split else 0
        assert (more.count("merge"), len(more)) == (expected, launches + expected), rows


@pytest.mark.parametrize("op", ["paged_self_attention", "paged_cross_attention"])
@pytest.mark.parametrize("rows", [(1,), (2, 16), (17, 64, 80, 1000, 1024)])
@pytest.mark.parametrize("ways", [1, 4])
def test_what_changes_from_step_to_step_compiles_nothing(op: str, rows: tuple[int, ...], ways: int) -> None:
    """Sequences, the rows of each and of others before them, and the width of the page table: one kernel for
    all that have its tiles. ways: of splitting keys."""
    device = torch.device("cuda", 0)
    with FakeCuda(meta=True) as cuda, kernels.splitting(ways):
        pool = torch.zeros(2, 9, 3, 64, 64, dtype=torch.bfloat16, device=device)
        for sequences, width, most in product((1, 3, 16), (1, 5, 16, 64), rows):
            table = torch.zeros(sequences, width + 3, dtype=torch.int32, device=device)[:, :width]
            lengths = torch.zeros(sequences, dtype=torch.int32, device=device)
            before = sequences % 3
            q = torch.zeros(before + sequences * most, 3, 64, dtype=torch.bfloat16, device=device)
            sums = torch.zeros(q.shape[:2], device=device)
            groups = kernels.RowGroups(torch.zeros(sequences + 1, dtype=torch.int32, device=device), most)
            kv = kernels.PagedKV(pool[0], pool[1], table, lengths)
            getattr(kernels, op)(q[before:], kv, groups, kernels.Scores(1.0), sums[before:])
    assert len({launch.key for launch in cuda.launches}) == (1 if ways == 1 else 2)


class Taken(NamedTuple):
    registers: int  # of a thread
    stack: int  # bytes of a thread that are spilled to memory
    shared: int  # bytes of a program
    barriers: int  # in the program's text


def taken(launch: Launch) -> Taken:
    compiled = launch.compiled()
    registers, stack = _cubin(compiled.asm["cubin"])
    return Taken(registers, stack, compiled.metadata.shared, compiled.asm["ptx"].count("bar.sync"))


def _cubin(cubin: bytes) -> tuple[int, int]:
    """Registers of a thread, and bytes of its stack, as CUDA's ELF says."""
    (sections,) = struct.unpack_from("<Q", cubin, 0x28)
    size, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
    read = [struct.unpack_from("<IIQQQQIIQQ", cubin, sections + number * size) for number in range(count)]

    def name(section: tuple[int, ...]) -> str:
        start = read[names][4] + section[0]
        return cubin[start : cubin.index(b"\0", start)].decode()

    registers = stack = 0
    for section in read:
        if name(section) == ".nv.info":
            at, end = section[4], section[4] + section[5]
            while at < end:
                form, attribute, length = struct.unpack_from("<BBH", cubin, at)
                if form == 4 and attribute in (_REGISTERS, _STACK):  # the kernel's number, then the value
                    (value,) = struct.unpack_from("<I", cubin, at + 8)
                    registers = max(registers, value) if attribute == _REGISTERS else registers
                    stack = max(stack, value) if attribute == _STACK else stack
                at += 4 + (length if form == 4 else 0)
    return registers, stack


# At most, of all variants at that model's shapes. Registers with some room for other versions of Triton, up
# to where fewer programs would fit a multiprocessor; encoder attention has all that there are.
BOUNDS: Final = {
    "flan-t5-xl": {
        "gather_rows": Taken(48, 0, 0, 0),
        "rms_norm": Taken(40, 0, 16, 2),
        "gated_gelu": Taken(40, 0, 0, 0),
        "write_kv": Taken(40, 0, 0, 0),
        "one_row": Taken(64, 0, 1024, 11),
        "merge": Taken(64, 0, 0, 0),
        "row_block": Taken(168, 32, 57344, 10),
        "bias_tiles": Taken(72, 0, 0, 0),
        "encoder_attention": Taken(255, 64, 98304, 15),
    },
    "t5-small": {
        "gather_rows": Taken(48, 0, 0, 0),
        "rms_norm": Taken(32, 0, 16, 2),
        "write_kv": Taken(32, 0, 0, 0),
        "one_row": Taken(64, 0, 1024, 11),
        "merge": Taken(64, 0, 0, 0),
        "row_block": Taken(168, 32, 57344, 10),
        "bias_tiles": Taken(72, 0, 0, 0),
        "encoder_attention": Taken(255, 64, 98304, 15),
    },
    "bart-large": {
        "gather_rows": Taken(48, 0, 0, 0),
        "add_layer_norm": Taken(40, 0, 16, 5),
        "write_kv": Taken(32, 0, 0, 0),
        "one_row": Taken(64, 0, 1024, 11),
        "merge": Taken(64, 0, 0, 0),
        "row_block": Taken(168, 32, 40960, 10),
        "encoder_attention": Taken(255, 0, 65536, 7),
    },
    "whisper-large-v3": {
        "gather_rows": Taken(48, 0, 0, 0),
        "add_layer_norm": Taken(48, 0, 16, 5),
        "write_kv": Taken(40, 0, 0, 0),
        "one_row": Taken(64, 0, 1024, 11),
        "merge": Taken(64, 0, 0, 0),
        "row_block": Taken(168, 32, 40960, 12),
        "encoder_attention": Taken(255, 0, 65536, 7),
    },
    "llama-3.2-11b-vision": {
        "gather_rows": Taken(48, 0, 0, 0),
        "rms_norm": Taken(40, 0, 32, 2),
        "write_kv": Taken(32, 0, 0, 0),
        "one_row": Taken(80, 0, 2048, 12),
        "merge": Taken(64, 0, 0, 0),
        "row_block": Taken(208, 0, 81920, 12),
    },
}


@pytest.mark.parametrize("model", BOUNDS)
def test_resources(model: str) -> None:
    """Small batches and large ones, with and without a merge, admissions, prefills, drafts and beams; the
    encoder. Four heads of Llama's queries share one of the keys."""
    most: dict[str, Taken] = {}
    for launch in {launch.key: launch for launch in traced(model, 2).launches}.values():
        # What some splits take is between what none and many do.
        if model == "flan-t5-xl" or launch.constant("SPLITS") != splits.SPLITS[1]:
            found = taken(launch)
            most[launch.name] = Taken(*map(max, zip(found, most.get(launch.name, found), strict=True)))
    assert most.keys() == BOUNDS[model].keys()
    for name, found in most.items():
        assert all(have <= may for have, may in zip(found, BOUNDS[model][name], strict=True)), (name, found)
    queries = {launch.constant("GROUP") for launch in traced(model, 2).launches if launch.name == "one_row"}
    assert queries == {4 if "llama" in model else 1}


def test_layers_of_turbo_are_those_of_large() -> None:
    spec = _spec("whisper-large-v3", 1)
    turbo = WhisperConfig(**CONFIGS["whisper-large-v3"]() | {"decoder_layers": 4})
    made = spec_of(_config("WhisperForConditionalGeneration", turbo))
    assert replace(spec.decoder, layers=4) == made.decoder
