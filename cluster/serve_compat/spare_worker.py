"""Has Ray start a process ahead of the actor that will run in it."""

from __future__ import annotations

import contextlib
import os
import threading
from typing import Any, Final

import ray
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from ray.core.generated import common_pb2, node_manager_pb2, node_manager_pb2_grpc

# Ray has no types for what its protobuf compiler makes.
_common: Any = common_pb2
_messages: Any = node_manager_pb2
_services: Any = node_manager_pb2_grpc
_TIMEOUT_S: Final = 10.0
# How long such a process waits at most. Nothing ends it with the actor that it is spare to.
WAITS_S: Final = 1800
_IDLE: Final = "ray::IDLE"  # how Ray names a process that waits for work
_NAMED: Final = "ray::"  # and how any, once it has started


def prepared_by(function: str) -> dict[str, Any]:
    """A `runtime_env` whose processes call the function of this dotted name as they start, before they are
    any actor's; "" undoes it for an actor that one of them starts. The function must not raise.

    `worker_process_setup_hook` is public for a whole job only.
    """
    return {"env_vars": {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: function}}


def end_if_spare() -> None:
    """Has this process end after WAITS_S if it is no actor's by then. Call it in what `prepared_by` names.
    Ray itself keeps as many processes that have nothing to do as the machine has cores."""

    def end() -> None:
        worker: Any = ray._private.worker.global_worker
        if worker.actor_id.is_nil():
            os._exit(0)

    timer = threading.Timer(WAITS_S, end)
    timer.daemon = True
    timer.start()


def spare_worker_waits() -> bool:
    """Whether a process of this actor's `prepared_by` waits on this machine, or starts."""
    import psutil  # Ray brings it, and its folder is known once Ray is imported

    function = os.environ[WORKER_PROCESS_SETUP_HOOK_ENV_VAR]
    for process in psutil.Process(os.getppid()).children():
        with contextlib.suppress(psutil.Error):  # it has ended
            title = " ".join(process.cmdline())
            is_spare = title.startswith(_IDLE) or not title.startswith(_NAMED)
            if is_spare and process.environ().get(WORKER_PROCESS_SETUP_HOOK_ENV_VAR) == function:
                return True
    return False


def start_spare_worker() -> None:
    """Has this machine start one more process like this actor's, in its `runtime_env`. The next actor with
    the same one is that process, which by then has Python, Ray and what `prepared_by` names. Ray ends
    it at once where the job of this actor has ended. Raises grpc.RpcError.

    Ray's workers can do this and its Python has no call for it. A process in which a task has run does not
    become an actor's.
    """
    context: Any = ray.get_runtime_context()
    here = context.get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    node = next(each for each in nodes if each["NodeID"] == here)
    request = _messages.PrestartWorkersRequest(
        language=_common.Language.PYTHON,
        job_id=bytes.fromhex(context.get_job_id()),
        keep_alive_duration_secs=WAITS_S,
        num_workers=1,
    )
    request.runtime_env_info.serialized_runtime_env = context.get_runtime_env_string()
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    with init_grpc_channel(address) as channel:
        _services.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_TIMEOUT_S)
