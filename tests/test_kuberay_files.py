"""The Kubernetes files fit the published definitions of their kinds, and one another."""

import gzip
import re
from importlib.metadata import version

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.serve.schema import ServeDeploySchema

from storage.errors import ConfigError
from tests.support.paths import REPOSITORY
from workflows.commands.doctor import doctor
from workflows.service.deploy import Arguments, application

DEFINITIONS = REPOSITORY.parent / "shared/schemas/kuberay"
CLUSTERS = {
    "raycluster": lambda spec: spec,
    "rayjob": lambda spec: spec["rayClusterSpec"],
    "rayservice": lambda spec: spec["rayClusterConfig"],
}


FILES = {
    "raycluster": "deploy/kuberay/raycluster.yaml",
    "rayjob": "deploy/kuberay/rayjob.yaml",
    "rayservice": "deploy/kustomize/base/rayservice.yaml",
}


def _read(name):
    return yaml.safe_load((REPOSITORY / FILES[name]).read_text())


def _cluster(name):
    return CLUSTERS[name](_read(name)["spec"])


def _closed(schema):
    """Refuse unknown fields, which the API server would drop without a word."""
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or (
        "additionalProperties" in schema
    )
    if isinstance(schema.get("properties"), dict) and not open_ended:
        closed["additionalProperties"] = False
    return closed


@pytest.mark.skipif(not DEFINITIONS.exists(), reason="../shared/schemas/kuberay is not here")
@pytest.mark.parametrize("name", CLUSTERS)
def test_the_file_fits_the_definition_of_its_kind(name):
    document = _read(name)
    text = gzip.decompress((DEFINITIONS / f"ray.io_{name}s.yaml.gz").read_bytes())
    definition = yaml.load(text, yaml.CSafeLoader)
    group, served = document["apiVersion"].split("/")
    assert (group, document["kind"]) == (
        definition["spec"]["group"],
        definition["spec"]["names"]["kind"],
    )
    schema = next(
        each["schema"]["openAPIV3Schema"]["properties"]["spec"]
        for each in definition["spec"]["versions"]
        if each["name"] == served
    )
    check = Draft202012Validator(_closed(schema))
    assert [error.message for error in check.iter_errors(document["spec"])] == []
    assert list(check.iter_errors({**document["spec"], "workerGroups": []}))


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_roles_are_those_of_the_cluster_file(name):
    cluster = _cluster(name)
    aws = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["available_node_types"]
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == str(
        aws["head"]["resources"]["CPU"]
    )
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    assert {"head", *groups} <= set(aws)
    assert ("gpu" in groups) == (name == "raycluster")
    for role, group in groups.items():
        (container,) = group["template"]["spec"]["containers"]
        requests = container["resources"]["requests"]
        assert int(requests["cpu"]) == aws[role]["resources"]["CPU"]
        assert int(requests.get("nvidia.com/gpu", 0)) == aws[role]["resources"].get("GPU", 0)
        assert group["maxReplicas"] == aws[role]["max_workers"]


@pytest.mark.parametrize("name", CLUSTERS)
def test_tokens_are_on_and_ray_is_the_version_of_the_tests(name):
    cluster = _cluster(name)
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["rayVersion"] == version("ray")
    dockerfile = (REPOSITORY / "deploy/Dockerfile").read_text()
    assert set(re.findall(r"RAY=([\d.]+)-py311", dockerfile)) == {version("ray")}


def test_ray_serve_accepts_the_service_and_its_arguments(monkeypatch):
    config = ServeDeploySchema.model_validate(
        yaml.safe_load(_read("rayservice")["spec"]["serveConfigV2"])
    )
    (served,) = config.applications
    assert served.import_path == f"{application.__module__}:{application.__name__}"
    assert served.args == {"recipe": "/etc/skysift/recipe.yaml"}  # where the ConfigMap is mounted
    recipe = REPOSITORY / "deploy/kustomize/base/recipe.yaml"
    arguments = Arguments(recipe=str(recipe))
    monkeypatch.delenv("SKYSIFT_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="needs a token"):
        application(arguments)
    monkeypatch.setenv("SKYSIFT_TOKEN", "0123456789abcdef" * 4)
    (deployment,) = served.deployments
    assert application(arguments)._bound_deployment.name == deployment.name


def test_every_value_that_a_user_must_set_is_marked():
    for path in (REPOSITORY / "deploy").rglob("*.yaml"):
        for line in path.read_text().splitlines():
            value, _, comment = line.partition("#")
            if re.search(r"image: &|s3://|karpenter", value) and value.strip():
                assert "CHANGE-ME:" in comment, (path.name, line)


def test_nodes_with_a_gpu_have_faiss_gpu_in_place_of_faiss_cpu():
    """Both own the files of the module, so the removal has to come first."""
    image = (REPOSITORY / "deploy/Dockerfile").read_text()
    stage = image.partition("FROM gpu-base AS gpu")[2].partition("FROM ")[0]
    nodes = " ".join(yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["setup_commands"])
    for commands in (stage, nodes):
        _, _, after = re.sub(r"--\S+ |-y ", "", commands).partition("uninstall faiss-cpu")
        assert re.search(r"install .*faiss-gpu", after)


def test_a_node_with_a_gpu_is_looked_at_before_it_starts():
    """The command is one that the installed doctor takes; the node's log has what it prints."""
    groups = {group["groupName"]: group for group in _cluster("raycluster")["workerGroupSpecs"]}
    pod = groups["gpu"]["template"]["spec"]
    (look,), (worker,) = pod["initContainers"], pod["containers"]
    assert look["image"] == worker["image"] == "CHANGE-ME/skysift:0.1.0-gpu"
    assert look["resources"] == worker["resources"]
    setup = yaml.safe_load((REPOSITORY / "cluster.yaml").read_text())["setup_commands"]
    nodes = " ".join(setup).partition("nvidia-smi || ~/venv/bin/skysift ")[2]
    options = re.match(r"doctor( --?\S+| \d+)+", nodes).group().split()
    assert look["command"] == ["skysift", *options]
    main = doctor.make_context("doctor", options[1:])
    assert (main.params["no_ray"], main.params["gpus"]) == (True, 1)
