"""For how long nobody is answered when a part around the engines dies, hangs, or has no room; `make chaos`.

Clients of both protocols send one request after the other. Every answer must be right, every error one that
says to try again. The seconds without an answer are measured and printed, and have limits that hold where
nothing else runs; elsewhere they are multiplied by how much longer a process takes to start there.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import pytest
from clear_answers import clear_answers
from ray.cluster_utils import Cluster
from serving import Stub, eventually, free_port, make_config, pids, text_request

from tandem import Client, SamplingParams
from tandem.cluster import launch
from tandem.cluster.config import ServeConfig
from tandem.cluster.endpoints import Endpoints
from tandem.cluster.serve_compat.actors import STARTED_AGAIN
from tandem.cluster.start import _environment, serve_settings
from tandem.cluster.telemetry import logs
from tandem.errors import TandemError

pytestmark = [pytest.mark.ray, pytest.mark.heavy]

PARAMS: dict[str, Any] = {"max_tokens": 16, "ignore_eos": True, "temperature": 0}
PROMPTS = [f"translate English to French: I have {n} dogs and a cat." for n in range(24)]
BEFORE_S = 5.0  # of answers, before anything happens
DRAIN_S = 90
AFTER_S = 10.0  # of answers, after all is back
PASSWORD = "secret"  # of a Redis
START_S = 3.5  # in which a machine with nothing else to do starts a process with the ingress' modules
# A client that stops trying for longer measures its own patience.
CHANNEL = [("grpc.max_reconnect_backoff_ms", 200), ("grpc.initial_reconnect_backoff_ms", 100)]
INGRESS, PROXY, CONTROLLER = "ServeReplica:tandem:Ingress", "ProxyActor", "ServeController"
TYPED = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "429", "503"}  # and a connection that is refused or cut:
TYPED |= {"ConnectError", "ReadError", "WriteError", "RemoteProtocolError"}
Answers = dict[str, tuple[list[int], str]]  # tokens and text by prompt
Record = Callable[[str, object], None]


@pytest.fixture
def pace() -> float:
    """How much longer this machine takes, at this moment, than one that does nothing else; at least 1."""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", "import tandem.cluster.ingress.ingress"], check=True)
    return max(1.0, (time.monotonic() - start) / START_S)


@pytest.fixture(scope="module")
def expected() -> Answers:
    found = clear_answers(PROMPTS, **PARAMS)
    assert len(found) > len(PROMPTS) / 2
    return {prompt: (list(answer.token_ids), answer.text) for prompt, answer in found.items()}


class Load:
    """Clients of both protocols, until they are stopped. `retrying`: Tandem's client and OpenAI's, which try
    again by themselves what they are told to."""

    def __init__(
        self, endpoints: Endpoints, expected: Answers, clients: int, *, retrying: bool = False
    ) -> None:
        self.answered: dict[str, list[float]] = {"grpc": [], "http": []}  # when
        self.errors: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.slowest = 0.0
        self._expected, self._stop, self._lock = expected, threading.Event(), threading.Lock()
        self._channel = grpc.insecure_channel(endpoints.grpc[0], options=CHANNEL)
        self._stub = Stub(self._channel)
        self._http = httpx.Client(
            base_url=f"http://{endpoints.http[0]}", timeout=240, limits=httpx.Limits(max_connections=clients)
        )
        self._retrying = retrying
        self._tandem = Client(endpoints.grpc[0])
        self._openai = openai.OpenAI(base_url=f"http://{endpoints.http[0]}/v1", api_key="none")
        self._threads = [
            threading.Thread(target=self._one, args=(protocol, number), daemon=True)
            for number in range(clients)
            for protocol in self.answered
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=240)
        self._http.close()
        self._channel.close()
        self._tandem.close()
        self._openai.close()

    def _one(self, protocol: str, first: int) -> None:
        for prompt in itertools.islice(itertools.cycle(self._expected), first, None):
            if self._stop.is_set():
                return
            began, error = time.monotonic(), ""
            tokens, text = self._expected[prompt]
            right: Any = tokens if protocol == "grpc" else text
            try:
                answer = self._ask(protocol, prompt)
            except grpc.RpcError as failed:
                error = failed.code().name
            except httpx.HTTPStatusError as failed:
                error = str(failed.response.status_code)
            except (httpx.TransportError, TandemError, openai.OpenAIError) as failed:
                error = type(failed).__name__
            now = time.monotonic()
            with self._lock:
                if error:
                    self.errors[error] += 1
                elif answer == right:
                    self.answered[protocol].append(now)
                    self.slowest = max(self.slowest, now - began)
                else:
                    self.wrong.append(f"{prompt}: {answer}")
            if error:
                time.sleep(0.05)

    def _ask(self, protocol: str, prompt: str) -> Any:
        if self._retrying:
            return self._ask_until_answered(protocol, prompt)
        if protocol == "grpc":
            answer = self._stub.Generate(text_request(prompt, **PARAMS), timeout=240)
            return list(answer.outputs[0].token_ids)
        said = self._http.post("/v1/completions", json={"prompt": prompt, **PARAMS}).raise_for_status()
        return said.json()["choices"][0]["text"]

    def _ask_until_answered(self, protocol: str, prompt: str) -> Any:
        if protocol == "grpc":
            return list(self._tandem.generate(prompt, SamplingParams(**PARAMS)).outputs[0].token_ids)
        own = {"ignore_eos": PARAMS["ignore_eos"]}
        shared = {name: value for name, value in PARAMS.items() if name not in own}
        answer = self._openai.completions.create(model="quickstart", prompt=prompt, extra_body=own, **shared)
        return answer.choices[0].text

    def count(self) -> int:
        with self._lock:
            return sum(map(len, self.answered.values()))

    def both_answer(self) -> None:
        """Returns when each protocol has had an answer after this moment."""
        now = time.monotonic()

        def later(times: list[float]) -> Callable[[], bool]:
            return lambda: bool(times) and times[-1] > now

        for protocol, times in self.answered.items():
            eventually(later(times), f"no answer over {protocol}")

    def gaps(self, since: float, until: float) -> dict[str, float]:
        """The longest time without an answer in that time, by protocol, in seconds."""
        found = {}
        for protocol, times in self.answered.items():
            before = max((at for at in times if at <= since), default=since)
            inside = [before, *(at for at in times if since < at <= until), until]
            found[protocol] = max(b - a for a, b in itertools.pairwise(inside))
        return found


class Outcome:
    def __init__(self, load: Load, happened: float, ended: float) -> None:
        self.right, self.errors, self.slowest = load.count(), dict(load.errors), load.slowest
        self.dark = load.gaps(happened, ended)
        self.usual = load.gaps(happened - BEFORE_S, happened)

    @property
    def darkest(self) -> float:
        return max(self.dark.values())


def watched(
    what: str,
    endpoints: Endpoints,
    expected: Answers,
    event: Callable[[], None],
    back: Callable[[], bool],
    record: Record,
    *,
    pace: float,
    clients: int = 4,
    retrying: bool = False,
) -> Outcome:
    """Has something happen under load, and goes on for a while after all is back."""
    with Load(endpoints, expected, clients, retrying=retrying) as load:
        load.both_answer()
        time.sleep(BEFORE_S)
        happened = time.monotonic()
        event()
        eventually(back, f"{what}: not back")
        load.both_answer()
        time.sleep(AFTER_S)
        ended = time.monotonic()
    outcome = Outcome(load, happened, ended)
    wrong = len(load.wrong)
    seconds = ", ".join(
        f"{protocol} {dark:.1f} s (before: {outcome.usual[protocol]:.1f})"
        for protocol, dark in outcome.dark.items()
    )
    record(
        "chaos",
        f"{what}: longest without an answer: {seconds}; slowest answer {outcome.slowest:.1f} s; "
        f"{outcome.right} right, {wrong} wrong, errors: {outcome.errors or 'none'}; pace {pace:.1f}",
    )
    assert not load.wrong, load.wrong[:3]
    assert outcome.errors.keys() <= TYPED, outcome.errors
    return outcome


def killing(actor: str) -> tuple[Callable[[], None], Callable[[], bool]]:
    """Kills one process of an actor, and whether there is another in its place."""
    before = pids(actor)
    assert before, actor
    victim = min(before)

    def kill() -> None:
        os.kill(victim, signal.SIGKILL)

    def back() -> bool:
        now = pids(actor)
        return victim not in now and len(now) >= len(before)

    return kill, back


def a_spare_waits(pace: float) -> None:
    """Returns when a process waits with all modules to be the next ingress."""
    ingress = max(pids(INGRESS))
    eventually(lambda: max(pids("IDLE"), default=0) > ingress, "no process waits to be the next ingress")
    time.sleep(START_S * pace)


Start = Callable[[str, Callable[[], contextlib.AbstractContextManager[Any]]], Any]


@pytest.fixture(scope="module")
def only() -> Iterator[Start]:
    """Starts a cluster by name, if it is not the one that runs; ends the one that runs first."""
    stack, running = contextlib.ExitStack(), dict[str, Any]()

    def start(name: str, make: Callable[[], contextlib.AbstractContextManager[Any]]) -> Any:
        if name not in running:
            stack.close()
            running.clear()
            running[name] = stack.enter_context(make())
        return running[name]

    with stack:
        yield start


@contextlib.contextmanager
def deployed(**options: Any) -> Iterator[Endpoints]:
    config = make_config(replica_wait_s=120.0, **options)
    with launch.RunningCluster(config) as cluster:
        yield cluster.deploy(config)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes of `direct` log."""
    return tmp_path_factory.mktemp("log") / "lines"


