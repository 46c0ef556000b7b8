"""The recipe of the images keeps to its rules. scripts/build_image.py builds them."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import dockerfile
import pytest
from dockerfile import SERVER, Dockerfile
from packaging.requirements import Requirement

from tandem.cluster.config import ServeConfig
from tandem.kernels.cpu import ops as cpu_ops

ROOT = dockerfile.ROOT


@pytest.fixture(scope="module")
def text() -> str:
    return dockerfile.FILE.read_text()


@pytest.fixture(scope="module", params=dockerfile.DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def recipe(text: str, device: str) -> Dockerfile:
    return dockerfile.read(text, {"DEVICE": device})


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_the_one_base_is_pinned_by_tag_and_digest(recipe: Dockerfile) -> None:
    (base,) = {stage.base for stage in recipe.stages.values()} - recipe.stages.keys()
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert (
        base.partition("@")[0] in dockerfile.FILE.read_text().partition("ARG ")[0]
    )  # how to ask for today's


def test_the_base_is_a_python_that_tandem_runs_on(recipe: Dockerfile, project: dict[str, Any]) -> None:
    version = re.search(r":([\d.]+)-", recipe.arguments["PYTHON_IMAGE"])
    assert version
    assert Requirement(f"x{project['project']['requires-python']}").specifier.contains(version[1])


def test_the_images_differ_in_their_packages_alone(text: str) -> None:
    cpu, gpu = (
        [stage.name for stage in dockerfile.read(text, {"DEVICE": device}).lineage(SERVER)]
        for device in dockerfile.DEVICES
    )
    assert cpu == ["base", "torch-cpu", "packages", SERVER]
    assert gpu == ["base", "torch-gpu", "packages", SERVER]
    assert list(dockerfile.read(text).stages)[-1] == SERVER  # what is built where no target is named


def test_a_change_of_the_source_leaves_the_packages_as_they_are(recipe: Dockerfile, device: str) -> None:
    needed = recipe.needed("packages")
    assert "application" not in {stage.name for stage in needed}
    copied = {
        word for stage in needed for each in stage.all("COPY") if not each.flags for word in each.words()[:-1]
    }
    assert copied == {"pyproject.toml", "constraints.txt"}
    # PyTorch comes first, and of nothing but its own lines of the lock.
    (torch,) = (recipe.stages[name] for name in ("torch", "torch-gpu") if recipe.stages[name] in needed)
    first, second = [each for each in torch.all("COPY", "RUN") if "apt-get" not in each.text]
    assert first.words() == [f"/lock/torch-{device}.txt", "/opt/lock/"]
    assert "--no-deps" in second.text
    assert ("--index-url" in second.text) == (device == "cpu")
    (copy,) = recipe.stages["packages"].all("COPY")
    assert copy.words() == [f"/lock/packages-{device}.txt", "/lock/constraints.txt", "/opt/lock/"]
    (copy,) = recipe.stages[SERVER].all("COPY")
    assert (copy.flags, copy.text) == ((("from", "application"),), "/application /opt/tandem")


def test_every_installation_is_of_the_lock(recipe: Dockerfile) -> None:
    commands = [
        command
        for stage in recipe.needed(SERVER)
        for each in stage.all("RUN")
        for command in each.text.split("&&")
        if "pip install" in command
    ]
    assert len(commands) == 3
    for command in commands:
        assert (
            "--constraint /opt/lock/constraints.txt --requirement /opt/lock/packages-${DEVICE}.txt" in command
            or ("--no-deps" in command and re.search(r"--requirement /opt/lock/torch-[cg]pu.txt", command))
            or "PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt" in command
        ), command


def test_the_lock_in_parts(recipe: Dockerfile, project: dict[str, Any], tmp_path: Path) -> None:
    (step,) = recipe.stages["lock"].all("RUN")
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    text = step.text.replace("python ", f"{sys.executable} ", 1)
    subprocess.run(["sh", "-ec", text], cwd=tmp_path, check=True)

    def part(name: str) -> list[str]:
        return (tmp_path / f"{name}.txt").read_text().splitlines()

    wanted = project["project"]["dependencies"] + project["project"]["optional-dependencies"]["otlp"]
    assert part("packages-gpu") == wanted
    (triton,) = (each for each in wanted if Requirement(each).name == "triton")
    assert part("packages-cpu") == [each for each in wanted if each != triton]
    lock = (ROOT / "constraints.txt").read_text().splitlines()
    assert part("torch-cpu") == [line for line in lock if line.startswith("torch==")]
    assert len(part("torch-cpu")) == 1
    cuda = [line for line in lock if re.match("torch==|triton==|cuda|nvidia", line)]
    assert part("torch-gpu") == cuda
    assert len(cuda) > 15


def test_the_build_fails_without_compiled_kernels(
    recipe: Dockerfile, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, run = recipe.stages[SERVER].instructions[:2]
    assert (copy.name, run.name) == ("COPY", "RUN")
    python, flag, code = run.words()
    assert (python, flag) == ("python", "-c")
    for compiled, end in ((True, None), (False, "no compiled CPU kernels")):
        monkeypatch.setattr(cpu_ops, "COMPILED", compiled)
        with pytest.raises(SystemExit) as ended:
            exec(code)
        assert ended.value.code is None if end is None else end in str(ended.value.code)


def test_the_kernels_are_for_every_cpu_of_the_kind(project: dict[str, Any]) -> None:
    """They choose among the levels of the instruction set where they are loaded, not where they are built."""
    (extension,) = project["tool"]["setuptools"]["ext-modules"]
    assert not [flag for flag in extension["extra-compile-args"] if flag.startswith(("-m", "-O0", "-Ofast"))]


def test_what_is_left_in_the_images(recipe: Dockerfile, device: str) -> None:
    def of_debian(instructions: list[dockerfile.Instruction]) -> set[str]:
        found = (re.findall(r"--no-install-recommends ([\w+ .-]+)", each.text) for each in instructions)
        return {name for names in found for each in names for name in each.split()}

    compiler = {"gcc", "libc6-dev"} if device == "gpu" else set()  # Triton's launchers
    assert of_debian(recipe.instructions()) == {"tini", "wget"} | compiler
    assert recipe.stages["application"].base == "compiler"
    assert of_debian(recipe.stages["compiler"].all("RUN")) == {"g++"}
    for stage in recipe.stages.values():
        for each in stage.all("RUN"):
            assert ("apt-get" in each.text) == ("rm -rf /var/lib/apt/lists/*" in each.text)
            assert ("pip install" in each.text) == bool(each.mounts())


def test_the_container_is_not_roots_and_process_1_passes_signals_on(recipe: Dockerfile) -> None:
    instructions = recipe.instructions()
    names = [each.name for each in instructions]
    (user,) = (each.text for each in instructions if each.name == "USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert not {"RUN", "COPY"} & set(names[names.index("USER") :])
    (entrypoint,) = (each.words() for each in instructions if each.name == "ENTRYPOINT")
    assert entrypoint == ["tini", "--"]
    environment = {
        name: value for each in instructions if each.name == "ENV" for name, value in each.pairs().items()
    }
    assert environment["HOME"] == "/tmp"
    assert environment["PATH"].startswith("/opt/tandem/bin:")


def test_the_health_check_and_the_ports_are_the_servers(recipe: Dockerfile) -> None:
    instructions = recipe.instructions()
    (check,) = (each for each in instructions if each.name == "HEALTHCHECK")
    http, grpc = ServeConfig().http_port, ServeConfig().grpc_port
    assert check.text.endswith(f'"http://127.0.0.1:{http}/health"]')
    (exposed,) = (each.text for each in instructions if each.name == "EXPOSE")
    assert exposed == f"{http} {grpc}"
    (command,) = (each.words() for each in instructions if each.name == "CMD")
    assert command == ["tandem", "serve", "--host", "0.0.0.0"]


def test_versions_are_the_packages(
    recipe: Dockerfile, device: str, text: str, project: dict[str, Any]
) -> None:
    version = project["project"]["version"]
    (label,) = recipe.stages[SERVER].all("LABEL")
    assert label.pairs()["org.opencontainers.image.version"] == version
    assert label.pairs()["org.opencontainers.image.licenses"] == project["project"]["license"]
    assert f"--build-arg DEVICE={device} -t tandem-serve:{version}-{device}" in text


def test_no_secret_has_a_place(recipe: Dockerfile) -> None:
    names = {*recipe.arguments}
    for stage in recipe.stages.values():
        names |= {name for each in stage.all("ARG", "ENV") for name in each.pairs()}
    assert {"DEVICE", "TORCH_INDEX_URL"} <= names
    assert not [name for name in names if re.search("TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL", name)]


def test_a_builder_is_sent_what_is_copied_and_nothing_else(
    recipe: Dockerfile, project: dict[str, Any]
) -> None:
    copied = {
        word
        for stage in recipe.stages.values()
        for each in stage.all("COPY")
        if not each.flags
        for word in each.words()[:-1]
    }
    sent = list(dockerfile.sent())
    assert {path.parts[0] for path in sent} == copied
    # All that goes into the wheel, and nothing that was built here.
    setuptools = project["tool"]["setuptools"]
    for folder in setuptools["package-dir"].values():
        assert any(path.is_relative_to(folder) for path in sent), folder
    assert {Path(name) for name in (*setuptools["ext-modules"][0]["sources"], "LICENSE", "README.md")} <= {
        *sent
    }
    assert not [path for path in sent if path.suffix in (".so", ".pyc") or "tests" in path.parts]


def test_a_dockerignores_last_rule_counts(tmp_path: Path) -> None:
    for name in ("a/b.py", "a/b.so", "a/__pycache__/c.py", "a/d/__pycache__/e.py", "f.py", "g/h.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = dockerfile.sent(tmp_path, "*\n!a\n!f.py\n**/__pycache__\n**/*.so\n")
    assert [str(path) for path in found] == ["a/b.py", "f.py"]


def test_arguments_stand_for_their_values() -> None:
    text = "ARG A=1\nFROM x AS x-1\nFROM y AS x-2\nFROM x-${A} AS z\nARG A\nARG B=3\nCOPY /${A}-${B} /to/\n"
    for given, base, copied in (({}, "x-1", "/1-3"), ({"A": "2", "B": "4"}, "x-2", "/2-4")):
        recipe = dockerfile.read(text, given)
        assert recipe.stages["z"].base == base
        assert recipe.stages["z"].all("COPY")[0].words() == [copied, "/to/"]
    assert recipe.arguments == {"A": "1"}


@pytest.mark.parametrize(
    "text", ["FROM a\n", "ONBUILD RUN true\n", "FROM a AS b\nRUN <<END\n", "FROM a AS b\nADD https://x /y\n"]
)
def test_what_the_reader_does_not_know_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        dockerfile.read(text)
