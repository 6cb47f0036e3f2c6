"""Makes an environment that holds a wheel and what it asks for, linked from the environment that runs this.

`python scripts/link_requirements.py FOLDER WHEEL`: nothing is downloaded or copied, and a package that the wheel
imports but does not ask for is not there. pip installs the wheel, and checks the versions.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Asked = tuple[str, str]  # name, extra or ""


def asked_by_wheel(wheel: Path) -> list[str]:
    """The requirements in its metadata."""
    with zipfile.ZipFile(wheel) as files:
        (name,) = [name for name in files.namelist() if name.endswith(".dist-info/METADATA")]
        return message_from_bytes(files.read(name)).get_all("Requires-Dist", [])


def asked(requirements: list[str], extra: str = "") -> Iterator[Asked]:
    """What those requirements name here, for one extra of the package whose they are."""
    for requirement in map(Requirement, requirements):
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            yield from ((canonicalize_name(requirement.name), extra) for extra in ("", *requirement.extras))


def closure(requirements: list[str]) -> list[Distribution]:
    """All that they need, and what that needs; PackageNotFoundError where some of it is not installed here."""
    seen: set[Asked] = set()
    waiting = list(asked(requirements))
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) not in seen:
            seen.add((name, extra))
            waiting += asked(distribution(name).requires or [], extra)
    return [distribution(name) for name in sorted({name for name, _ in seen})]


def link(found: Distribution, site: Path) -> None:
    """Links its files, without those outside of site-packages."""
    for file in found.files or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            place = site / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(Path(str(found.locate_file(file))))


def make(folder: Path, wheel: Path) -> None:
    """The environment in that folder, with the wheel installed."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = next(folder.glob("lib/python*/site-packages"))
    for found in closure(asked_by_wheel(wheel)):
        link(found, site)
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*pip, "install", "-qq", "--no-deps", "--no-index", str(wheel)], check=True, env=alone)
    subprocess.run([*pip, "check"], check=True, env=alone)


if __name__ == "__main__":
    make(*map(Path, sys.argv[1:]))
