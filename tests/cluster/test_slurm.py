"""Batch scripts for Slurm: what is asked for is in them once, and bash runs the study with its arguments."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from cluster import __main__ as cluster_main
from cluster.slurm import TEMPLATE, script
from diffup.errors import UserError


def directives(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("#SBATCH")]


def test_each_directive_is_there_once_and_the_rest_is_the_templates() -> None:
    asked = {"nodes": "2", "partition": "gpu", "time": "1-12:00:00", "gpus-per-node": "a100:4"}
    made = directives(script(["experiments/full_grid.py"], asked))
    for name, value in asked.items():
        assert [line for line in made if line.startswith(f"#SBATCH --{name}=")] == [f"#SBATCH --{name}={value}"]
    kept = [line for line in directives(TEMPLATE.read_text()) if line.split("=")[0][10:] not in asked]
    assert [line for line in made if line in kept] == kept


def test_bash_gets_the_arguments_as_they_were_given() -> None:
    command = ["experiments/full_grid.py", "--results", "/shared/my results", "--select", "fold=0|1,$HOME"]
    line = next(line for line in script(command, {}).splitlines() if line.startswith("set -- "))
    shown = subprocess.run(["bash", "-c", f'{line}; printf "%s\\n" "$@"'], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == command
    assert subprocess.run(["bash", "-n"], input=script(command, {}), text=True).returncode == 0


@pytest.mark.parametrize("value", ["gpu; rm -rf x", "a b", "$(id)", "", "gpu\n#SBATCH --qos=high"])
def test_a_value_that_is_no_value_is_refused(value: str) -> None:
    with pytest.raises(UserError, match="--partition"):
        script(["experiments/full_grid.py"], {"partition": value})


def test_the_command_writes_a_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "full grid.sh"
    arguments = ["slurm", "--partition", "gpu", "--out", str(out), "experiments/full_grid.py", "--folds", "0"]
    assert cluster_main.main(arguments) == 0
    assert f"sbatch {shlex.quote(str(out))}" in capsys.readouterr().out
    text = out.read_text()
    assert "#SBATCH --partition=gpu" in text and "set -- experiments/full_grid.py --folds 0" in text
    by_name = tmp_path / "by_name.sh"
    assert cluster_main.main([*arguments[:3], "--out", str(by_name), "full_grid", "--folds", "0"]) == 0
    assert by_name.read_text() == text
    assert cluster_main.main(arguments) == 2 and "exists" in capsys.readouterr().err
    assert out.read_text() == text


def test_a_study_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cluster_main.main(["slurm", "--account", "lab", "experiments/no_such.py"]) == 2
    assert "no study and no file 'experiments/no_such.py'" in capsys.readouterr().err
