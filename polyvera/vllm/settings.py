"""Settings: what the environment says of the adapters that vLLM is to serve, and which vLLM this is made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from polyvera.adapter.method import METHODS, Method
from polyvera.errors import SpecError, did_you_mean

STORE, RANK, KINDS = "POLYVERA_STORE", "POLYVERA_RANK", "POLYVERA_METHODS"
# Releases that scripts/test-vllm has run with. The plugin takes the place of private functions of vLLM's.
TESTED = ((0, 32), (0, 33))
OFF = f"or start it without this plugin ({KINDS}=none)"


def as_vectors(row: Method) -> bool:
    """Whether an adapter is vectors beside one shared pair."""
    return row.shares_basis and "C" not in row.factors


def as_matrices(row: Method) -> bool:
    """Whether an adapter is a product of two matrices, which is what vLLM itself serves."""
    return not as_vectors(row) and "m" not in row.factors


@dataclass(frozen=True, slots=True)
class Settings:
    """What one vLLM process serves, fixed at its start.

    store: a registry's folder or URL, '' for none. rank: of the shared pair, and the most that an adapter may have.
    vectors, gain, matrices: whether adapters are served that are vectors beside a shared pair, those among them with
    a magnitude, and those that are matrices of their own (vLLM's way).
    """

    store: str
    rank: int
    vectors: bool
    gain: bool
    matrices: bool

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """From environment variables. Raises SpecError for a value that cannot be."""
        rows = _rows(environment.get(KINDS, ""))
        shared = [row for row in rows if as_vectors(row)]
        default = max(row.rank for row in METHODS.values() if as_vectors(row))
        rank = environment.get(RANK, "") or str(default)
        if not rank.isdecimal() or not 1 <= int(rank) <= 2**14:
            raise SpecError(f"{RANK}={rank!r} is not a whole number from 1 to {2**14}; leave it out for {default}")
        gain = any("m" in row.factors for row in shared)
        return cls(environment.get(STORE, ""), int(rank), bool(shared), gain, any(map(as_matrices, rows)))


def _rows(text: str) -> list[Method]:
    served = {name: row for name, row in METHODS.items() if as_vectors(row) or as_matrices(row)}
    if not text:
        return list(served.values())
    asked = [name.strip() for name in text.split(",")] if text != "none" else []
    for name in asked:
        if name not in served:
            raise SpecError(
                f"{KINDS}={text!r} names {name!r}; inside vLLM these are served: {', '.join(served)}, or none"
                f"{did_you_mean(name, served)}"
            )
    return [served[name] for name in asked]


def check_version(found: str) -> None:
    """Raises SpecError for a vLLM outside the tested releases."""
    parts = found.split("+")[0].split(".")
    release = tuple(int(part) for part in parts[:2] if part.isdecimal())
    if not TESTED[0] <= release < TESTED[1]:
        first, end = (".".join(map(str, edge)) for edge in TESTED)
        raise SpecError(
            f"vLLM {found} is outside the releases that polyvera's plugin was tested with, at least {first} and below "
            f"{end}: install one of them, {OFF}"
        )


def installed_version() -> str:
    """The version of the vLLM that is installed. Raises SpecError where there is none."""
    try:
        return version("vllm")
    except PackageNotFoundError:
        raise SpecError(f"no package named vllm is installed here: install polyvera[vllm], {OFF}") from None
