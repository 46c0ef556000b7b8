"""scripts/image_steps.py: a Dockerfile's steps, run in roots of their own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import dockerfile
import pytest

RECIPE = """
FROM elsewhere AS base
RUN apt-get install nothing
ENV PATH=/usr/bin:/bin WORD=given
WORKDIR /made
RUN echo "$WORD" > word && python -c 'import sys; print(sys.version_info[0])' > interpreter

FROM base AS other
ARG ANSWER=no
COPY pyproject.toml LICENSE texts/
COPY kernels /kernels
RUN mkdir /out && echo "$ANSWER $WORD" > /out/answer && echo more >> word && ls /kernels/cpu > /out/kernels
RUN test ! -e FOLDER && ! touch /usr/touched

FROM base AS last
ARG ANSWER=unknown
COPY --from=other /made/texts /made/word /copied/
RUN --mount=type=bind,from=other,source=/out,target=/shown \\
    --mount=type=cache,target=/tmp/.cache/pip cat /shown/answer > answer && touch /tmp/.cache/pip/kept
ENV WORD=last
USER 1000:1000
HEALTHCHECK --interval=1s CMD ["true"]
ENTRYPOINT ["tini", "--"]
CMD ["serve", "it"]
"""


def allowed() -> bool:
    """Whether this user may make namespaces here."""
    return (
        subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True).returncode == 0
    )


@pytest.fixture(scope="module")
def steps() -> Any:
    file = dockerfile.ROOT / "scripts" / "image_steps.py"
    spec = importlib.util.spec_from_file_location("image_steps", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its types
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not allowed(), reason="this user may not make namespaces")
def test_steps_run_in_roots_of_their_own(steps: Any, tmp_path: Path) -> None:
    text = RECIPE.replace("FOLDER", str(dockerfile.ROOT))
    replay = steps.Replay(dockerfile.read(text, {"ANSWER": "yes"}), tmp_path)
    settings = replay.build("last")
    base, other, last = map(replay.root, ("base", "other", "last"))
    assert (base / "made/word").read_text() == "given\n"
    assert (base / "made/interpreter").read_text() == "3\n"
    assert (other / "made/texts/LICENSE").read_text() == (dockerfile.ROOT / "LICENSE").read_text()
    names = (other / "out/kernels").read_text().split()
    assert "_cpu.cpp" in names
    assert not [name for name in names if name.endswith(".so")]
    assert (last / "made/answer").read_text() == "yes given\n"
    assert {path.name for path in (last / "copied").iterdir()} == {"LICENSE", "pyproject.toml", "word"}
    assert (tmp_path / "cache/kept").exists()
    assert replay.skipped == ["base: apt-get install nothing"]
    assert (settings.user, settings.folder, settings.environment["WORD"]) == ("1000:1000", "/made", "last")
    assert (settings.entrypoint, settings.command, settings.health) == (
        ["tini", "--"],
        ["serve", "it"],
        ["true"],
    )

    script = "id -u; echo $WORD; ls /sys/class/net; touch /made/x || touch /tmp/x && ls /tmp"
    done = replay.run("last", script, capture_output=True)
    assert done.stdout.split() == ["1000", "last", "lo", "x"]
    assert "Read-only" in done.stderr


@pytest.mark.skipif(not allowed(), reason="this user may not make namespaces")
def test_a_step_that_fails_ends_the_build(steps: Any, tmp_path: Path) -> None:
    recipe = dockerfile.read(
        "FROM elsewhere AS base\nENV PATH=/usr/bin:/bin\nRUN true && exit 3\nRUN touch /more\n"
    )
    replay = steps.Replay(recipe, tmp_path)
    with pytest.raises(SystemExit, match="base: the step ended with 3"):
        replay.build("base")
    assert not (replay.root("base") / "more").exists()