@pytest.fixture
def direct(only: Start, lines: Path) -> Endpoints:
    @contextlib.contextmanager
    def logged() -> Iterator[Endpoints]:
        with _environment({logs.PATH: str(lines)}), deployed(min_decoder_replicas=2) as endpoints:
            yield endpoints

    found: Endpoints = only("direct", logged)
    return found


def test_an_engine_that_hangs(
    direct: Endpoints, expected: Answers, pace: float, record_property: Record
) -> None:
    """Its requests go on at the other one once it has been silent for `engine_silence_s`."""
    victim = min(pids("EngineActor"))
    stopped = time.monotonic() + 15
    try:
        outcome = watched(
            "an engine stopped (SIGSTOP)", direct, expected,
            lambda: os.kill(victim, signal.SIGSTOP), lambda: time.monotonic() > stopped + BEFORE_S,
            record_property, pace=pace,
        )  # fmt: skip
    finally:
        os.kill(victim, signal.SIGCONT)
    assert not outcome.errors
    assert outcome.slowest < ServeConfig.engine_silence_s + 2 * pace


def test_the_controller_is_killed(
    direct: Endpoints, expected: Answers, pace: float, record_property: Record, lines: Path
) -> None:
    outcome = watched(
        "Serve's controller killed", direct, expected, *killing(CONTROLLER), record_property, pace=pace
    )
    [line] = [one for one in lines.read_text().splitlines() if "Serve's controller" in one]
    assert line.partition(": ")[2].startswith(f"its process ended: {STARTED_AGAIN}")
    assert not outcome.errors
    assert outcome.darkest < 2 * pace


