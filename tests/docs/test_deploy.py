"""What lies in deploy/ fits the program: series, labels, flags, times; and others' schemas."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import promql_parser
import pytest
import typer
import yaml

from lingflash.api.app import create_app
from lingflash.api.config import ServerConfig
from lingflash.cli import app
from lingflash.cli.options import SETTINGS
from lingflash.cluster.config import load_cluster
from lingflash.core.metrics import ServerMetrics
from lingflash.core.settings import settings_of
from lingflash.core.types import EngineStats
from lingflash.gateway.config.load import load_config
from lingflash.link.scripted import ScriptedEngine

DEPLOY = Path(__file__).parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text(encoding="utf-8"))
ALERTS = yaml.safe_load((DEPLOY / "prometheus-alerts.yaml").read_text(encoding="utf-8"))
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
MANIFESTS = list(
    yaml.safe_load_all((DEPLOY / "kubernetes" / "server.yaml").read_text(encoding="utf-8"))
)
CLUSTER = list(
    yaml.safe_load_all((DEPLOY / "kubernetes" / "cluster.yaml").read_text(encoding="utf-8"))
)
# Of ray.io/v1, as KubeRay's API reference lists them, but for what is of Kubernetes' own kinds.
RAY_CLUSTER = {
    "spec": {"authOptions", "enableInTreeAutoscaling", "headGroupSpec", "rayVersion",
             "workerGroupSpecs"},
    "headGroupSpec": {"rayStartParams", "template"},
    "workerGroupSpecs": {"groupName", "maxReplicas", "minReplicas", "rayStartParams", "replicas",
                         "template"},
    "authOptions": {"mode"},
}  # fmt: skip
# Labels that whoever scrapes adds.
ADDED = {"instance", "job", "le"}
KUBERNETES = "1.37"


def expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def known_series():
    """Each series that a server can have, and its labels, as its page of metrics is written."""
    plan = {"weights": 1}
    stats = EngineStats(cache_bytes={"free": 1}, prefix_results={"found": 1})
    metrics = ServerMetrics(lambda: stats, lambda: True, lambda: plan)
    known = {}
    for family in metrics.registry.collect():
        labels = {label for sample in family.samples for label in sample.labels}
        # One that has had no value yet: what it was declared with.
        declared = metrics.registry._names_to_collectors.get(family.name)
        labels |= set(getattr(declared, "_labelnames", ()))
        suffixes = {
            "counter": ("_total",),
            "histogram": ("_bucket", "_sum", "_count"),
        }.get(family.type, ("",))
        known |= {family.name + suffix: labels for suffix in suffixes}
    return known


@pytest.mark.parametrize(("title", "expression"), list(expressions()))
def test_expression_then_it_parses_and_its_series_and_labels_are_there(title, expression):
    known = known_series()
    parsed = promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    text = parsed.prettify()
    selectors = re.findall(r"(lingflash_\w+)(?:\{([^}]*)\})?", text)
    assert selectors, title
    for name, matchers in selectors:
        assert name in known, f"{title}: there is no series {name}"
        labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', matchers)))
        assert labels <= known[name] | ADDED, title
    grouped = {
        label.strip()
        for group in re.findall(r"\bby \(([^)]*)\)", text)
        for label in group.split(",")
    }
    assert grouped <= ADDED | set().union(*(known[name] for name, _ in selectors)), title


def test_dashboard_then_every_panel_has_a_place_of_its_own():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    places = [tuple(panel["gridPos"].values()) for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids) == len(set(places))
    legends = [t["legendFormat"] for p in DASHBOARD["panels"] for t in p["targets"]]
    known = ADDED.union(*known_series().values())
    assert {name for text in legends for name in re.findall(r"\{\{(\w+)\}\}", text)} <= known


def test_alerts_then_each_says_what_is_wrong_and_what_to_do_is_written_down():
    page = (DEPLOY.parent / "docs" / "operating.md").read_text(encoding="utf-8")
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert "{{ $labels.instance }}" in rule["annotations"]["summary"]
        assert f"| `{rule['alert']}` |" in page
    assert len({rule["alert"] for rule in RULES}) == len(RULES)


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda each: each["kind"])
def test_manifest_then_it_follows_the_published_schema(manifest):
    kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


def check_cluster(manifest):
    """A RayCluster: its own fields by the reference, its pods by the published schema."""
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    assert set(manifest) == {"apiVersion", "kind", "metadata", "spec"}
    spec = manifest["spec"]
    groups = [("headGroupSpec", spec["headGroupSpec"])]
    groups += [("workerGroupSpecs", each) for each in spec["workerGroupSpecs"]]
    for name, fields in [("spec", spec), ("authOptions", spec["authOptions"]), *groups]:
        assert set(fields) <= RAY_CLUSTER[name], set(fields) - RAY_CLUSTER[name]
    for _, group in groups:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, **group["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@pytest.mark.parametrize("manifest", CLUSTER, ids=lambda each: each["kind"])
def test_cluster_manifest_then_it_follows_the_published_schema(manifest):
    if manifest["kind"] == "RayCluster":
        check_cluster(manifest)
    else:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)


@pytest.mark.parametrize("name", ["rayStartParams", "containers"])
def test_cluster_manifest_when_a_field_is_misspelt_then_refused(name):
    ray = next(each for each in CLUSTER if each["kind"] == "RayCluster")
    text = json.dumps(ray).replace(f'"{name}"', f'"{name}s"')
    with pytest.raises((AssertionError, KeyError, kubernetes_validate.ValidationError)):
        check_cluster(json.loads(text))


def test_cluster_manifest_then_its_file_paths_and_ports_are_the_programs(tmp_path):
    by_kind = {each["kind"]: each for each in CLUSTER}
    path = tmp_path / "cluster.toml"
    text = by_kind["ConfigMap"]["data"]["cluster.toml"]
    (token,) = re.findall('token_file = "(.*)"', text)
    (tmp_path / "token").write_text("t")
    path.write_text(text.replace(token, str(tmp_path / "token")))
    config = load_cluster(path, {})
    spec = by_kind["RayCluster"]["spec"]
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    mounts = {each["mountPath"] for each in head["volumeMounts"]}
    assert str(Path(token).parent) in mounts
    assert "exec ling cluster up /etc/lingflash/cluster.toml" in head["args"][0]
    ports = {each["name"]: each["containerPort"] for each in head["ports"]}
    (port,) = by_kind["Service"]["spec"]["ports"]
    assert ports[port["targetPort"]] == port["port"] == config.cluster.port
    (workers,) = spec["workerGroupSpecs"]
    (worker,) = workers["template"]["spec"]["containers"]
    assert int(worker["resources"]["limits"]["nvidia.com/gpu"]) == config.replica.num_gpus
    assert workers["replicas"] >= config.scale.most  # surge is 0
    assert Path(config.replica.model).parent.as_posix() in {
        each["mountPath"] for each in worker["volumeMounts"]
    }
    assert {each["name"]: each["value"] for each in head["env"]}["RAY_USAGE_STATS_ENABLED"] == "0"
    assert spec["headGroupSpec"]["rayStartParams"]["include-dashboard"] == "false"


def test_schema_when_a_field_is_misspelt_then_refused():
    wrong = json.loads(json.dumps(MANIFESTS[0]))
    container = wrong["spec"]["template"]["spec"]["containers"][0]
    container["readynessProbe"] = container.pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def options_of(words):
    """The options of `ling serve` that these words give; refuses what the program refuses."""
    command = typer.main.get_command(app).commands["serve"]
    return command.make_context("serve", list(words)).params


def test_manifests_then_flags_variables_paths_and_times_are_the_programs():
    by_kind = {each["kind"]: each for each in MANIFESTS}
    pod = by_kind["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    options = options_of(container["args"])
    variables = {each.variable for cls in SETTINGS for each in settings_of(cls).values()}
    ours = {each["name"] for each in container["env"] if each["name"].startswith("LINGFLASH_")}
    assert ours <= variables
    pause_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= pause_s + options["drain_timeout_s"] + 10
    server = create_app(ScriptedEngine({(): []}, _info()), ServerConfig())
    probes = [container[f"{name}Probe"]["httpGet"] for name in ("startup", "readiness", "liveness")]
    assert {each["path"] for each in probes} <= set(server.openapi()["paths"])
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert {each["port"] for each in probes} <= set(ports)
    (port,) = by_kind["Service"]["spec"]["ports"]
    assert ports[port["targetPort"]] == port["port"] == _entrypoint()["port"]
    mounts = {each["mountPath"] for each in container["volumeMounts"]}
    assert str(options["api_key_file"].parent) in mounts
    labels = by_kind["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        by_kind["Deployment"]["spec"]["selector"]["matchLabels"],
        by_kind["Service"]["spec"]["selector"],
        by_kind["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()


def _info():
    from api_support import engine_info

    return engine_info()


def _entrypoint():
    recipe = (DEPLOY / "container" / "Containerfile").read_text(encoding="utf-8")
    words = json.loads(re.search(r"^ENTRYPOINT (.*)$", recipe, re.MULTILINE)[1])
    assert words[:2] == ["/opt/lingflash/bin/ling", "serve"]
    return options_of(words[2:])


def test_container_then_its_steps_are_the_script():
    recipe = (DEPLOY / "container" / "Containerfile").read_text(encoding="utf-8")
    (step,) = re.findall(r"^RUN (.*)$", recipe, re.MULTILINE)
    assert step.startswith('/usr/src/lingflash/deploy/install.sh "$EXTRA" && rm -rf ')
    assert _entrypoint()["host"] == "0.0.0.0"


def test_unit_then_its_command_is_one_and_its_times_fit():
    unit = (DEPLOY / "lingflash.service").read_text(encoding="utf-8")
    fields = dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))
    words = shlex.split(fields["ExecStart"])
    assert words[:2] == ["/opt/lingflash/bin/ling", "serve"]
    options = options_of(words[2:])
    assert float(fields["TimeoutStopSec"]) >= options["drain_timeout_s"] + 10
    assert "target=/opt/lingflash" in (DEPLOY / "install.sh").read_text(encoding="utf-8")


def test_readmes_gateway_file_then_it_loads_as_it_is():
    config = load_config(DEPLOY / "gateway.toml", {})
    assert list(config.upstreams) == ["home"]
    assert config.catalog.resolve("ling").model.name == "inclusionai/ling-2.6-flash"
