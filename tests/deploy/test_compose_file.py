"""deploy/compose.yaml against the images, the command line and the ports."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

import dockerfile
import pytest
import typer
import yaml

from tandem.cli import app
from tandem.cluster.config import ServeConfig
from tandem.cluster.keys import ENVIRONMENT

FILE = dockerfile.ROOT / "deploy" / "compose.yaml"
SERVICES = dockerfile.DEVICES


def substituted(text: str, environment: dict[str, str]) -> str:
    """As compose puts variables in: `${NAME:-default}`."""
    return re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: environment.get(found[1]) or found[2], text)


@pytest.fixture(scope="module")
def services() -> dict[str, dict[str, Any]]:
    read: dict[str, dict[str, Any]] = yaml.safe_load(substituted(FILE.read_text(), {}))["services"]
    return read


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_an_image_of_the_dockerfile(services: dict[str, dict[str, Any]], name: str) -> None:
    service = services[name]
    assert service["image"] == f"tandem-serve:{version('tandem-serve')}-{name}"
    build = service["build"]
    assert (FILE.parent / build["context"]).resolve() == dockerfile.ROOT
    assert dockerfile.ROOT / build["dockerfile"] == dockerfile.FILE
    assert build["args"] == {"DEVICE": name}
    assert {"healthcheck", "entrypoint", "user"}.isdisjoint(service)  # the image's


@pytest.mark.parametrize("name", SERVICES)
def test_the_command_is_one_of_ours(services: dict[str, dict[str, Any]], name: str) -> None:
    program, verb, *arguments = services[name]["command"]
    command = typer.main.get_command(app)
    assert program == command.name
    context = command.commands[verb].make_context(verb, list(arguments))  # type: ignore[attr-defined]
    given = {key for key in context.params if context.get_parameter_source(key).name == "COMMANDLINE"}  # type: ignore[union-attr]
    assert given == {"model", "host", "metrics_port"} | ({"device", "placement"} if name == "gpu" else set())
    assert context.params["host"] == "0.0.0.0"
    if name == "gpu":  # one of them for everything
        assert (context.params["device"], context.params["placement"]) == ("cuda", "colocated")
    config = ServeConfig()
    inside = [config.http_port, config.grpc_port, context.params["metrics_port"]]
    assert services[name]["ports"] == [f"127.0.0.1:{port}:{port}" for port in inside]


@pytest.mark.parametrize("name", SERVICES)
def test_it_runs_as_strictly_as_on_kubernetes(services: dict[str, dict[str, Any]], name: str) -> None:
    service = services[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"] == ["/tmp:exec,mode=1777"]  # Docker's own choice is noexec
    grace = int(service["stop_grace_period"].removesuffix("s"))
    assert grace >= ServeConfig().drain_timeout_s + 10
    limits = service["deploy"]["resources"]["limits"]
    assert float(limits["cpus"]) >= 2
    shared, memory = (int(size.removesuffix("g")) for size in (service["shm_size"], limits["memory"]))
    assert memory >= shared >= 0.3 * memory or name == "gpu"


def test_one_gpu_is_asked_for_by_the_service_that_is_named(services: dict[str, dict[str, Any]]) -> None:
    assert services["gpu"]["profiles"] == ["gpu"]
    (device,) = services["gpu"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    assert "profiles" not in services["cpu"]
    assert "reservations" not in services["cpu"]["deploy"]["resources"]


def test_models_are_mounted_to_be_read_and_downloads_have_a_folder_of_the_users(
    services: dict[str, dict[str, Any]],
) -> None:
    text = FILE.read_text()
    for folder, mounted in (("", "models"), ("/srv/models", "/srv/models")):
        service = yaml.safe_load(substituted(text, {"TANDEM_MODELS": folder}))["services"]["cpu"]
        assert service["volumes"] == [f"{mounted}:/models:ro", "hub:/var/cache/huggingface"]
    assert yaml.safe_load(text)["volumes"].keys() == {"models", "hub"}
    hub = services["cpu"]["environment"]["HF_HOME"]
    (make,) = (
        each.text for each in dockerfile.read(dockerfile.FILE.read_text()).stages["base"].all("RUN")[:1]
    )
    assert make.endswith(f"install --directory --owner 1000 --group 1000 {hub}")


def test_the_variables_are_those_that_the_head_of_the_file_names(services: dict[str, dict[str, Any]]) -> None:
    head, _, rest = FILE.read_text().partition("\nname:")
    passed_on = {name for name, value in services["cpu"]["environment"].items() if value is None}
    assert passed_on == {ENVIRONMENT, "HF_TOKEN"}
    assert {*re.findall(r"\$\{(\w+)", rest), *passed_on} == {*re.findall(r"\b(?:TANDEM|HF)_\w+", head)}