def test_the_only_ingress_is_killed(
    direct: Endpoints, expected: Answers, pace: float, record_property: Record
) -> None:
    """Its ports refuse until the process that waits has become the next one, and never answer with a bare
    500."""
    a_spare_waits(pace)
    outcome = watched(
        "the only ingress killed", direct, expected, *killing(INGRESS), record_property, pace=pace
    )
    assert outcome.darkest < 3 * pace


def test_the_next_ingress_is_killed_before_another_process_waits(
    direct: Endpoints, expected: Answers, pace: float, record_property: Record
) -> None:
    kill, back = killing(INGRESS)
    kill()
    eventually(back, "not back")
    outcome = watched(
        "the next ingress killed, too", direct, expected, *killing(INGRESS), record_property, pace=pace
    )
    assert outcome.darkest < 6 * pace


def test_four_times_the_load(
    direct: Endpoints, expected: Answers, pace: float, record_property: Record
) -> None:
    """Two engines have 16 slots each. Of 128 clients each has an answer, or is told to come later."""
    later = time.monotonic() + BEFORE_S + 10
    outcome = watched(
        "four times as many requests as slots", direct, expected, lambda: None,
        lambda: time.monotonic() > later, record_property, pace=pace, clients=64,
    )  # fmt: skip
    assert outcome.errors.keys() <= {"RESOURCE_EXHAUSTED", "429"}


