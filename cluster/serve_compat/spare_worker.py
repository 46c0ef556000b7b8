"""Has Ray start a process ahead of the actor that will run in it."""

from __future__ import annotations

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
_FOR_GOOD_S: Final = 10**9  # Ray ends other processes that have nothing to do


def prepared_by(function: str) -> dict[str, Any]:
    """A `runtime_env` whose processes call the function of this dotted name as they start, before they are
    any actor's; "" undoes it for an actor that one of them starts. The function must not raise.

    `worker_process_setup_hook` is public for a whole job only.
    """
    return {"env_vars": {WORKER_PROCESS_SETUP_HOOK_ENV_VAR: function}}


def start_spare_worker() -> None:
    """Has this machine start one more process like this actor's, in its `runtime_env`. The next actor with
    the same one is that process, which by then has Python, Ray and what `prepared_by` names. Raises
    grpc.RpcError.

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
        keep_alive_duration_secs=_FOR_GOOD_S,
        num_workers=1,
    )
    request.runtime_env_info.serialized_runtime_env = context.get_runtime_env_string()
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    with init_grpc_channel(address) as channel:
        _services.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_TIMEOUT_S)
