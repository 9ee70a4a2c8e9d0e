"""The kustomize base holds together: names, labels, commands and metrics exist.

``kubectl kustomize`` builds it, and ``promtool`` raises its alarms, where these are installed.
"""

import json
import re
import shutil
import subprocess
from copy import deepcopy
from pathlib import Path

import pytest
import ray
import yaml

from tests.support.paths import REPOSITORY
from workflows.cli import cli
from workflows.recipe.load import load_recipe
from workflows.service.proxy import WITHOUT_LOSS
from workflows.service.telemetry import Metrics

ROOT = REPOSITORY / "deploy/kustomize"
FOLDERS = ("base", "example", "monitoring")


def _documents(folder: str) -> dict[tuple[str, str], dict]:
    """The resources of a folder by kind and name."""
    listed = yaml.safe_load((ROOT / folder / "kustomization.yaml").read_text())["resources"]
    found = {}
    for name in listed:
        if not name.startswith(".."):
            for document in yaml.safe_load_all((ROOT / folder / name).read_text()):
                found[document["kind"], document["metadata"]["name"]] = document
    return found


BASE, MONITORING, EXAMPLE = map(_documents, ("base", "monitoring", "example"))
CLUSTER = BASE["RayService", "skysift"]["spec"]["rayClusterConfig"]
LABEL = {"app.kubernetes.io/name": "skysift"}
CRON_POD = BASE["CronJob", "skysift-watch"]["spec"]["jobTemplate"]["spec"]["template"]
TEMPLATES = {
    "head": CLUSTER["headGroupSpec"]["template"],
    **{group["groupName"]: group["template"] for group in CLUSTER["workerGroupSpecs"]},
    "watch": CRON_POD,
}


def test_every_file_is_listed():
    for folder in FOLDERS:
        text = (ROOT / folder / "kustomization.yaml").read_text()
        for path in (ROOT / folder).glob("*.yaml"):
            assert path.name == "kustomization.yaml" or path.name in text, path


@pytest.mark.parametrize("role", TEMPLATES)
def test_pods_are_confined_and_have_the_recipe(role: str):
    spec = TEMPLATES[role]["spec"]
    assert ("ServiceAccount", spec["serviceAccountName"]) in BASE
    assert spec["securityContext"]["runAsNonRoot"]
    (container,) = spec["containers"]
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    (volume,) = spec["volumes"]
    (mount,) = container["volumeMounts"]
    assert (volume["name"], mount["mountPath"]) == (mount["name"], "/etc/skysift")
    assert volume["configMap"] == {"name": "skysift-recipe"}
    assert (
        container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    )


def test_replicas_are_behind_haproxy_as_those_of_the_command():
    for role in ("head", "search"):
        (container,) = TEMPLATES[role]["spec"]["containers"]
        given = {each["name"]: each.get("value") for each in container["env"]}
        assert given["RAY_SERVE_ENABLE_HA_PROXY"] == "1"
        retried = {name: text for name, text in given.items() if name in WITHOUT_LOSS}
        assert retried == WITHOUT_LOSS
    for rule in BASE["NetworkPolicy", "skysift"]["spec"]["ingress"]:
        within = rule["from"] == [{"podSelector": {"matchLabels": LABEL}}]
        opened = {port["port"] for port in rule.get("ports", ())}
        assert within or (opened and not opened & {8404, 9101})  # HAProxy's state


def test_no_group_of_the_service_asks_for_a_gpu():
    assert "nvidia" not in (ROOT / "base/rayservice.yaml").read_text()


def test_selectors_match_the_labels_of_the_pods():
    labels = {role: template["metadata"]["labels"] for role, template in TEMPLATES.items()}

    def chosen(selector: dict) -> set[str]:
        wanted = selector["matchLabels"].items()
        return {role for role, own in labels.items() if wanted <= own.items()}

    budget = BASE["PodDisruptionBudget", "skysift-search"]["spec"]
    assert chosen(budget["selector"]) == {"search"}
    assert chosen(BASE["NetworkPolicy", "skysift"]["spec"]["podSelector"]) == set(labels)
    spread = TEMPLATES["search"]["spec"]["topologySpreadConstraints"]
    assert [chosen(each["labelSelector"]) for each in spread] == [{"search"}]
    monitor = MONITORING["PodMonitor", "skysift-ray"]["spec"]
    assert {"head", "search"} <= chosen(monitor["selector"])
    ports = {port["name"] for port in TEMPLATES["search"]["spec"]["containers"][0]["ports"]}
    named = {end["port"] for end in monitor["podMetricsEndpoints"]}
    named |= {end["port"] for end in MONITORING["ServiceMonitor", "skysift"]["spec"]["endpoints"]}
    assert named == ports


