"""Which deployments an application has, and what they ask Ray for."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from models import make_checkpoint
from ray.serve import Application

from tandem.cluster.app import application, build
from tandem.cluster.config import ServeConfig
from tandem.errors import InvalidRequest, ModelLoadError


class Door:
    def __init__(self, config: ServeConfig, encoder: object, decoder: object) -> None: ...


def parts(app: Application) -> dict[str, Any]:
    """Its deployments by name: the ingress, and those bound to it."""
    ingress: Any = app._bound_deployment
    others = [arg._bound_deployment for arg in ingress.init_args if isinstance(arg, Application)]
    return {deployment.name: deployment for deployment in [ingress, *others]}


def test_the_stages_are_deployments_of_their_own() -> None:
    assert list(parts(application(ServeConfig(device="cpu"), Door))) == ["Ingress", "Encoder", "Decoder"]


def test_colocated_there_is_no_encoder() -> None:
    colocated = parts(application(ServeConfig(device="cpu", placement="colocated"), Door))
    assert list(colocated) == ["Ingress", "Decoder"]
    assert colocated["Ingress"].init_args[1] is None


def test_a_decoder_only_model_has_no_encoder_either(tmp_path: Path) -> None:
    config = ServeConfig(device="cpu", model=str(make_checkpoint(tmp_path, "gpt2")))
    assert list(parts(application(config, Door))) == ["Ingress", "Decoder"]


def test_a_model_that_is_not_there_fails_at_once() -> None:
    with pytest.raises(ModelLoadError, match="no folder"):
        application(ServeConfig(device="cpu", model="/no/such/model"), Door)


def test_each_rank_has_a_bundle_and_the_supervisor_sits_with_the_first() -> None:
    config = ServeConfig(device="cuda", tensor_parallel_size=3, decoder_cpus=2.0, decoder_gpus=1.0)
    options = parts(application(config, Door))["Decoder"]._replica_config
    first, *others = options.placement_group_bundles
    assert others == [{"CPU": 2.0, "GPU": 1.0}] * 2
    assert first["GPU"] == 1.0
    assert first["CPU"] == 2.0 + options.ray_actor_options["num_cpus"]
    assert options.placement_group_strategy == "STRICT_PACK"


def test_on_cpus_nobody_asks_for_a_gpu() -> None:
    for deployment in parts(application(ServeConfig(device="cpu"), Door)).values():
        options = deployment._replica_config
        assert not options.ray_actor_options.get("num_gpus")
        assert not any("GPU" in bundle for bundle in options.placement_group_bundles or [])


def test_a_change_of_scale_changes_no_replicas_arguments() -> None:
    """Serve restarts replicas whose arguments change."""
    config = ServeConfig(device="cpu")
    scaled = dataclasses.replace(
        config, min_decoder_replicas=3, max_encoder_replicas=4, ingress_replicas=2, downscale_delay_s=1.0
    )
    before, after = parts(application(config, Door)), parts(application(scaled, Door))
    for name in ("Encoder", "Decoder"):
        assert before[name].init_args == after[name].init_args
    assert before["Ingress"].init_args[0] == after["Ingress"].init_args[0]
    assert after["Decoder"].num_replicas == 3
    assert after["Encoder"]._deployment_config.autoscaling_config.max_replicas == 4


def test_arguments_are_checked_when_the_application_is_built() -> None:
    with pytest.raises(InvalidRequest) as caught:
        build({"tensor_parallel_degree": "2"})
    assert caught.value.field == "tensor_parallel_degree"


def test_the_builder_makes_the_real_application() -> None:
    assert list(parts(build({"device": "cpu", "ingress_replicas": "2"}))) == ["Ingress", "Encoder", "Decoder"]
