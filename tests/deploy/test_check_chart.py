"""scripts/check_chart.py: what it takes for an error, with a small definition in the place of KubeRay's."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CRD = """
spec:
  group: ray.io
  names: {kind: RayService}
  versions:
    - name: v1
      schema:
        openAPIV3Schema:
          type: object
          properties:
            apiVersion: {type: string}
            kind: {type: string}
            metadata: {type: object}
            spec:
              type: object
              properties:
                deletion: {type: integer}
                free:
                  {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {a: {type: string}}}
                labels: {type: object, additionalProperties: {type: string}}
"""


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("check_chart", ROOT / "scripts" / "check_chart.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("spec", "error"),
    [
        ({"deletion": 3, "free": {"b": 1}, "labels": {"x": "y"}}, None),
        ({"deletion": "3"}, "not of type 'integer'"),
        ({"deletoin": 3}, "'deletoin' was unexpected"),
        ({"labels": {"x": 1}}, "not of type 'string'"),
    ],
)
def test_what_a_definition_does_not_know_is_an_error(
    script: Any, tmp_path: Path, spec: dict[str, Any], error: str | None
) -> None:
    file = tmp_path / "crd.yaml"
    file.write_text(CRD)
    document = {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": {"name": "a"}, "spec": spec}
    found = [message for _, message in script.errors(iter([document]), script.read_crds(file))]
    assert len(found) == (error is not None)
    assert error is None or error in found[0]


def test_kubernetes_own_kinds_need_no_definition(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    budget = yaml.safe_load(
        "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: a}, spec: {maxUnavailabl: 1}}"
    )
    route = {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute", "metadata": {"name": "a"}}
    found = [message for _, message in script.errors(iter([budget, route, None]), {})]
    assert len(found) == 1
    assert "maxUnavailabl" in found[0]
    assert capsys.readouterr().out == "not checked, no CRD for it: GRPCRoute\n"
