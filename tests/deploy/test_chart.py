"""The Helm chart, as a real helm has rendered it for each set of values: against the schemas of Kubernetes
and Serve, and the application that it deploys. scripts/check_chart.py renders it, and knows KubeRay's."""

from __future__ import annotations

import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import Any

import chart
import dockerfile
import jsonschema
import kubernetes_validate
import pytest
import yaml
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from tandem.cluster import app
from tandem.cluster.config import ServeConfig, parse_args
from tandem.cluster.keys import Keys
from tandem.cluster.listening import Listening
from tandem.cluster.start import GRPC_SERVICES, serve_settings
from tandem.protocol.rpc import HEALTH, SERVICE

STAGES = ("ingress", "encoder", "decoder")

Document = dict[str, Any]


def merged(base: Document, over: Document) -> Document:
    """As helm merges a file of values with the defaults."""
    both = {**base, **over}
    for name in base.keys() & over.keys():
        if isinstance(base[name], dict) and isinstance(over[name], dict):
            both[name] = merged(base[name], over[name])
    return both


def values_of(name: str) -> Document:
    defaults = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    return merged(defaults, yaml.safe_load(chart.values_file(name).read_text()))


class Release:
    """What helm makes of one set of values."""

    def __init__(self, name: str) -> None:
        self.values = values_of(name)
        text = chart.rendered_file(name).read_text()
        self.documents: list[Document] = [each for each in yaml.safe_load_all(text) if each]
        (self.service,) = self.all("RayService")
        self.cluster: Document = self.service["spec"]["rayClusterConfig"]
        self.serve = ServeDeploySchema(**yaml.safe_load(self.service["spec"]["serveConfigV2"]))
        (self.application,) = self.serve.applications
        self.config: ServeConfig = parse_args(self.application.args)
        self.groups: dict[str, Document] = {"head": self.cluster["headGroupSpec"]}
        self.groups |= {group["groupName"]: group for group in self.cluster["workerGroupSpecs"]}

    def all(self, kind: str) -> list[Document]:
        return [document for document in self.documents if document["kind"] == kind]

    def container(self, name: str) -> Document:
        (only,) = self.groups[name]["template"]["spec"]["containers"]
        return dict(only)

    def labels(self, name: str) -> Document:
        return dict(self.groups[name]["template"]["metadata"]["labels"])

    def selected(self, selector: Document) -> list[str]:
        """The groups whose pods a selector finds."""
        wanted = selector["matchLabels"].items()
        return [name for name in self.groups if wanted <= self.labels(name).items()]

    def environment(self, name: str) -> dict[str, str]:
        return {each["name"]: each.get("value", "") for each in self.container(name)["env"]}


RELEASES = {name: Release(name) for name in chart.SETS}


@pytest.fixture(params=chart.SETS)
def release(request: pytest.FixtureRequest) -> Release:
    return RELEASES[request.param]


@pytest.fixture(scope="module")
def schema() -> Document:
    read: Document = json.loads((chart.CHART / "values.schema.json").read_text())
    return read


@pytest.mark.parametrize("name", chart.SETS)
def test_it_is_rendered_from_the_chart_as_it_is(name: str) -> None:
    head = chart.rendered_file(name).read_text().partition("\n")[0]
    assert head + "\n" == chart.head_line(), "run scripts/check_chart.py HELM CRD... --write"


def test_the_sets_are_those_that_are_rendered() -> None:
    assert set(chart.SETS) == {"cpu", "gpu-colocated", "gpu-disaggregated", "secured"}
    assert sorted(path.stem for path in chart.rendered_file("cpu").parent.iterdir()) == chart.SETS


@pytest.mark.parametrize("name", chart.SETS)
def test_the_schema_takes_the_values(schema: Document, name: str) -> None:
    jsonschema.Draft202012Validator(schema).validate(values_of(name))


WRONG = {
    "a name that is not there": {"decoder": {"replicas": 3}},
    "a tag that moves": {"image": {"tag": "latest"}},
    "a digest that is none": {"image": {"digest": "sha256:abc"}},
    "no replicas": {"ingress": {"replicas": 0}},
    "half a core, which Ray would round up": {"ingress": {"resources": {"cpu": "500m"}}},
    "an argument that is the chart's": {"arguments": {"ingress_mode": "direct"}},
    "TLS, which the operator's probes do not speak": {"arguments": {"tls_cert": "/tls.crt"}},
    "a key instead of its hash": {"keys": {"file": "acme tandem-abcdef"}},
    "Redis without an address": {"controlPlane": {"store": "redis"}},
    "a gateway without names": {"gateway": {"enabled": True, "className": "envoy", "tlsSecret": "tls"}},
    "a gateway of nobody": {"gateway": {"enabled": True, "httpHost": "a.example", "grpcHost": "b.example"}},
}


