"""The Kubernetes manifests, checked without a cluster: against Kubernetes' schemas, KubeRay's, Serve's, and
against the application they deploy."""

from __future__ import annotations

import json
import math
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from tandem.cluster import app
from tandem.cluster.config import ServeConfig, parse_args
from tandem.cluster.listening import Listening
from tandem.cluster.start import GRPC_SERVICES

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
KUBERNETES = "1.34"
GROUPS = ("ingress", "encoder", "decoder")

Document = dict[str, Any]


def documents(name: str) -> list[Document]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


@pytest.fixture(scope="module")
def service() -> Document:
    (document,) = documents("rayservice.yaml")
    return document


@pytest.fixture(scope="module")
def cluster(service: Document) -> Document:
    config: Document = service["spec"]["rayClusterConfig"]
    return config


@pytest.fixture(scope="module")
def serve_config(service: Document) -> ServeDeploySchema:
    return ServeDeploySchema(**yaml.safe_load(service["spec"]["serveConfigV2"]))


@pytest.fixture(scope="module")
def config(serve_config: ServeDeploySchema) -> ServeConfig:
    return parse_args(serve_config.applications[0].args)


def group(cluster: Document, name: str) -> Document:
    """The head group or a worker group."""
    if name == "head":
        head: Document = cluster["headGroupSpec"]
        return head
    (found,) = (spec for spec in cluster["workerGroupSpecs"] if spec["groupName"] == name)
    return dict(found)


def container(cluster: Document, name: str) -> Document:
    (only,) = group(cluster, name)["template"]["spec"]["containers"]
    return dict(only)


def test_the_kustomization_names_every_manifest() -> None:
    (kustomization,) = documents("kustomization.yaml")
    manifests = {path.name for path in DEPLOY.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(kustomization["resources"]) == manifests


@pytest.mark.parametrize("name", ["pod-disruption-budgets.yaml", "network-policy.yaml"])
def test_kubernetes_accepts(name: str) -> None:
    for document in documents(name):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["head", *GROUPS])
def test_kubernetes_accepts_the_pods_of(cluster: Document, name: str) -> None:
    template = group(cluster, name)["template"]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | {"name": name}}
    kubernetes_validate.validate(pod | {"spec": template["spec"]}, KUBERNETES, strict=True)


def test_kubernetes_accepts_the_service(service: Document) -> None:
    serving = service["spec"]["serveService"]
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Service"} | serving, KUBERNETES, strict=True)


