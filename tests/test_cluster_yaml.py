"""`cluster.yaml` is valid for Ray and for EC2's RunInstances."""

import copy
from pathlib import Path

import botocore.session
import jsonschema
import pytest
import yaml
from botocore.validate import ParamValidator
from ray.autoscaler._private.util import prepare_config, validate_config

PROJECT_ROOT = Path(__file__).parents[1]
CLUSTER_YAML = PROJECT_ROOT / "cluster.yaml"
TOKEN_FILE = "~/.ray/auth_token"
"""Of the owner, who makes it."""


@pytest.fixture
def cluster():
    return yaml.safe_load(CLUSTER_YAML.read_text())


@pytest.fixture(scope="module")
def run_instances_shape():
    loader = botocore.session.get_session()
    return loader.get_service_model("ec2").operation_model("RunInstances").input_shape


def validate(cluster):
    """Validates like `ray up`: Ray's defaults for AWS are filled in first."""
    validate_config(prepare_config(copy.deepcopy(cluster)))


def test_ray_takes_it(cluster):
    validate(cluster)


@pytest.mark.parametrize("path", [(), ("available_node_types", "gpu"), ("auth",)])
def test_ray_refuses_a_key_that_it_does_not_know(cluster, path):
    place = cluster
    for key in path:
        place = place[key]
    place["idle_timeout_hours"] = 1
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_hours"):
        validate(cluster)


def test_ec2_takes_every_node(cluster, run_instances_shape):
    for name, node_type in cluster["available_node_types"].items():
        request = {**node_type["node_config"], "MinCount": 1, "MaxCount": 1}
        report = ParamValidator().validate(request, run_instances_shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_ec2_refuses_a_parameter_that_it_does_not_know(cluster, run_instances_shape):
    request = {**cluster["available_node_types"]["gpu"]["node_config"], "InstanceTyp": "g6.xlarge"}
    assert ParamValidator().validate(request, run_instances_shape).has_errors()


def test_only_workers_work_and_they_all_end_when_idle(cluster):
    node_types = cluster["available_node_types"]
    workers = {name: kind for name, kind in node_types.items() if name != cluster["head_node_type"]}
    assert node_types[cluster["head_node_type"]]["resources"] == {"CPU": 0}
    assert all(kind["min_workers"] == 0 and kind["max_workers"] == 8 for kind in workers.values())
    assert sum(kind["max_workers"] for kind in workers.values()) <= cluster["max_workers"]
    assert sorted(bool(kind["resources"].get("GPU")) for kind in workers.values()) == [False, True]


def test_what_is_copied_to_the_nodes_is_there(cluster):
    paths = [path for path in cluster["file_mounts"].values() if path != TOKEN_FILE]
    assert [path for path in paths if not (PROJECT_ROOT / path).exists()] == []


def test_every_node_requires_the_token(cluster):
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == TOKEN_FILE
    starts = [command for key in ("head", "worker") for command in cluster[f"{key}_start_ray_commands"]]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)


def test_no_secret_is_in_it():
    text = CLUSTER_YAML.read_text().lower()
    assert not [word for word in ("aws_secret", "aws_access", "akia", "secret_key", "password") if word in text]