@pytest.mark.parametrize("values", WRONG.values(), ids=WRONG)
def test_the_schema_refuses(schema: Document, values: Document) -> None:
    default = yaml.safe_load((chart.CHART / "values.yaml").read_text())
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(default)
    assert not validator.is_valid(merged(default, values))


def test_no_two_values_say_the_same(schema: Document) -> None:
    refused = schema["properties"]["arguments"]["propertyNames"]["not"]["enum"]
    for release in RELEASES.values():
        own = release.application.args.keys() - release.values["arguments"].keys()
        assert own <= set(refused)
    for name in refused:
        assert hasattr(ServeConfig, name), name


def test_kubernetes_accepts(release: Release) -> None:
    for document in release.documents:
        if document["apiVersion"] in chart.KUBERNETES_OWN:
            kubernetes_validate.validate(document, chart.KUBERNETES, strict=True)
    for name, group in release.groups.items():
        pod = {"apiVersion": "v1", "kind": "Pod", **group["template"]}
        pod["metadata"] = pod["metadata"] | {"name": name}
        kubernetes_validate.validate(pod, chart.KUBERNETES, strict=True)


def test_ray_is_the_release_tandem_is_built_on(release: Release) -> None:
    assert release.cluster["rayVersion"].split(".")[:2] == version("ray").split(".")[:2]


def test_the_chart_is_of_this_version() -> None:
    about = yaml.safe_load((chart.CHART / "Chart.yaml").read_text())
    assert about["appVersion"] == version("tandem-serve")


def test_the_application_is_this_one(release: Release) -> None:
    module, _, function = release.application.import_path.partition(":")
    assert (module, function) == (app.__name__, app.build.__name__)
    assert release.application.route_prefix == "/"


def test_clients_reach_it_on_the_ports_of_the_proxies(release: Release) -> None:
    serve = release.serve
    assert release.config.ingress_mode == "proxy"
    assert serve.proxy_location == "EveryNode"
    assert serve.http_options.host == "0.0.0.0"
    assert list(serve.grpc_options.grpc_servicer_functions) == GRPC_SERVICES
    assert not serve.grpc_options.enable_reflection
    expected = {
        "serve": (serve.http_options.port, "http"),
        "serve-grpc": (serve.grpc_options.port, "kubernetes.io/h2c"),
    }
    ports = release.service["spec"]["serveService"]["spec"]["ports"]
    assert {p["name"]: (p["targetPort"], p["appProtocol"]) for p in ports} == expected
    for name in release.groups:  # the operator reads the head's, and probes the workers'
        declared = {p["name"]: p["containerPort"] for p in release.container(name)["ports"]}
        assert all(declared[port] == number for port, (number, _) in expected.items()), name


def test_the_processes_have_the_settings_of_a_cluster_that_we_start(release: Release) -> None:
    ours = serve_settings(release.config)
    assert ours.items() >= Listening(grpc_host="0.0.0.0").environment().items()
    # What holds for a laptop alone: its workers' nice value, and threads that share its cores.
    apart = {"RAY_worker_niceness", "OMP_WAIT_POLICY"}
    for name in release.groups:
        given = release.environment(name)
        assert {key: given.get(key) for key in ours.keys() - apart} == {
            k: ours[k] for k in ours.keys() - apart
        }