@pytest.fixture
def behind_proxies(only: Start) -> Endpoints:
    found: Endpoints = only("proxy", lambda: deployed(ingress_mode="proxy", ingress_replicas=2))
    return found


def test_the_only_proxy_is_killed(
    behind_proxies: Endpoints,
    expected: Answers,
    pace: float,
    record_property: Record,
) -> None:
    outcome = watched(
        "the only proxy killed", behind_proxies, expected, *killing(PROXY), record_property, pace=pace
    )
    assert outcome.darkest < 8 * pace


def test_one_of_two_ingresses_is_killed(
    behind_proxies: Endpoints,
    expected: Answers,
    pace: float,
    record_property: Record,
) -> None:
    outcome = watched(
        "one of two ingresses killed, behind a proxy", behind_proxies, expected, *killing(INGRESS),
        record_property, pace=pace,
    )  # fmt: skip
    assert outcome.darkest < 2 * pace


def test_clients_that_try_again_notice_nothing_of_it(
    behind_proxies: Endpoints,
    expected: Answers,
    pace: float,
    record_property: Record,
) -> None:
    outcome = watched(
        "the same, with clients that try again", behind_proxies, expected, *killing(INGRESS),
        record_property, pace=pace, retrying=True,
    )  # fmt: skip
    assert not outcome.errors


class Machines:
    """Ray nodes on this machine: a head without replicas, whose state is in RocksDB or a Redis, and three
    workers, of which one is started as a pod's is."""

    def __init__(self, store: str, folder: Path) -> None:
        self.store, self._folder, self._stack = store, folder, contextlib.ExitStack()
        self.config = make_config(
            ingress_mode="proxy", ingress_replicas=2, min_decoder_replicas=2, min_encoder_replicas=2,
            replica_wait_s=120.0, ingress_cpus=0.9, encoder_cpus=0.4, decoder_cpus=0.4,
        )  # fmt: skip

    def __enter__(self) -> Machines:
        head: dict[str, Any] = {"num_cpus": 0}
        storage = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(self._folder)}
        if self.store == "redis":
            head["redis_password"] = PASSWORD
            storage = {"RAY_REDIS_ADDRESS": self._stack.enter_context(redis(self._folder))}
        self._stack.enter_context(_environment(serve_settings(self.config) | storage))
        self.ray = Cluster(initialize_head=True, head_node_args=head)
        self.workers = [self.ray.add_node(num_cpus=2) for _ in range(2)]
        self.pod = subprocess.Popen(  # one at a time: nodes choose free names in the session's folder
            [
                str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=2",
                f"--address={self.ray.address}", f"--dashboard-agent-listen-port={free_port()}",
            ],
            env=os.environ | {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DRAIN_S)},
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        eventually(lambda: len(self.ray.global_state.node_table()) == 4, "the pod's node does not come")
        self.cluster = launch.RunningCluster(self.config, address=self.ray.address)
        self.endpoints = self.cluster.deploy(self.config)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(Exception):
            self.cluster.close()
        self.pod.terminate()
        self.pod.wait(timeout=DRAIN_S + 30)
        self.ray.shutdown()
        self._stack.close()


