"""CUDA without a GPU: streams, events, graphs, devices and copies, as far as they can go wrong.

Tensors of the fake device have their numbers in the host's memory, and operators run at once, so that an
engine answers what it answers on a CPU. What a GPU would do later, in which order and with whose memory, is
kept by clocks: each stream counts its operators, and knows up to which of another's it has waited. The real
launchers of the Triton kernels run, with their kernels recorded; the kernels' twins make the numbers.

A `Hazard` is raised for

- an access that no wait orders after the operator that made the tensor, or that reads what it overwrites;
- memory that goes back to its stream while another may still use it;
- work on a device that is not the thread's current one;
- in a served step and in a capture: whatever makes the host wait, a copy from more than 64 KiB of pageable
  memory, an allocation of pinned memory, a kernel to be compiled, a graph to be captured;
- in a served step also more device memory at once than `most_bytes`;
- a capture while garbage is collected, and graphs of a stream that has no priority.
"""

# ruff: noqa: ARG002, ARG005  (the signatures are CUDA's)
from __future__ import annotations

import gc
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields, is_dataclass
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import torch
from launches import Launch, recorded
from torch.overrides import TorchFunctionMode
from triton import knobs

from tandem.kernels import compiling, dispatch, reference, values
from tandem.kernels.triton import ops, splits
from tandem.workers import device as worker_device

PAGEABLE_BYTES = 2**16  # more of it waits for the stream
# What the host reads: numbers, or how many there are.
_READS = {
    "item", "tolist", "nonzero", "argwhere", "__bool__", "__int__", "__float__", "__complex__", "__index__",
    "__contains__", "__array__", "__format__", "__repr__", "is_nonzero", "cpu", "numpy", "masked_select",
    "unique", "unique_consecutive", "unique_dim", "bincount", "equal", "allclose",
}  # fmt: skip
# What is made of the host's numbers.
_SENT = {"tensor", "as_tensor", "asarray", "new_tensor", "scalar_tensor"}
_FACTORIES = {"empty", "empty_like", "new_empty", "empty_strided"}
_CHANGED = {"write_kv": (2, 3), "match_prompt_tokens": (2,), "gather_rows": (1,)}  # arguments, by op


class Hazard(AssertionError):
    """What would be wrong, or would wait, on a GPU."""


class Stream:
    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.device, self.priority = torch.device("cuda", _cuda().index(device)), priority
        self.done = 0  # operators so far
        self.clock: defaultdict[Stream, int] = defaultdict(int)  # how far others were waited for

    def tick(self) -> int:
        self.after(_cuda().host)
        self.done += 1
        return self.done

    def after(self, clock: dict[Stream, int]) -> None:
        for stream, count in clock.items():
            self.clock[stream] = max(self.clock[stream], count)

    def now(self) -> dict[Stream, int]:
        return {**self.clock, self: self.done}

    def wait_stream(self, other: Stream) -> None:
        self.after(other.now())

    def wait_event(self, event: Event) -> None:
        self.after(event.clock)

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        _cuda().waits("a stream is waited for")
        _cuda().learn(self.now())


class Event:
    def __init__(self, enable_timing: bool = False) -> None:
        self.clock: dict[Stream, int] = {}
        self._asked = 0

    def record(self, stream: Stream | None = None) -> None:
        self.clock, self._asked = (stream or _cuda().stream()).now(), 0

    def query(self) -> bool:
        """Not yet when it is first asked."""
        _cuda().not_captured("an event is asked")
        self._asked += 1
        if self._asked > 1:
            _cuda().learn(self.clock)
        return self._asked > 1

    def synchronize(self) -> None:
        """What a step's numbers are waited for with: allowed while serving."""
        _cuda().not_captured("an event is waited for")
        _cuda().learn(self.clock)

    def elapsed_time(self, end: Event) -> float:
        return 0.001  # milliseconds