def test_a_drain_leaves_a_copy_of_each_shard():
    recipe = load_recipe(str(ROOT / "base/recipe.yaml")).recipe
    (search,) = CLUSTER["workerGroupSpecs"]
    assert (
        recipe.search.replicas
        > BASE["PodDisruptionBudget", "skysift-search"]["spec"]["maxUnavailable"]
    )
    assert search["replicas"] >= recipe.search.replicas


def test_every_command_is_one_of_the_command_line():
    (container,) = CRON_POD["spec"]["containers"]
    program, verb, *arguments = container["command"]
    assert program == "skysift"
    context = cli.get_command(None, verb).make_context(verb, arguments)
    assert context.params["once"] is True
    texts = " ".join(path.read_text() for path in ROOT.rglob("*.yaml"))
    for named in re.findall(r"`skysift ([a-z ]+?)(?: -[^`]*)?`", texts):
        command = cli
        for word in named.split():
            command = command.get_command(None, word)
            assert command is not None, named


def test_the_ingress_leads_to_the_service_that_kuberay_makes():
    (rule,) = EXAMPLE["Ingress", "skysift"]["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    backend = path["backend"]["service"]
    name = BASE["RayService", "skysift"]["metadata"]["name"]
    assert backend == {"name": f"{name}-serve-svc", "port": {"number": 8000}}
    (tls,) = EXAMPLE["Ingress", "skysift"]["spec"]["tls"]
    assert tls["hosts"] == [rule["host"]]


def test_every_metric_of_the_rules_exists():
    groups = MONITORING["PrometheusRule", "skysift"]["spec"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    ours = Metrics()
    ours.answered("GET", "/", 200, 0.1)
    text = ours.text().decode()
    folder = Path(ray.__file__).parent / "dashboard/modules/metrics/dashboards"
    theirs = " ".join(path.read_text() for path in folder.glob("*.py"))
    for rule in rules:
        assert rule["annotations"].keys() == {"summary", "description"}
        names = set(re.findall(r"\b(?:skysift|ray)_[a-z_]+\b", rule["expr"]))
        assert names, rule
        for name in names:
            assert name in (theirs if name.startswith("ray_") else text), (rule["alert"], name)


def test_the_alarm_of_replicas_counts_those_of_the_service():
    (served,) = yaml.safe_load(BASE["RayService", "skysift"]["spec"]["serveConfigV2"])[
        "applications"
    ]
    (deployment,) = served["deployments"]
    rules = (ROOT / "monitoring/rules.yaml").read_text()
    assert f'{{deployment="{deployment["name"]}"}}) < {deployment["num_replicas"]} ' in rules


SERIES = {
    'skysift_archive_commit_time_seconds{index="coast"}': "0x4000",
    'skysift_archive_commit_time_seconds{index="prairie"}': "0+60x4000",
    'skysift_archive_scenes{index="coast",state="embedded"}': "90x4000",
    'skysift_archive_scenes{index="coast",state="quarantined"}': "10x4000",
    'skysift_token_file_invalid{index="",replica="a"}': "0x4000",
    'skysift_index_rows{index="coast"}': "9x4000",
    'ray_serve_deployment_replica_healthy{deployment="search",replica="a"}': "1x4000",
}


@pytest.mark.skipif(
    not shutil.which("promtool"), reason="promtool is not installed; Debian's prometheus has it"
)
def test_prometheus_raises_the_alarms(tmp_path: Path):
    """Two days without a commit of one index, a tenth of its scenes set aside, one replica left."""
    spec = deepcopy(MONITORING["PrometheusRule", "skysift"]["spec"])
    raised = {
        "SkysiftNothingNew": {"index": "coast"},
        "SkysiftQuarantine": {"index": "coast"},
        "SkysiftReplicaDown": {},
    }
    rules = {rule["alert"]: rule for group in spec["groups"] for rule in group["rules"]}
    expected = [
        {
            "eval_time": "48h",
            "alertname": name,
            "exp_alerts": [{"exp_labels": {**rules[name]["labels"], **raised[name]}}]
            if name in raised
            else [],
        }
        for name in rules
    ]
    for rule in rules.values():
        del rule["annotations"]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(spec))
    series = [{"series": name, "values": values} for name, values in SERIES.items()]
    checks = [{"interval": "1m", "input_series": series, "alert_rule_test": expected}]
    (tmp_path / "test.yaml").write_text(
        yaml.safe_dump({"rule_files": ["rules.yaml"], "tests": checks})
    )
    command = ["promtool", "test", "rules", tmp_path / "test.yaml"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kustomize_builds_the_overlay():
    built = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "example")], capture_output=True, text=True, check=True
    )
    documents = list(yaml.safe_load_all(built.stdout))
    (recipe,) = (each for each in documents if each["kind"] == "ConfigMap")
    name = recipe["metadata"]["name"]
    assert re.fullmatch(r"skysift-recipe-\w{10}", name)
    text = json.dumps(documents)
    assert text.count(f'"configMap": {{"name": "{name}"}}') == len(TEMPLATES)
    assert '"image": "skysift:' not in text
