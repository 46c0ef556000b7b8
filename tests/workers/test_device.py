"""Streams and copies, with a fake in CUDA's place that sees what a GPU would do wrong."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from fake_cuda import FakeCuda, Hazard, Pinned

from tandem import kernels
from tandem.workers import device as worker_device
from tandem.workers.device import HostCopy, Streams, fill, send, send_ids

CUDA = torch.device("cuda", 0)


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with FakeCuda(2) as made:
        yield made


def on_host(x: Tensor) -> Tensor:
    return HostCopy(x).wait()[0]


# -- the fake sees what it is there for


def _unwaited(streams: Streams, x: Tensor) -> object:
    made = streams.beside(lambda: x.new_ones(4) + 1)
    return made._made + 1


def _given_back(streams: Streams, x: Tensor) -> None:
    work = streams.beside(lambda: x.new_ones(4) + 1)
    made = work._made
    assert work._end is not None
    torch.cuda.current_stream().wait_event(work._end)
    _ = made + 1  # without `record_stream`


def _overwritten(streams: Streams, x: Tensor) -> object:
    del streams
    host = torch.empty(4, pin_memory=True)
    x.copy_(host, non_blocking=True)
    return host.zero_()


def _read_early(streams: Streams, x: Tensor) -> object:
    del streams
    return x.to("cpu", non_blocking=True).tolist()


@pytest.mark.parametrize("wrong", [_unwaited, _overwritten, _read_early])
def test_what_no_wait_orders(wrong: Callable[[Streams, Tensor], object], cuda: FakeCuda) -> None:
    streams = Streams.of(CUDA)
    with streams.on(), pytest.raises(Hazard, match="before"):
        wrong(streams, torch.zeros(4, device=CUDA))
    cuda.late.clear()  # what was not waited for is also given back too early


def test_memory_that_goes_back_too_early() -> None:
    def run() -> None:
        with FakeCuda():
            streams = Streams.of(CUDA)
            with streams.on():
                _given_back(streams, torch.zeros(4, device=CUDA))

    with pytest.raises(Hazard, match="given back"):
        run()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x[x > 0],
        lambda x: x[[0, 1]],
        lambda x: x[x.long().sum() - 4],
        lambda x: x[: x.long()[0]],
        lambda x: x.index_put_((x > 0,), x[0]),
        lambda x: x.masked_select(x > 0),
        lambda x: torch.where(x > 0),
        lambda x: torch.unique(x),
        lambda x: x.repeat_interleave(x.long()),
        lambda x: torch.segment_reduce(x, "sum", lengths=x.long()[:1] * 4, axis=0),
        lambda x: torch.arange(x.sum(), device=x.device),
        lambda x: torch.equal(x, x),
        lambda x: bool(x.sum()),
        lambda x: 1.0 in x,
        lambda x: f"{x.sum()}",
        lambda x: torch.tensor([1], device=x.device),
        lambda x: torch.as_tensor([1], device=x.device),
        lambda x: x.new_tensor([1]),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: torch.zeros(20_000).to(x.device, non_blocking=True),
        lambda _: torch.empty(3, pin_memory=True),
        lambda _: torch.cuda.synchronize(),
        lambda _: torch.cuda.empty_cache(),
        lambda _: torch.cuda.current_stream().synchronize(),
        lambda x: x.new_empty(50_000),
        lambda x: kernels.rms_norm(x[None], x, 1e-6),
        lambda _: torch.cuda.graph(torch.cuda.CUDAGraph()).__enter__(),
    ],
)
def test_what_a_served_step_may_not_do(wait: Callable[[Tensor], object]) -> None:
    with FakeCuda(most_bytes=100_000) as cuda, Streams.of(CUDA).on():
        x = torch.ones(4, device=CUDA)
        with cuda.serving(), pytest.raises(Hazard):
            wait(x)


@pytest.mark.usefixtures("cuda")
def test_a_device_that_is_not_current() -> None:
    with Streams.of(torch.device("cuda", 1)).on():
        x = torch.ones(4, 4, device="cuda:1")
    with pytest.raises(Hazard, match="the thread's device"):
        kernels.rms_norm(x, x[0], 1e-6)


@pytest.mark.usefixtures("cuda")
def test_a_graph_keeps_what_the_host_gave_it() -> None:
    """And reads what is on the device when it is replayed."""
    with Streams.of(CUDA).on():
        x, factor = torch.ones(3, device=CUDA), 2
        graph = torch.cuda.CUDAGraph()
        gc.disable()
        stream = torch.cuda.current_stream()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            out = x * factor
        gc.enable()
        x += 1
        factor = 5
        graph.replay()
        assert on_host(out).tolist() == [4.0] * 3


# -- ours


@pytest.mark.parametrize("count", [1, 7, 40_000])
def test_numbers_come_through_pinned_memory(count: int, cuda: FakeCuda) -> None:
    numbers = torch.arange(count)
    with Streams.of(CUDA).on():
        send(numbers[:1], CUDA)  # the buffers are made
        with cuda.serving():
            for made in (send(numbers, CUDA), send_ids(numbers, CUDA)):
                assert made.device == CUDA
                assert made.dtype == torch.int64
                assert torch.equal(on_host(made), numbers)
            into = torch.zeros(count, dtype=torch.int64, device=CUDA)
            fill(into, numbers)
            numbers[0] = 9  # theirs by now
            assert on_host(into)[0] == 0


def test_ids_travel_as_half_as_many_bytes(cuda: FakeCuda) -> None:
    with Streams.of(CUDA).on():
        for sends, nbytes in ((send, 800), (send_ids, 400)):
            before = cuda.sent_bytes
            sends(torch.arange(100), CUDA)
            assert cuda.sent_bytes - before == nbytes


@pytest.mark.usefixtures("cuda")
def test_a_buffer_is_written_again_when_its_copy_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """With two buffers, the third copy waits for the first."""
    monkeypatch.setattr(worker_device, "_SLOTS", 2)
    with Streams.of(CUDA).on():
        made = [send(torch.full((3,), number), CUDA) for number in range(9)]
        assert [on_host(one).tolist() for one in made] == [[number] * 3 for number in range(9)]


def test_large_tensors_come_beside_what_runs(cuda: FakeCuda) -> None:
    """From read-only memory, in pieces, and in another dtype where one is asked for."""
    values = torch.from_numpy(np.arange(3_000_000, dtype=np.float32)).view(3000, 1000)
    streams = Streams.of(CUDA)
    with streams.on(), cuda.serving():
        before = torch.cuda.current_stream().now()
        coming = streams.bring(values, CUDA, torch.bfloat16)
        assert torch.cuda.current_stream().now() == before, "the steps' stream has nothing to do with it"
        found = on_host(coming.wait())
    assert torch.equal(found, values.bfloat16())
    assert isinstance(found, Pinned)


@pytest.mark.usefixtures("cuda")
def test_who_reads_waits_and_keeps_the_memory() -> None:
    streams = Streams.of(CUDA)
    with streams.on():
        weights = torch.ones(4, device=CUDA)
        work = streams.beside(lambda: weights * 3)
        assert [work.done, work.done] == [False, True]
        read = work.wait() + 1
        del work  # while it may still be read
        assert on_host(read).tolist() == [4.0] * 4


@pytest.mark.usefixtures("cuda")
def test_steps_come_first() -> None:
    streams = Streams.of(CUDA)
    with streams.on():
        steps = torch.cuda.current_stream().priority

        def priority() -> Tensor:
            assert torch.cuda.current_stream().priority > steps
            return torch.ones(1, device=CUDA)

        streams.beside(priority)
    assert steps < 0


@pytest.mark.usefixtures("cuda")
def test_threads_have_devices_of_their_own() -> None:
    streams = Streams.of(torch.device("cuda", 1))
    with streams.on():
        x = torch.ones(2, device="cuda:1")
        made: list[list[float]] = []

        def other() -> None:
            assert torch.cuda.current_device() == 0
            with streams.on():
                made.append(on_host(x + 1).tolist())

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert made == [[2.0, 2.0]]
    assert torch.cuda.current_device() == 0


def test_a_cpu_has_none() -> None:
    cpu, numbers = torch.device("cpu"), torch.arange(3)
    streams = Streams.of(cpu)
    assert send(numbers, cpu) is send_ids(numbers, cpu) is numbers
    with streams.on():
        work = streams.beside(lambda: numbers)
        assert work.done
        assert work.wait() is numbers
        assert streams.bring(numbers, cpu, torch.int64).wait() is numbers
        assert HostCopy(numbers).wait()[0] is numbers
