"""Manifests for clusters: they fit Ray's schema and KubeRay's API, hold no secret and open nothing to the world."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.job import check_size, excludes, parser

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "cluster" / "deploy"
YAML = sorted(CONFIGS.glob("*.yaml"))
SCRIPTS = sorted(CONFIGS.glob("*.sh"))

# Fields of KubeRay's ray.io/v1 API (ray-operator/apis/ray/v1 of ray-project/kuberay) and of Kubernetes' pods.
POD = {
    "metadata", "spec", "containers", "volumes", "nodeSelector", "terminationGracePeriodSeconds", "tolerations", "name",
    "image", "resources", "requests", "limits", "env", "value", "volumeMounts", "mountPath", "persistentVolumeClaim",
    "claimName", "cpu", "memory", "nvidia.com/gpu",
}  # fmt: skip
CLUSTER = {
    "rayVersion", "headGroupSpec", "workerGroupSpecs", "enableInTreeAutoscaling", "autoscalerOptions", "suspend",
    "headServiceAnnotations", "managedBy", "gcsFaultToleranceOptions", "authOptions",
}  # fmt: skip
HEAD = {"rayStartParams", "serviceType", "headService", "enableIngress", "template"}
GROUP = {
    "groupName", "replicas", "minReplicas", "maxReplicas", "numOfHosts", "idleTimeoutSeconds", "rayStartParams",
    "template", "scaleStrategy", "suspend",
}  # fmt: skip
AUTOSCALER = {
    "resources", "image", "imagePullPolicy", "env", "envFrom", "volumeMounts", "securityContext", "idleTimeoutSeconds",
    "upscalingMode", "version",
}  # fmt: skip
JOB = {
    "activeDeadlineSeconds", "backoffLimit", "rayClusterSpec", "submitterPodTemplate", "metadata", "clusterSelector",
    "submitterConfig", "managedBy", "deletionStrategy", "entrypoint", "runtimeEnvYAML", "jobId", "submissionMode",
    "entrypointResources", "entrypointNumCpus", "entrypointNumGpus", "ttlSecondsAfterFinished",
    "shutdownAfterJobFinishes", "suspend", "preRunningDeadlineSeconds",
}  # fmt: skip


def load(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text(encoding="utf-8"))
    return document


def fields(value: Any) -> Iterator[str]:
    """All field names of a document."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield name
            if name not in ("nodeSelector", "rayStartParams"):  # names of the user's and of `ray start`
                yield from fields(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from fields(inner)


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_the_launchers_configurations_pass_rays_schema(name: str) -> None:
    config = load(name)
    validate_config(prepare_config({**config, "cluster_synced_files": []}))
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    spot = str(types["gpu_spot"]["node_config"]).lower()
    assert "spot" in spot and "spot" not in str(types["head"]).lower()


def test_rays_schema_refuses_what_it_does_not_know() -> None:
    with pytest.raises(Exception, match="max_wrokers"):
        validate_config(prepare_config({**load("aws.yaml"), "cluster_synced_files": [], "max_wrokers": 3}))


def check_cluster(spec: dict[str, Any]) -> None:
    assert set(spec) <= CLUSTER
    assert set(spec["autoscalerOptions"]) <= AUTOSCALER
    assert set(spec["headGroupSpec"]) <= HEAD
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    templates = [spec["headGroupSpec"]["template"]]
    for group in spec["workerGroupSpecs"]:
        assert set(group) <= GROUP
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        templates.append(group["template"])
    for template in templates:
        assert set(fields(template)) <= POD, set(fields(template)) - POD


def test_kuberays_manifests_name_fields_of_its_api() -> None:
    cluster, job = load("kuberay_cluster.yaml"), load("kuberay_job.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    check_cluster(cluster["spec"])
    assert set(job["spec"]) <= JOB
    check_cluster(job["spec"]["rayClusterSpec"])
    assert (ROOT / job["spec"]["entrypoint"].split()[1].removeprefix("/diffup/")).is_file()


@pytest.mark.parametrize("path", [*YAML, *SCRIPTS], ids=lambda path: path.name)
def test_no_secret_and_no_open_dashboard(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"\b[0-9a-f]{32,}\b|AKIA|BEGIN [A-Z ]*KEY|password\s*:", text)
    for host in re.findall(r"dashboard-host[=:]\s*(\S+)", text):
        # In a pod the service in front of it is of the cluster only, see `check_cluster`.
        assert host == "127.0.0.1" or (path.name.startswith("kuberay") and host == "0.0.0.0")
    assert "ToBeReplaced" not in text and "ray stop" not in text.replace("~/venv/bin/ray stop", "")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_pass_shellcheck(path: Path, require_program: Callable[[str], str]) -> None:
    done = subprocess.run(
        [require_program("shellcheck"), "-x", str(path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_working_copy_is_small_enough_to_be_sent(tmp_path: Path) -> None:
    assert 10**5 < check_size(ROOT) < 20 * 2**20
    assert "/.venv/" in excludes(ROOT)
    (tmp_path / ".rayignore").write_text("# weights\n/weights/\n*.db\n")
    (tmp_path / "weights").mkdir()
    for name in ("weights/large.bin", "mlflow.db"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(200 * 2**20)
    assert check_size(tmp_path) < 100
    with (tmp_path / "video.mp4").open("wb") as file:
        file.truncate(101 * 2**20)
    with pytest.raises(ValueError, match=r"video\.mp4 \(105\.9 MB\)"):
        check_size(tmp_path)


def test_options_stand_before_the_script_and_the_scripts_after_it() -> None:
    args = parser().parse_args(["submit", "--name", "a", "experiments/full_grid.py", "--dry-run", "--name", "b"])
    assert (args.name, args.script, args.arguments) == ("a", "experiments/full_grid.py", ["--dry-run", "--name", "b"])
