"""Ray's actors, and how they ended. Its public ways to learn it need the dashboard."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from ray._private.state import state
from ray.core.generated import common_pb2

_context: Any = common_pb2.ActorDiedErrorContext  # type: ignore[attr-defined]  # Ray has no types for it
_UNASKED: Final = {_context.WORKER_DIED, _context.NODE_DIED}
_ASKED: Final = "INTENDED"  # of a worker's exit: Serve stopped the replica
STARTED_AGAIN: Final = "Ray starts another in its place"


class Actor(NamedTuple):
    kind: str  # its class, as processes are named: "ServeReplica:app:deployment", "ProxyActor"
    name: str  # within Ray
    pid: int  # 0 where it has no process yet
    machine: str  # its address
    since_ms: int  # of 1970: when it was ready


def living_actors() -> dict[str, Actor]:
    """The cluster's actors that run, by id. Waits for the control plane."""
    table = state.actor_table(None, actor_state_name="ALIVE")
    return {
        each: Actor(
            entry["ActorClassName"],
            entry["Name"],
            entry["Pid"],
            entry["Address"]["IPAddress"],
            entry["StartTime"],
        )
        for each, entry in table.items()
    }


def unasked_end(actor: str) -> str | None:
    """Why the process of an actor that ran ended, and nobody has stopped it, in Ray's words; STARTED_AGAIN
    where the actor has, or will have, another process; None where somebody has stopped it."""
    entry = state.actor_table(actor)
    if not entry:
        return None
    if entry["State"] != "DEAD":
        return STARTED_AGAIN
    cause: Any = entry["DeathCause"]
    kind = cause.WhichOneof("context")
    if kind == "actor_died_error_context":
        died = cause.actor_died_error_context
        message = str(died.error_message)
        return message if died.reason in _UNASKED and _ASKED not in message else None
    return str(getattr(cause, kind).error_message) if kind == "oom_context" else None