class Block:
    """Memory of a device, or pinned memory (`stream` is None)."""

    def __init__(self, stream: Stream | None, captured: bool = False) -> None:
        self.stream, self._captured = stream, captured
        self.made: dict[Stream, int] = {}
        self.read: dict[Stream, int] = {}
        self.kept: set[Stream] = set()  # `record_stream`
        self._cuda = _cuda()

    def access(self, stream: Stream, at: int, *, writes: bool) -> None:
        for earlier in (self.made, self.read) if writes else (self.made,):
            for other, count in earlier.items():
                if other is not stream and stream.clock[other] < count:
                    raise Hazard("a tensor is used before the stream that makes or reads it was waited for")
        if writes:
            self.made, self.read = {stream: at}, {}
        else:
            self.read[stream] = at

    def host_access(self, *, writes: bool) -> None:
        for earlier in (self.made, self.read) if writes else (self.made,):
            for stream, count in earlier.items():
                if self._cuda.host.get(stream, 0) < count:
                    raise Hazard("the host uses pinned memory before a copy of it is done")

    def __del__(self) -> None:
        if self.stream is None or self._captured or not self._cuda.active:
            return
        for stream, count in (*self.made.items(), *self.read.items()):
            known = max(self.stream.clock[stream], self._cuda.host.get(stream, 0))
            if stream is not self.stream and stream not in self.kept and known < count:
                self._cuda.late.append("memory was given back while another stream may use it")


class _Followed(torch.Tensor):
    """A tensor whose memory is followed."""

    block: Block

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _cuda().run(func, args, kwargs or {})


class Pinned(_Followed):
    def is_pinned(self, device: Any = None) -> bool:
        return True


class OnDevice(_Followed):
    @property
    def device(self) -> torch.device:  # type: ignore[override]
        assert self.block.stream is not None
        return self.block.stream.device

    is_cuda, is_cpu, is_meta = True, False, False

    def record_stream(self, stream: Stream) -> None:  # type: ignore[override]
        self.block.kept.add(stream)


class Graph:
    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.accesses: dict[Block, bool] = {}  # whether it is written
        self.stream: Stream | None = None  # it was captured in

    def replay(self) -> None:
        cuda = _cuda()
        cuda.launched(self.accesses)
        with torch._C.DisableTorchFunction():
            for call in self.calls:
                call()