def test_a_pod_that_goes_has_the_time_of_the_longest_answer(release: Release) -> None:
    assert release.service["spec"]["upgradeStrategy"]["type"] == "NewCluster"
    assert release.service["spec"]["rayClusterDeletionDelaySeconds"] >= release.config.limits.timeout_s
    for name, group in release.groups.items():
        drain = float(release.environment(name)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        if name == "head":
            assert drain == 0
        else:
            assert drain >= max(release.config.drain_timeout_s, release.config.limits.timeout_s)
            assert group["template"]["spec"]["terminationGracePeriodSeconds"] > drain


class Demand:
    """What one replica of a deployment asks of a node, by its entry in the Serve config."""

    def __init__(self, options: Document) -> None:
        actor = options.get("ray_actor_options", {})
        bundles = options.get("placement_group_bundles") or [
            {"CPU": actor.get("num_cpus", 1), "GPU": actor.get("num_gpus", 0)}
        ]
        selectors = options.get("placement_group_bundle_label_selector") or [actor["label_selector"]]
        assert len(selectors) == len(bundles)
        assert all(selector == selectors[0] for selector in selectors)
        self.labels: dict[str, str] = selectors[0]
        self.cpus = sum(bundle["CPU"] for bundle in bundles)  # STRICT_PACK: all on one node
        self.gpus = sum(bundle.get("GPU", 0) for bundle in bundles)


def overrides(release: Release) -> dict[str, Document]:
    return {d.name: d.model_dump(exclude_unset=True) for d in release.application.deployments}


def test_the_overrides_repeat_what_the_arguments_ask_for(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ingress:
        def __init__(self, *_: object) -> None: ...

    # Models that are not here; any has the same deployments.
    monkeypatch.setattr(app, "resolve_auto", lambda config: config)
    built = build_app(app.application(release.config, Ingress), name="tandem")
    given = overrides(release)
    assert {deployment.name for deployment in built.deployments} == set(given)
    for deployment in built.deployments:
        options, own = given[deployment.name], deployment._replica_config
        if own.placement_group_bundles is None:
            repeated = ("num_cpus", "num_gpus", "runtime_env")
            asked = {k: v for k, v in own.ray_actor_options.items() if k in repeated and v}
            without = {k: v for k, v in options["ray_actor_options"].items() if k != "label_selector"}
            assert without == asked, deployment.name
        else:
            assert options["placement_group_bundles"] == own.placement_group_bundles, deployment.name


@pytest.mark.parametrize("stage", STAGES)
def test_a_group_hosts_its_replicas(release: Release, stage: str) -> None:
    if release.config.placement == "colocated" and stage == "encoder":
        assert stage not in release.groups
        return
    workers, limits = release.groups[stage], release.container(stage)["resources"]["limits"]
    given = overrides(release)
    (demand,) = (d for d in map(Demand, given.values()) if d.labels == workers["labels"])
    fewest, most = {
        "ingress": (release.config.ingress_replicas, release.config.ingress_replicas),
        "encoder": release.config.encoder_replicas,
        "decoder": release.config.decoder_replicas,
    }[stage]

    by_cpu = math.floor(int(limits["cpu"]) / demand.cpus)
    on_one_pod = min(by_cpu, int(limits["nvidia.com/gpu"]) // demand.gpus) if demand.gpus else by_cpu
    if stage == "ingress":
        on_one_pod = min(on_one_pod, given["Ingress"]["max_replicas_per_node"])

    assert on_one_pod >= 1
    assert workers["minReplicas"] * on_one_pod >= fewest
    assert workers["maxReplicas"] * on_one_pod >= most
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    assert ("nvidia.com/gpu" in limits) == (release.config.device == "cuda" and stage != "ingress")


def test_no_replica_runs_on_the_head(release: Release) -> None:
    assert release.groups["head"]["rayStartParams"]["num-cpus"] == "0"
    assert release.service["spec"]["excludeHeadPodFromServeSvc"] is True


def test_the_autoscaler_adds_and_removes_pods(release: Release) -> None:
    assert release.cluster["enableInTreeAutoscaling"] is True
    assert release.cluster["autoscalerOptions"]["version"] == "v2"


def test_pods_are_locked_down(release: Release) -> None:
    assert release.cluster["authOptions"] == {"mode": "token"}
    for name, group in release.groups.items():
        spec, ray = group["template"]["spec"], release.container(name)
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert ray["securityContext"]["readOnlyRootFilesystem"] is True
        assert ray["securityContext"]["allowPrivilegeEscalation"] is False
        assert ray["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        if name != "head":  # the autoscaler needs its account
            assert spec["automountServiceAccountToken"] is False
        mounts = {mount["name"]: mount for mount in ray["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        assert volumes.keys() == mounts.keys()
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        for volume in mounts:
            if volume in ("tmp", "shm"):
                assert "sizeLimit" in volumes[volume]["emptyDir"]
            else:
                assert mounts[volume]["readOnly"] is True
        assert ray["resources"]["requests"] == ray["resources"]["limits"]


def test_every_pod_runs_one_pinned_image(release: Release) -> None:
    (image,) = {release.container(name)["image"] for name in release.groups}
    if digest := release.values["image"]["digest"]:
        assert image == f"tandem-serve@{digest}"
    else:
        device = "gpu" if release.config.device == "cuda" else "cpu"
        assert device in dockerfile.DEVICES
        assert image == f"tandem-serve:{version('tandem-serve')}-{device}"


def test_probes_are_the_operators(release: Release) -> None:
    for name in release.groups:
        assert not {"livenessProbe", "readinessProbe"} & release.container(name).keys()


def test_budgets_block_no_drain(release: Release) -> None:
    budgets = {}
    for budget in release.all("PodDisruptionBudget"):
        (group,) = release.selected(budget["spec"]["selector"])
        budgets[group] = budget["spec"].keys() - {"selector"}, budget["spec"]["maxUnavailable"]
    assert budgets == {name: ({"maxUnavailable"}, 1) for name in release.groups if name != "head"}


def test_policies_select_the_pods(release: Release) -> None:
    everyone, head = release.all("NetworkPolicy")
    assert release.selected(everyone["spec"]["podSelector"]) == list(release.groups)
    assert release.selected(head["spec"]["podSelector"]) == ["head"]


def test_prometheus_is_sent_where_the_figures_are_and_let_in(release: Release) -> None:
    monitors = release.all("PodMonitor")
    assert bool(monitors) == release.values["monitoring"]["enabled"]
    everyone, _ = release.all("NetworkPolicy")
    (open_ports,) = (
        {port["port"] for port in rule["ports"]}
        for rule in everyone["spec"]["ingress"]
        if any("prometheus" in str(source) for source in rule["from"])
    )
    for monitor, scraped in zip(monitors, (["ingress"], list(release.groups)), strict=False):
        assert release.selected(monitor["spec"]["selector"]) == scraped
        assert monitor["metadata"]["labels"].items() >= release.values["monitoring"]["labels"].items()
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        for name in scraped:
            ports = {port["name"]: port["containerPort"] for port in release.container(name)["ports"]}
            assert ports[endpoint["port"]] in open_ports, name
    # Ours are on a port that no client reaches.
    declared = {port["name"]: port["containerPort"] for port in release.container("ingress")["ports"]}
    assert declared["figures"] == release.config.metrics_port
    assert release.config.host == "0.0.0.0"


def test_a_store_is_the_one_that_was_asked_for(release: Release) -> None:
    store = release.values["controlPlane"]["store"]
    options = release.cluster.get("gcsFaultToleranceOptions")
    if store == "none":
        assert options is None
    elif store == "rocksdb":
        assert options == {"backend": "rocksdb", "storage": {"size": "1Gi", "storageClassName": "ssd"}}
    else:
        secret = {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}}
        address = "redis.redis.svc:6379"
        assert options == {"backend": "redis", "redisAddress": address, "redisPassword": secret}
        _, head = release.all("NetworkPolicy")
        assert {"protocol": "TCP", "port": 6379} in head["spec"]["egress"][0]["ports"]


def test_every_store_is_in_a_set() -> None:
    stores = {release.values["controlPlane"]["store"] for release in RELEASES.values()}
    assert stores == {"none", "redis", "rocksdb"}


def test_keys_are_where_the_ingress_looks(release: Release) -> None:
    maps = release.all("ConfigMap")
    assert bool(maps) == bool(release.config.api_keys)
    if maps:
        ((file, text),) = maps[0]["data"].items()
        mounts = {mount["name"]: mount["mountPath"] for mount in release.container("ingress")["volumeMounts"]}
        assert f"{mounts['keys']}/{file}" == release.config.api_keys
        (volume,) = (
            v for v in release.groups["ingress"]["template"]["spec"]["volumes"] if v["name"] == "keys"
        )
        assert volume["configMap"]["name"] == maps[0]["metadata"]["name"]
        assert text == release.values["keys"]["file"]


def test_the_example_of_a_file_of_keys_is_one(tmp_path: Path) -> None:
    file = tmp_path / "keys.txt"
    file.write_text(RELEASES["secured"].values["keys"]["file"])
    caller = Keys(str(file), None).caller("foo")
    assert caller is not None
    assert caller.quotas.in_flight == 16


def test_models_of_a_claim_are_found(release: Release) -> None:
    if claim := release.values["model"]["claim"]:
        for name in release.groups:
            mounts = {m["name"]: m["mountPath"] for m in release.container(name)["volumeMounts"]}
            assert release.config.model.startswith(mounts["models"] + "/")
            (volume,) = (
                v for v in release.groups[name]["template"]["spec"]["volumes"] if v["name"] == "models"
            )
            assert volume["persistentVolumeClaim"]["claimName"] == claim


def test_a_gateway_knows_both_protocols() -> None:
    release = RELEASES["secured"]
    (gateway,), (http,), (grpc,) = map(release.all, ("Gateway", "HTTPRoute", "GRPCRoute"))
    listeners = {each["name"]: each for each in gateway["spec"]["listeners"]}
    names = set()
    for route, section, port in ((http, "http", 8000), (grpc, "grpc", 9000)):
        (parent,) = route["spec"]["parentRefs"]
        assert parent == {"name": gateway["metadata"]["name"], "sectionName": section}
        (name,) = route["spec"]["hostnames"]
        assert listeners[section]["hostname"] == name
        assert listeners[section]["protocol"] == "HTTPS"
        names.add(name)
        backend = route["spec"]["rules"][-1]["backendRefs"]
        assert backend == [
            {"name": release.service["spec"]["serveService"]["metadata"]["name"], "port": port}
        ]
    assert len(names) == 2
    matches = [match["method"]["service"] for match in grpc["spec"]["rules"][0]["matches"]]
    assert matches == [service.full_name for service in (SERVICE, HEALTH)]
    paths = [rule["matches"][0]["path"]["value"] for rule in http["spec"]["rules"]]
    assert paths == ["/-", "/"]  # Serve's own are not for clients