@contextlib.contextmanager
def redis(folder: Path) -> Iterator[str]:
    """The address of a server that keeps what it is told in memory alone."""
    port = free_port()
    options = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--requirepass",
        PASSWORD,
        "--save",
        "",
        "--dir",
        str(folder),
    ]
    with subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL) as process:
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


@pytest.fixture
def machines(
    only: Start, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Machines:
    store = getattr(request, "param", "rocksdb")
    found: Machines = only(store, lambda: Machines(store, tmp_path_factory.mktemp("gcs")))
    return found


needs_redis = pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server here")


@pytest.mark.parametrize("machines", [pytest.param("redis", marks=needs_redis), "rocksdb"], indirect=True)
def test_the_control_plane_is_killed(
    machines: Machines, expected: Answers, pace: float, record_property: Record
) -> None:
    """It is away for 5 s, comes back with its state, and then replaces an engine as before."""

    def restart() -> None:
        head: Any = machines.ray.head_node
        head.kill_gcs_server()
        time.sleep(5)
        head.start_gcs_server()

    outcome = watched(
        f"the GCS killed, and started after 5 s with {machines.store}", machines.endpoints, expected, restart,
        lambda: True, record_property, pace=pace,
    )  # fmt: skip
    assert not outcome.errors
    assert outcome.darkest < 2 * pace
    kill, back = killing("EngineActor")
    watched("then an engine", machines.endpoints, expected, kill, back, record_property, pace=pace)


def test_a_pod_is_asked_to_go(
    machines: Machines, expected: Answers, pace: float, record_property: Record
) -> None:
    """Its replicas are replaced elsewhere and finish their requests first, and then it goes by itself. A real
    one's service sends it no more clients by then; here its proxy's connections are cut in the end."""
    machines.ray.add_node(num_cpus=2)
    asked = time.monotonic()
    outcome = watched(
        "a node drained (SIGTERM)", machines.endpoints, expected, machines.pod.terminate,
        lambda: machines.pod.poll() is not None, record_property, pace=pace,
    )  # fmt: skip
    record_property("chaos", f"the drained node was gone after {time.monotonic() - asked - BEFORE_S:.0f} s")
    assert outcome.darkest < 5 * pace


def test_a_node_is_killed(
    machines: Machines, expected: Answers, pace: float, record_property: Record
) -> None:
    """Without a word: all of its processes at once, its proxy among them."""
    machines.ray.add_node(num_cpus=2)
    node = machines.workers[0]
    outcome = watched(
        "one of four nodes killed", machines.endpoints, expected,
        lambda: machines.ray.remove_node(node, allow_graceful=False), lambda: True,
        record_property, pace=pace,
    )  # fmt: skip
    assert outcome.darkest < 10 * pace


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 300 MB for all that Ray writes."""
    folder = Path("/tmp") / f"small-{os.getpid()}"  # the kernel allows no longer names of sockets
    folder.mkdir()
    if (
        shutil.which("mount") is None
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=300m", "tmpfs", str(folder)], capture_output=True
        ).returncode
    ):
        folder.rmdir()
        pytest.skip("this user cannot mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def test_a_full_disk(
    only: Start,
    small_disk: Path,
    expected: Answers,
    pace: float,
    record_property: Record,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ray's logs, sockets and spilled objects have no room; requests need none of it."""
    monkeypatch.setenv("RAY_TMPDIR", str(small_disk))
    endpoints = only("small disk", deployed)
    filler = small_disk / "filler"

    def fill() -> None:
        with contextlib.suppress(OSError), filler.open("wb") as file:
            while True:
                file.write(bytes(2**20))
                file.flush()

    enough = time.monotonic() + BEFORE_S + 15
    outcome = watched(
        "a full disk",
        endpoints,
        expected,
        fill,
        lambda: time.monotonic() > enough,
        record_property,
        pace=pace,
    )
    assert shutil.disk_usage(small_disk).free < 2**20
    assert not outcome.errors
