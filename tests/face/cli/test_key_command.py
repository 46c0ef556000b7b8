"""`tandem key`, and the keys that other commands send or ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tandem.cli import app
from tandem.cli.options import connect
from tandem.cluster.keys import Keys


def test_a_key_is_shown_once_and_its_line_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    for name in ("acme", "zoo"):
        made = CliRunner().invoke(app, ["key", name, "--file", str(file), "--in-flight", "3"])
        assert made.exit_code == 0, made.output
        [key] = made.stdout.split()
        assert key not in file.read_text()
        caller = Keys(str(file), None).caller(key)
        assert caller
        assert (caller.name, caller.quotas.in_flight) == (name, 3)
    shown = CliRunner().invoke(app, ["key", "acme"])
    assert len(shown.stdout.split()) == 1
    assert shown.stderr.startswith("acme sha256:")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["key", "a b"], "must begin with a name"),
        (["key", "acme", "--weight", "0"], "weight must be positive"),
        (["serve", "--api-keys", "no-such-file"], "api_keys: cannot be read"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(arguments: list[str], said: str) -> None:
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 1
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) <= 2


def test_the_key_is_of_the_environment_and_goes_with_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "tandem-mine")
    with connect("localhost:1", "MINE") as client:
        assert client._metadata == (("authorization", "Bearer tandem-mine"),)
    monkeypatch.delenv("MINE")
    with connect("localhost:1", "MINE") as client:
        assert client._metadata == ()