def test_kuberay_accepts(service: Document) -> None:
    schema = json.loads(Path(__file__).with_name("rayservice.schema.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(service)


def test_ray_is_the_release_tandem_is_built_on(cluster: Document) -> None:
    assert cluster["rayVersion"].split(".")[:2] == version("ray").split(".")[:2]


def test_the_application_is_this_one(serve_config: ServeDeploySchema) -> None:
    (application,) = serve_config.applications
    module, _, function = application.import_path.partition(":")
    assert (module, function) == (app.__name__, app.build.__name__)
    assert application.route_prefix == "/"


def test_clients_reach_it_on_the_ports_of_the_proxies(
    service: Document, cluster: Document, serve_config: ServeDeploySchema, config: ServeConfig
) -> None:
    assert config.ingress_mode == "proxy"
    assert serve_config.proxy_location == "EveryNode"
    assert serve_config.http_options.host == "0.0.0.0"
    assert list(serve_config.grpc_options.grpc_servicer_functions) == GRPC_SERVICES
    assert not serve_config.grpc_options.enable_reflection
    expected = {
        "serve": (serve_config.http_options.port, "http"),
        "serve-grpc": (serve_config.grpc_options.port, "kubernetes.io/h2c"),
    }
    ports = service["spec"]["serveService"]["spec"]["ports"]
    assert {p["name"]: (p["targetPort"], p["appProtocol"]) for p in ports} == expected
    for name in ("head", *GROUPS):  # the operator reads the head's, and probes the workers'
        declared = {p["name"]: p["containerPort"] for p in container(cluster, name)["ports"]}
        assert expected.keys() <= declared.keys(), name
        assert all(declared[port] == number for port, (number, _) in expected.items()), name


def test_a_proxy_reads_what_the_application_allows(cluster: Document, config: ServeConfig) -> None:
    for name in ("head", *GROUPS):
        env = {variable["name"]: variable["value"] for variable in container(cluster, name)["env"]}
        assert int(env["RAY_SERVE_GRPC_MAX_MESSAGE_SIZE"]) == config.limits.transport_bytes
        assert env.items() >= Listening(grpc_host="0.0.0.0").environment().items()


def test_the_old_cluster_outlives_the_longest_answer(service: Document, config: ServeConfig) -> None:
    assert service["spec"]["upgradeStrategy"]["type"] == "NewCluster"
    assert service["spec"]["rayClusterDeletionDelaySeconds"] >= config.limits.timeout_s


class Demand:
    """What one replica of a deployment asks of a node, by its entry in the Serve config."""

    def __init__(self, options: Document) -> None:
        actor = options.get("ray_actor_options", {})
        bundles = options.get("placement_group_bundles") or [
            {"CPU": actor.get("num_cpus", 1), "GPU": actor.get("num_gpus", 0)}
        ]
        (selector,) = options.get("placement_group_bundle_label_selector") or [actor["label_selector"]]
        self.labels: dict[str, str] = selector
        self.cpus = sum(bundle["CPU"] for bundle in bundles)  # STRICT_PACK: all on one node
        self.gpus = sum(bundle.get("GPU", 0) for bundle in bundles)


@pytest.fixture(scope="module")
def overrides(serve_config: ServeDeploySchema) -> dict[str, Document]:
    (application,) = serve_config.applications
    return {d.name: d.model_dump(exclude_unset=True) for d in application.deployments}


def test_the_overrides_repeat_what_the_arguments_ask_for(
    config: ServeConfig, overrides: dict[str, Document]
) -> None:
    class Ingress:
        def __init__(self, *_: object) -> None: ...

    built = build_app(app.application(config, Ingress), name="tandem")
    assert {deployment.name for deployment in built.deployments} == set(overrides)
    for deployment in built.deployments:
        options, own = overrides[deployment.name], deployment._replica_config
        if own.placement_group_bundles is None:
            asked = {k: v for k, v in own.ray_actor_options.items() if k in ("num_cpus", "num_gpus") and v}
            given = {k: v for k, v in options["ray_actor_options"].items() if k != "label_selector"}
            assert given == asked, deployment.name
        else:
            assert options["placement_group_bundles"] == own.placement_group_bundles, deployment.name


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_hosts_its_replicas(
    cluster: Document, config: ServeConfig, overrides: dict[str, Document], name: str
) -> None:
    workers, limits = group(cluster, name), container(cluster, name)["resources"]["limits"]
    (demand,) = (d for d in map(Demand, overrides.values()) if d.labels == workers["labels"])
    fewest, most = {
        "ingress": (config.ingress_replicas, config.ingress_replicas),
        "encoder": config.encoder_replicas,
        "decoder": config.decoder_replicas,
    }[name]

    by_cpu = math.floor(int(limits["cpu"]) / demand.cpus)
    on_one_pod = min(by_cpu, int(limits["nvidia.com/gpu"]) // demand.gpus) if demand.gpus else by_cpu
    if name == "ingress":
        on_one_pod = min(on_one_pod, overrides["Ingress"]["max_replicas_per_node"])

    assert on_one_pod >= 1
    assert workers["minReplicas"] * on_one_pod >= fewest
    assert workers["maxReplicas"] * on_one_pod >= most
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]


def test_no_replica_runs_on_the_head(service: Document, cluster: Document) -> None:
    assert group(cluster, "head")["rayStartParams"]["num-cpus"] == "0"
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True


def test_the_autoscaler_adds_and_removes_pods(cluster: Document) -> None:
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["version"] == "v2"


@pytest.mark.parametrize("name", ["head", *GROUPS])
def test_pods_are_locked_down(cluster: Document, name: str) -> None:
    spec, ray = group(cluster, name)["template"]["spec"], container(cluster, name)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert ray["securityContext"]["readOnlyRootFilesystem"] is True
    assert ray["securityContext"]["allowPrivilegeEscalation"] is False
    assert ray["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    if name != "head":  # the autoscaler needs its account
        assert spec["automountServiceAccountToken"] is False
    mounts = {mount["name"]: mount["mountPath"] for mount in ray["volumeMounts"]}
    assert mounts == {"tmp": "/tmp", "shm": "/dev/shm"}
    volumes = {volume["name"]: volume["emptyDir"] for volume in spec["volumes"]}
    assert volumes.keys() == mounts.keys()
    assert volumes["shm"]["medium"] == "Memory"
    assert all("sizeLimit" in volume for volume in volumes.values())
    assert ray["resources"]["requests"] == ray["resources"]["limits"]


def test_every_pod_runs_one_pinned_image(cluster: Document) -> None:
    (image,) = {container(cluster, name)["image"] for name in ("head", *GROUPS)}
    assert re.fullmatch(r"[^:@]+:(?!latest$)[\w.-]+|[^@]+@sha256:[0-9a-f]{64}", image)


def test_probes_are_the_operators(cluster: Document) -> None:
    for name in ("head", *GROUPS):
        assert not {"livenessProbe", "readinessProbe"} & container(cluster, name).keys()


def test_prometheus_is_sent_where_the_figures_are_and_let_in(cluster: Document) -> None:
    ours, rays = documents("prometheus/pod-monitor.yaml")
    everyone, _ = documents("network-policy.yaml")
    (open_ports,) = (
        {port["port"] for port in rule["ports"]}
        for rule in everyone["spec"]["ingress"]
        if any("prometheus" in str(source) for source in rule["from"])
    )
    for monitor, scraped in ((ours, ["ingress"]), (rays, ["head", *GROUPS])):
        labels = monitor["spec"]["selector"]["matchLabels"].items()
        pods = {name: group(cluster, name)["template"]["metadata"]["labels"] for name in ("head", *GROUPS)}
        assert [name for name, pod in pods.items() if labels <= pod.items()] == scraped
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        for name in scraped:
            ports = {port["name"]: port["containerPort"] for port in container(cluster, name)["ports"]}
            assert ports[endpoint["port"]] in open_ports, name
    assert ours["spec"]["podMetricsEndpoints"][0]["path"] == "/metrics"


def test_budgets_and_policies_select_the_pods(cluster: Document) -> None:
    pods = [group(cluster, name)["template"]["metadata"]["labels"] for name in ("head", *GROUPS)]

    def selected(labels: Document) -> list[Document]:
        return [pod for pod in pods if labels.items() <= pod.items()]

    for budget in documents("pod-disruption-budgets.yaml"):
        assert len(selected(budget["spec"]["selector"]["matchLabels"])) == 1, budget["metadata"]["name"]
    everyone, head = documents("network-policy.yaml")
    assert selected(everyone["spec"]["podSelector"]["matchLabels"]) == pods
    assert selected(head["spec"]["podSelector"]["matchLabels"]) == pods[:1]
