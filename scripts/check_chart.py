"""Renders deploy/helm with a real helm for every set of values, and holds what comes out to the real schemas.

    python scripts/check_chart.py HELM CRD... [--write]

HELM is the binary, 3.18 or later. The CRDs are files of the projects that own them: KubeRay's
`helm-chart/kuberay-operator/crds/ray.io_rayservices.yaml` at least, and for the routes and monitors the
Gateway API's `config/crd/standard/*.yaml` and the Prometheus operator's `*_podmonitors.yaml`. Kubernetes' own
kinds are checked without a file. Fields that a schema does not know are errors; kinds without one are named.

With `--write`, what comes out without an error becomes tests/deploy/rendered, which the tests read: they have
neither helm nor the schemas.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import chart  # noqa: E402

# Values that do not fit each other, by the one that the refusal names.
REFUSED = {
    "decoder.maxReplicas=1": "decoder.maxReplicas",
    "decoder.shards=2": "decoder.resources.cpu",
    "encoder.cpus=4": "encoder.resources.cpu",
    "ingress.cpus=5": "ingress.resources.cpu",
    "arguments.drain_timeout_s=900": "terminationGraceSeconds",
    "gateway.enabled=true,gateway.existing.name=a,gateway.httpHost=a.io,gateway.grpcHost=a.io": "grpcHost",
    "image.tag=latest": "/image/tag",
}
Schemas = dict[tuple[str, str], dict[str, Any]]  # by apiVersion and kind


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("helm", type=Path)
    parser.add_argument("crds", type=Path, nargs="+")
    parser.add_argument("--write", action="store_true", help="put what comes out into tests/deploy/rendered")
    arguments = parser.parse_args()
    schemas: Schemas = {}
    for file in arguments.crds:
        schemas |= read_crds(file)
    if not {kind for _, kind in schemas} >= {"RayService"}:
        sys.exit("none of the files defines RayService")
    rendered = {name: render(arguments.helm, name) for name in chart.SETS}
    found = [
        f"{name}: {document['kind']} {document['metadata']['name']}: {error}"
        for name, text in rendered.items()
        for document, error in errors(yaml.safe_load_all(text), schemas)
    ]
    found += [f"{values}: helm takes it" for values in REFUSED if not refuses(arguments.helm, values)]
    print(*found, f"{len(rendered)} sets of values, {len(found)} errors", sep="\n")
    if found:
        sys.exit(1)
    if arguments.write:
        for name, text in rendered.items():
            chart.rendered_file(name).write_text(chart.head_line() + text)


def render(helm: Path, values: str) -> str:
    """What helm makes of the chart. It checks values.schema.json, too; where it fails, this program ends."""
    file = ["--values", str(chart.values_file(values))]
    for command in (["lint", "--strict", str(chart.CHART)], ["template", chart.RELEASE, str(chart.CHART)]):
        done = subprocess.run([str(helm), *command, *file], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{values}: helm {command[0]}: {done.stdout}{done.stderr}")
    return done.stdout


def refuses(helm: Path, values: str) -> bool:
    """Whether helm refuses these values besides the defaults, and names the one that is wrong."""
    command = [str(helm), "template", chart.RELEASE, str(chart.CHART), "--set", values]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode != 0 and REFUSED[values] in done.stderr


def errors(documents: Iterator[Any], schemas: Schemas) -> Iterator[tuple[dict[str, Any], str]]:
    for document in filter(None, documents):
        key = document["apiVersion"], document["kind"]
        if schema := schemas.get(key):
            for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
                yield document, f"{error.json_path}: {error.message:.300}"
        elif key[0] in chart.KUBERNETES_OWN:
            try:
                kubernetes_validate.validate(document, chart.KUBERNETES, strict=True)
            except kubernetes_validate.ValidationError as error:
                yield document, str(error.message)
        else:
            print(f"not checked, no CRD for it: {key[1]}")


def read_crds(file: Path) -> Schemas:
    """The schemas of a file's definitions, each refusing what it does not know."""
    found: Schemas = {}
    for crd in yaml.load_all(file.read_text(), yaml.CSafeLoader):
        for version in (crd or {}).get("spec", {}).get("versions", []):
            schema = strict(version["schema"]["openAPIV3Schema"])
            schema["properties"]["metadata"] = {"type": "object"}
            found[f"{crd['spec']['group']}/{version['name']}", crd["spec"]["names"]["kind"]] = schema
    return found


def strict(schema: Any) -> Any:
    """A structural schema whose objects have the named properties only, as with strict field validation."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {name: strict(each) for name, each in schema.items()}
    known = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if (
        known
        and "additionalProperties" not in schema
        and not schema.get("x-kubernetes-preserve-unknown-fields")
    ):
        schema["additionalProperties"] = False
    return schema


if __name__ == "__main__":
    main()
