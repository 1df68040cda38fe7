"""``ray start --head`` on loopback, then jobs: the quickstart as a user of a cluster runs it, and who may not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.storage.results import Store
from tests.helpers.heads import RAY, dashboard, free_ports

__all__ = ["dashboard"]

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "cluster" / "deploy"
JOB = 300  # seconds
SRUN = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do if [ "$1" = -w ]; then shift; node=$1; fi; shift; done
[ "$node" = n3 ] && sleep 10  # on one machine two nodes that start at once may choose the same ports
exec "$@"
"""
SCONTROL = "#!/usr/bin/env bash\nprintf 'n1\\nn2\\nn3\\n'\n"
COUNT_NODES = """
import os, ray
ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
print("nodes", sum(node["Alive"] for node in ray.nodes()), os.environ["RAY_AUTH_MODE"])
raise SystemExit(3)
"""


def submit(dashboard: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cluster", "submit", "--address", dashboard, "--python", sys.executable, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=JOB, env={**os.environ, **more},
    )  # fmt: skip


@pytest.mark.ray
@pytest.mark.usefixtures("shapes4i")
def test_the_quickstart_as_a_submitted_job(dashboard: str, tmp_path: Path) -> None:
    results = tmp_path / "results"
    chosen = "backbone=tiny_resnet,variant=prior_mean|prototype,shots=1"
    arguments = ["--results", str(results), "--select", chosen, "--episodes", "8"]
    arguments += ["--max-concurrent", "1"]
    done = subprocess.run(
        [str(RAY), "job", "submit", "--address", dashboard, "--working-dir", ".", "--", sys.executable,
         "experiments/quickstart.py", *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=JOB,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 cells finished" in done.stdout
    assert "succeeded" in done.stdout
    store = Store(results)
    assert [store.read(key).status for key in store.cell_keys()] == ["finished"] * 2
    assert (results / "tables" / "main.md").is_file()
    ours = submit(dashboard, "experiments/quickstart.py", *arguments)
    assert ours.returncode == 0, ours.stdout + ours.stderr
    assert "2 finished, 0 to do" in ours.stdout


@pytest.mark.ray
def test_a_job_is_followed_and_gives_its_exit_code(dashboard: str, tmp_path: Path) -> None:
    began = time.monotonic()
    planned = submit(dashboard, "experiments/full_grid.py", "--results", str(tmp_path / "full"), "--dry-run")
    took = time.monotonic() - began
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert "full_grid: 1240 cells, 0 finished, 1240 to do (8 training, 1232 evaluation)" in planned.stdout
    assert "cache: pixels, about" in planned.stdout and "TB of features" in planned.stdout
    print(f"the paper's plan as a job: {took:.1f} s")

    bad = submit(dashboard, "experiments/quickstart.py", "--results", str(tmp_path / "r"), "--select", "shots=9")
    assert bad.returncode == 2 and "--select: no cell has shots=9" in bad.stdout

    token = os.environ["RAY_AUTH_TOKEN"]
    refused = submit(dashboard, "experiments/full_grid.py", "--dry-run", RAY_AUTH_TOKEN="f" * 64)
    assert refused.returncode == 2
    assert "refused the token" in refused.stderr and "Traceback" not in refused.stderr
    nobody = submit(dashboard, "experiments/full_grid.py", "--dry-run", RAY_AUTH_MODE="disabled", RAY_AUTH_TOKEN="")
    assert nobody.returncode == 2 and "refused the token" in nobody.stderr
    for done in (planned, bad, refused, nobody):
        assert token not in done.stdout + done.stderr
    for path in (tmp_path / "r").rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes()


@pytest.mark.slow
def test_a_job_that_cannot_be_submitted_says_why(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    gone = submit(f"http://127.0.0.1:{port}", "experiments/quickstart.py")
    assert gone.returncode == 2 and "no Ray cluster answers at" in gone.stderr and "Traceback" not in gone.stderr
    absent = submit(f"http://127.0.0.1:{port}", "experiments/no_such.py")
    assert absent.returncode == 2 and "no script experiments/no_such.py" in absent.stderr


@pytest.mark.ray
@pytest.mark.parametrize("name", ["slurm.sh", "loopback.sh"])
def test_scripts_start_a_head_and_two_workers_and_end_them(name: str, tmp_path: Path) -> None:
    for tool, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / tool).write_text(text)
        (tmp_path / tool).chmod(0o755)
    script = tmp_path / "count_nodes.py"
    script.write_text(COUNT_NODES)
    port = next(port for port in free_ports(40) if not 10002 <= port <= 19999)
    env = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")},
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "1", "DIFFUP_HEAD_IP": "127.0.0.1",
        "DIFFUP_RAY_PORT": str(port), "DIFFUP_RAY_PATIENCE": "120",
        "DIFFUP_RAY_OPTIONS": "--object-store-memory=100000000",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", str(CONFIGS / name), str(script)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240
    )
    assert "nodes 3 token" in done.stdout, done.stdout + done.stderr
    assert done.returncode == 3  # the script's own