class FakeCuda(TorchFunctionMode):
    """In it, torch has so many GPUs. `most_bytes`: see above. meta: tensors have no numbers, and of any size;
    the host reads zeros. processors: of each GPU.

    `launches` has those of Triton's kernels, `operators` the names of all, both in order; `sent_bytes` is how
    much the host has sent.
    """

    def __init__(
        self, devices: int = 1, *, most_bytes: int | None = None, meta: bool = False, processors: int = 132
    ) -> None:
        super().__init__()
        self._processors, self.sent_bytes = processors, 0
        self._devices, self.most_bytes, self._memory = devices, most_bytes, "meta" if meta else "cpu"
        self.launches: list[Launch] = []
        self.operators: list[str] = []
        self.late: list[str] = []  # hazards that could not be raised where they were seen
        self.host: dict[Stream, int] = {}  # how far the host has waited
        self.active, self._serving, self._graph = False, False, None
        self.graphs: list[Graph] = []
        self._compiled: set[str] = set()
        self._here = threading.local()
        self._exit = ExitStack()

    # -- the surface

    def __enter__(self) -> Self:
        global _CURRENT
        _CURRENT, self.active = self, True
        self._defaults = [Stream(index) for index in range(self._devices)]
        run, outside = threading.Thread.run, self._in_mode
        surface: dict[str, Any] = {
            "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "graph": self._capture,
            "stream": self._on, "device": self._on_device, "set_device": self._set_device,
            "current_stream": self.stream, "current_device": lambda: self.index(None),
            "device_count": lambda: self._devices, "is_available": lambda: True,
            "graph_pool_handle": lambda: (0, 1), "synchronize": self._synchronize,
            "empty_cache": lambda: self.waits("memory goes back to the driver"),
            "mem_get_info": lambda device=None: (2**30, 2**30),
            "get_device_properties": lambda device: SimpleNamespace(multi_processor_count=self._processors),
        }  # fmt: skip
        for name, value in surface.items():
            self._exit.enter_context(mock.patch.object(torch.cuda, name, value))
        self._exit.enter_context(mock.patch.object(threading.Thread, "run", lambda t: outside(run, t)))
        self._exit.enter_context(recorded(self._launch))
        self._exit.enter_context(mock.patch.object(dispatch, "_triton", return_value=_Ops))
        self._exit.enter_context(mock.patch.object(knobs.runtime, "jit_post_compile_hook", None))
        compiling.watch_triton()
        self._forget()
        super().__enter__()
        return self

    def __exit__(self, *about: Any) -> None:
        super().__exit__(*about)
        self._exit.close()
        self._forget()
        self.active = False
        if self.late and about[0] is None:
            raise Hazard(self.late[0])

    @staticmethod
    def _forget() -> None:
        for cached in (values._numbers, worker_device._ring, splits._processors):
            cached.cache_clear()

    def _in_mode(self, run: Callable[..., None], thread: threading.Thread) -> None:
        with _Again(self):
            run(thread)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Steps that requests wait for."""
        self._serving = True
        try:
            yield
        finally:
            self._serving = False

    def index(self, device: Any) -> int:
        if isinstance(device, str):
            device = torch.device(device)
        if isinstance(device, torch.device):
            device = device.index
        return getattr(self._here, "index", 0) if device is None else device

    def stream(self, device: Any = None) -> Stream:
        index = self.index(device)
        own: dict[int, Stream] = self._here.__dict__.setdefault("streams", {})
        return own.get(index, self._defaults[index])

    def _set_device(self, device: Any) -> None:
        self._here.index = self.index(device)

    @contextmanager
    def _on_device(self, device: Any) -> Iterator[None]:
        before = self.index(None)
        self._set_device(device)
        try:
            yield
        finally:
            self._set_device(before)

    @contextmanager
    def _on(self, stream: Stream) -> Iterator[None]:
        index = self.index(stream.device)
        before = self.stream(index)
        with self._on_device(index):
            self._here.streams[index] = stream
            try:
                yield
            finally:
                self._here.streams[index] = before

    def _synchronize(self, device: Any = None) -> None:
        self.waits("the device is waited for")
        for stream in {*self._defaults, *self.host, *self.stream().clock, self.stream()}:
            self.learn(stream.now())

    @contextmanager
    def _capture(
        self, graph: Graph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> Iterator[None]:
        stream = stream or Stream()
        for wrong, why in (
            (self._serving, "a graph is captured in a served step"),
            (gc.isenabled(), "garbage may be collected during a capture"),
            (stream in self._defaults, "the default stream cannot be captured"),
            (stream.priority >= 0, "a graph's kernels wait for those of any other stream"),
            (capture_error_mode != "thread_local", "another thread's work ends this capture"),
        ):
            if wrong:
                raise Hazard(why)
        with self._on(stream):
            graph.stream, self._graph = stream, graph
            try:
                yield
            finally:
                self._graph = None
        self.graphs.append(graph)

    def forget_kernels(self) -> None:
        """From here on each is compiled anew."""
        self._compiled.clear()

    # -- what is checked

    @property
    def strict(self) -> bool:
        """Whether requests, or a capture, are in the way of waiting."""
        return self._serving or self._graph is not None

    def waits(self, why: str) -> None:
        if self.strict:
            raise Hazard(f"the host waits: {why}")

    def not_captured(self, why: str) -> None:
        if self._graph is not None:
            raise Hazard(f"in a capture {why}")

    def learn(self, clock: dict[Stream, int]) -> None:
        for stream, count in clock.items():
            self.host[stream] = max(self.host.get(stream, 0), count)

    def launched(self, accesses: dict[Block, bool]) -> None:
        """An operator in the current stream, of this memory."""
        stream = self.stream()
        for block in accesses:
            if block.stream is not None and block.stream.device != stream.device:
                raise Hazard(f"work on {block.stream.device}, and the thread's device is {stream.device}")
        if self._graph is not None:  # it runs when the graph does
            for block, writes in accesses.items():
                self._graph.accesses[block] = writes or self._graph.accesses.get(block, False)
            return
        at = stream.tick()
        for block, writes in accesses.items():
            block.access(stream, at, writes=writes)

    def _launch(self, launch: Launch) -> None:
        self.launches.append(launch)
        self.operators.append(launch.name)
        if launch.key not in self._compiled:
            self._compiled.add(launch.key)
            if self.strict:
                raise Hazard(f"a kernel is compiled: {launch.name}")
            knobs.runtime.jit_post_compile_hook(key=launch.key)  # type: ignore[misc]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """A function of torch, with tensors of any kind."""
        name = getattr(func, "__name__", "")
        given = list(_tensors((args, kwargs)))
        devices = [one for one in given if isinstance(one, OnDevice)]
        target = _target(name, args, kwargs)
        with torch._C.DisableTorchFunction():
            if name == "to" and target is not None:
                return self._moved(args[0], target, func, args, kwargs)
            if name == "copy_" and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
                return self._copied(args[0], args[1], waits=not kwargs.get("non_blocking"))
            if devices and name in _READS:
                return self._read(func, args, kwargs)
            if devices or (target is not None and target.type == "cuda"):
                return self._operator(func, name, args, kwargs, given, target)
            return self._on_host(func, name, args, kwargs, given)

    def _operator(
        self, func: Any, name: str, args: Any, kwargs: Any, given: list[torch.Tensor], target: Any
    ) -> Any:
        if name in _SENT:
            self.waits("a tensor is made of the host's numbers")
        if why := _read_on_the_way(name, args, kwargs):
            self.waits(why)
        if any(not isinstance(one, OnDevice) and one.dim() for one in given):
            raise Hazard(f"tensors on two devices: {name}")
        if target is not None and "device" in kwargs:
            kwargs = {**kwargs, "device": self._memory}
        plain_args, plain_kwargs = _plain(args), _plain(kwargs)
        out = func(*plain_args, **plain_kwargs)
        stream = self.stream(target)
        if given and any(isinstance(one, OnDevice) for one in given):
            stream = self.stream(next(one for one in given if isinstance(one, OnDevice)).device)
        blocks = {_storage(one): one.block for one in given if isinstance(one, OnDevice)}
        made = [one for one in _tensors(out) if _storage(one) not in blocks]
        in_place = _in_place(name) or "out" in kwargs
        accesses = dict.fromkeys(blocks.values(), False) if made or in_place else {}
        changed = kwargs.get("out", args[0]) if in_place else None
        if isinstance(changed, OnDevice):
            accesses[changed.block] = True
        for one in made:
            block = blocks[_storage(one)] = self._allocated(one.nbytes, stream)
            accesses[block] = True
        if accesses:
            self.launched(accesses)
        if accesses and name not in _FACTORIES:
            self.operators.append(name)
            if self._graph is not None:
                outs = list(_tensors(out))
                self._graph.calls.append(lambda: _again(outs, func(*plain_args, **plain_kwargs)))
        if isinstance(changed, OnDevice):
            return changed
        return _wrapped(out, blocks)

    def _allocated(self, nbytes: int, stream: Stream) -> Block:
        if self._serving and self.most_bytes is not None and nbytes > self.most_bytes:
            raise Hazard(f"{nbytes} bytes of device memory in a served step")
        return Block(stream, captured=self._graph is not None)

    def _moved(self, source: Any, target: torch.device, func: Any, args: Any, kwargs: Any) -> Any:
        waits = not kwargs.get("non_blocking")
        dtype = next((one for one in (*args, *kwargs.values()) if isinstance(one, torch.dtype)), source.dtype)
        if isinstance(source, OnDevice):
            if target.type == "cuda":
                assert target.index in (None, source.device.index), "from one GPU to another"
                return self.run(torch.Tensor.to, (source, dtype), {})
            made = torch.empty(source.shape, dtype=dtype).as_subclass(Pinned)
            made.block = Block(None)
            self._copied(made, source, waits=waits)
            return made
        if target.type == "cpu":
            return func(*_plain(args), **_plain(kwargs))
        made = torch.empty(source.shape, dtype=dtype, device=self._memory).as_subclass(OnDevice)
        made.block = self._allocated(made.nbytes, self.stream(target))
        return self._copied(made, source, waits=waits)

    def _copied(self, to: Any, source: Any, *, waits: bool) -> Any:
        """Between host and device."""
        if waits and isinstance(to, OnDevice):
            waits = not isinstance(source, Pinned) and source.nbytes > 8
        if waits:
            self.waits("a copy that blocks")
        host = source if isinstance(to, OnDevice) else to
        self.sent_bytes += source.nbytes if host is source else 0
        if not isinstance(host, Pinned):
            self.not_captured("memory is copied that is not pinned")
            if self.strict and host.nbytes > PAGEABLE_BYTES:
                raise Hazard(f"a copy of {host.nbytes} bytes of pageable memory waits for its stream")
        accesses = {to.block: True} if isinstance(to, _Followed) else {}
        if isinstance(source, _Followed):
            accesses.setdefault(source.block, False)
        self.launched(accesses)
        plain_to, plain_source = _plain(to), _plain(source)
        if self._memory == "cpu":
            plain_to.copy_(plain_source)
        return to

    def _read(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.waits(f"the host reads: {func.__name__}")
        for stream in {*self._defaults, self.stream()}:
            self.learn(stream.now())
        args, kwargs = _plain(args), _plain(kwargs)
        if self._memory == "meta":
            args = tuple(torch.zeros_like(one, device="cpu") if torch.is_tensor(one) else one for one in args)
        out = func(*args, **kwargs)
        return out.clone() if isinstance(out, torch.Tensor) else out

    def _on_host(self, func: Any, name: str, args: Any, kwargs: Any, given: list[torch.Tensor]) -> Any:
        if kwargs.get("pin_memory"):
            self.waits("pinned memory is allocated")
            made = func(*args, **{**kwargs, "pin_memory": False}).as_subclass(Pinned)
            made.block = Block(None)
            return made
        blocks = {_storage(one): one.block for one in given if isinstance(one, Pinned)}
        out = func(*_plain(args), **_plain(kwargs))
        if not blocks:
            return out
        if name == "unbind":  # its parts are used each by itself
            return tuple(_wrapped(one, {_storage(one): Block(None)}, Pinned) for one in out)
        found = [_storage(one) in blocks for one in _tensors(out)]
        view = bool(found) and all(found) and not _in_place(name)
        if name in _READS or (found and not view):
            for block in blocks.values():
                block.host_access(writes=_in_place(name))
        return _wrapped(out, blocks, Pinned)


class _Again(TorchFunctionMode):
    """A mode in another thread."""

    def __init__(self, cuda: FakeCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._cuda.run(func, args, kwargs or {})


def _op(name: str) -> Callable[..., Any]:
    """The real launcher, whose kernels are recorded, and its twin's numbers."""
    launcher, twin = getattr(ops, name), getattr(reference, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        cuda = _cuda()
        out = launcher(*args, **kwargs)
        changed = [one for at in _CHANGED.get(name, ()) if at < len(args) for one in _tensors(args[at])]
        if len(args) > 4 and name.startswith("paged") and isinstance(args[-1], torch.Tensor):
            changed.append(args[-1])
        given = [one for one in _tensors((args, kwargs)) if isinstance(one, OnDevice)]
        accesses = {one.block: False for one in given}
        accesses |= {one.block: True for one in (*_tensors(out), *changed)}  # type: ignore[attr-defined]
        if name == "gather_rows":
            accesses |= {one.block: False for one in _tensors(args[1]) if one is not args[1].beam_cells}  # type: ignore[attr-defined]
        cuda.launched(accesses)
        if cuda._memory == "meta":
            return out
        with torch._C.DisableTorchFunction():
            plain_args, plain_kwargs, outs = _plain(args), _plain(kwargs), list(_tensors(_plain(out)))

            def compute() -> None:
                _again(outs, twin(*plain_args, **plain_kwargs))

            compute()
        if cuda._graph is not None:
            cuda._graph.calls.append(compute)
        return out

    return run


_Ops = type("FakeTriton", (dispatch.Reference,), {name: staticmethod(_op(name)) for name in ops.__all__})
_CURRENT: FakeCuda | None = None


def _cuda() -> FakeCuda:
    assert _CURRENT is not None, "outside of FakeCuda"
    return _CURRENT


def _again(outs: list[torch.Tensor], results: Any) -> None:
    """Puts results where those of the first time are."""
    for out, result in zip(outs, _tensors(results), strict=True):
        if _storage(out) != _storage(result):
            out.copy_(result)


def _in_place(name: str) -> bool:
    return (
        name == "__setitem__"
        or (name[:3] == "__i" and name not in ("__index__", "__int__", "__invert__"))
        or (name.endswith("_") and not name.endswith("__"))
    )


def _read_on_the_way(name: str, args: Any, kwargs: dict[str, Any]) -> str | None:
    """What of an operator's arguments the host reads, or sends, before it can launch it."""
    if name in ("__getitem__", "__setitem__", "index_put", "index_put_"):
        given = args[1]
        for part in given if isinstance(given, tuple | list) and not _numbers(given) else (given,):
            if isinstance(part, slice):
                if any(isinstance(one, torch.Tensor) for one in (part.start, part.stop, part.step)):
                    return "a slice whose ends are on the device"
            elif isinstance(part, list):
                return "an index that the host sends"
            elif isinstance(part, torch.Tensor) and (
                not isinstance(part, OnDevice) or part.dtype in (torch.bool, torch.uint8) or not part.dim()
            ):
                return "an index that the host has to read or send"
    if name == "where" and len(args) + len(kwargs) == 1:
        return "how many are true"
    if name == "repeat_interleave" and kwargs.get("output_size") is None and list(_tensors(args[1:])):
        return "how many there will be"
    if name == "segment_reduce" and not kwargs.get("unsafe"):
        return "whether the lengths add up"
    if name == "one_hot" and len(args) < 2 and "num_classes" not in kwargs:
        return "how many classes there are"
    if name in ("arange", "full", "linspace", "new_full", "tensor_split"):
        numbers = args[1:] if name in ("new_full", "tensor_split") else args
        if any(isinstance(one, OnDevice) for one in _tensors((numbers, kwargs))):
            return "a number that is on the device"
    return None


def _numbers(given: Any) -> bool:
    return isinstance(given, list) and all(isinstance(one, int | bool) for one in given)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _target(name: str, args: Any, kwargs: dict[str, Any]) -> torch.device | None:
    """The device that a call names."""
    named = kwargs.get("device")
    if named is None and name == "to":
        named = next((one for one in args[1:] if isinstance(one, str | torch.device)), None)
    return None if named is None else torch.device(named)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for one in value:
            yield from _tensors(one)
    elif isinstance(value, dict):
        yield from _tensors(tuple(value.values()))
    elif is_dataclass(value) and not isinstance(value, type):
        yield from _tensors(tuple(getattr(value, field.name) for field in fields(value)))


def _plain(value: Any) -> Any:
    """The same, of plain tensors of the host."""
    if isinstance(value, _Followed):
        return value.as_subclass(torch.Tensor)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_plain, value))
    if isinstance(value, tuple | list):
        return type(value)(map(_plain, value))
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return type(value)(**{field.name: _plain(getattr(value, field.name)) for field in fields(value)})
    return value


def _wrapped(value: Any, blocks: dict[int, Block], kind: type[_Followed] = OnDevice) -> Any:
    if isinstance(value, torch.Tensor):
        if _storage(value) not in blocks:
            return value
        made = value.as_subclass(kind)
        made.block = blocks[_storage(value)]
        return made
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_wrapped(one, blocks, kind) for one in value))
    if isinstance(value, tuple | list):
        return type(value)(_wrapped(one, blocks, kind) for one in value)
    return value
