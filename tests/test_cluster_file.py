"""The cluster file is one that Ray's own launcher accepts, with nothing of ours left insecure."""

import re

import pytest
import yaml

import pipeline.search.fleet as fleet
from tests.support.paths import REPOSITORY

CLUSTER_FILE = REPOSITORY / "cluster.yaml"


def test_ray_accepts_the_cluster_file():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load(CLUSTER_FILE.read_text()))
    validate_config(config)
    assert set(config["available_node_types"]) == {"head", "reader", "search", "gpu"}
    config["max_wokers"] = 3
    with pytest.raises(Exception, match="max_wokers"):
        validate_config(config)


def test_every_start_command_turns_tokens_on_and_the_dashboard_stays_on_loopback():
    config = yaml.safe_load(CLUSTER_FILE.read_text())
    starts = [
        command
        for role in ("head", "worker")
        for command in config[f"{role}_start_ray_commands"]
        if "ray start" in command
    ]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]


def test_every_value_that_a_user_must_set_is_marked():
    for line in CLUSTER_FILE.read_text().splitlines():
        value, _, comment = line.partition("#")
        if re.search(r"ami-|arn:", value):
            assert "CHANGE-ME" in value
            assert "CHANGE-ME:" in comment


def test_search_actors_go_to_the_nodes_for_search_where_there_are_some(monkeypatch):
    types = yaml.safe_load(CLUSTER_FILE.read_text())["available_node_types"]
    nodes = [
        {"Alive": True, "NodeID": name, "Resources": about["resources"]}
        for name, about in types.items()
    ]
    monkeypatch.setattr(fleet.ray, "nodes", lambda: nodes)
    assert [node["NodeID"] for node in fleet._nodes()] == ["search"]
    nodes[:] = [node for node in nodes if node["NodeID"] != "search"]
    assert [node["NodeID"] for node in fleet._nodes()] == ["gpu", "reader"]
