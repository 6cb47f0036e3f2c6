"""AdapterSpec: every choice that makes an adapter; BasisKey: the name of a frozen pair. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from polyvera.adapter.method import D_INIT, OWN_BASES, SCALINGS, Method, Scale, method_named
from polyvera.errors import SpecError, did_you_mean

Pattern = tuple[tuple[str, float], ...]
DTYPES = ("float32", "bfloat16", "float16")
SHARED_BASES = ("kaiming_uniform", "kaiming_normal", "uniform", "orthogonal", "tight_frame", "hadamard")
BASIS_INITS = (*SHARED_BASES, *OWN_BASES)
GIVEN = "given"
DIGEST = re.compile(r"[0-9a-f]{64}")  # of a made basis, which a store keeps
FROZEN_HEADS = ("labels", "random")  # words for a head that is made, as model/frozen_head does it


@dataclass(frozen=True, slots=True)
class BasisKey:
    """The name of one frozen pair A (rank, in_max), B (out_max, rank): the same key is the same bits everywhere.

    dtype: the values are rounded to it and held in fp32 (PEFT does so on a low-precision base).
    sha256: only for init='given', a pair that no recipe draws: it came with an adapter, or a store keeps it.
    """

    init: str
    seed: int
    rank: int
    in_max: int
    out_max: int
    dtype: str = "float32"
    sha256: str = ""

    @property
    def num_params(self) -> int:
        """Elements of A and B together."""
        return self.rank * (self.in_max + self.out_max)


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """Every choice that makes an adapter, before a model is known.

    targets: 'default', 'all-linear', 'experts' (fused ones), a regular expression for the whole layer name, or several
        of these words and of endings of layer names.
    rank, alpha, scaling: None takes the method's own; alpha is the numerator of the scaling rule and starts as rank.
    magnitude: adds a trained row norm m to any row of the table.
    init: the basis that the frozen pair is, one of BASIS_INITS, or the sha256 of a made one; None takes the method's
        own.
    seed, in_max, out_max, basis_dtype: of that pair; None takes the widest target.
    rank_pattern, alpha_pattern: (layer name or its ending, value) pairs that differ from rank and alpha.
    head: modules trained whole and stored with the adapter; or a word of FROZEN_HEADS, for a classifier's head that is
        made wherever the adapter is loaded, of no stored bytes.
    hash_size: trains and stores so many numbers, of which a fixed hash makes all trained letters but a magnitude; None
        trains the letters themselves. Raises SpecError for what cannot be.
    """

    method: str = "vera"
    rank: int | None = None
    targets: str | tuple[str, ...] = "default"
    exclude: tuple[str, ...] = ()
    alpha: float | None = None
    scaling: str | None = None
    magnitude: bool = False
    seed: int = 0
    init: str | None = None
    d_init: float = 0.1
    dropout: float = 0.0
    in_max: int | None = None
    out_max: int | None = None
    basis_dtype: str = "float32"
    rank_pattern: Pattern = ()
    alpha_pattern: Pattern = ()
    head: tuple[str, ...] = ()
    hash_size: int | None = None

    def __post_init__(self) -> None:
        for name in ("exclude", "head"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))
        for name in ("rank_pattern", "alpha_pattern"):
            object.__setattr__(self, name, tuple(sorted((str(k), v) for k, v in getattr(self, name))))
        if self.init is not None and self.init == method_named(self.method).init:
            object.__setattr__(self, "init", None)
        for problem in self._problems():
            raise SpecError(problem)

    def _problems(self) -> Iterable[str]:
        row = self.row
        unscaled = (
            f"is not used by {self.method} ({'it trains b instead' if 'b' in row.trained else 'it has no scaling'})"
        )
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            yield f"rank={self.rank!r} is not a whole number of at least 1"
        if self.hash_size is not None and (not isinstance(self.hash_size, int) or self.hash_size < 1):
            yield f"hash_size={self.hash_size!r} is not a whole number of at least 1"
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            yield f"seed={self.seed!r} is not a whole number from 0 to 2**32 - 1"
        if not 0.0 <= self.dropout < 1.0:
            yield f"dropout={self.dropout!r} is not in [0, 1)"
        if self.frozen_head is not None and len(self.head) > 1:
            yield f"head={self.head!r}: a head is made ({self.frozen_head!r}) or trained, and not both"
        if not self.targets:
            yield "targets is empty: name at least one layer, or 'all-linear'"
        if self.alpha is not None and not row.takes_alpha:
            yield f"alpha={self.alpha} {unscaled}: remove it"
        if self.scaling is not None and (self.scaling not in SCALINGS or not row.takes_alpha):
            rules = ", ".join(SCALINGS) if row.takes_alpha else "none"
            yield f"scaling={self.scaling!r}: {self.method} takes one of: {rules}"
        if self.alpha_pattern and not row.takes_alpha:
            yield f"alpha_pattern {unscaled}: remove it"
        if self.rank_pattern and row.shares_basis:
            yield f"rank_pattern is not used by {self.method} (all layers share one basis of one rank): remove it"
        if self.init not in (*BASIS_INITS, GIVEN, None) and not self.made_basis:
            near = did_you_mean(str(self.init), BASIS_INITS)
            yield f"init={self.init!r} must be one of: {', '.join(BASIS_INITS)}{near}, or the sha256 of a made basis"
        if self.made_basis and self.basis_dtype != _DEFAULTS["basis_dtype"]:
            yield f"basis_dtype={self.basis_dtype!r} is not used with a made basis, whose values are its own: remove it"
        if self.basis_dtype not in DTYPES:
            yield f"basis_dtype={self.basis_dtype!r} must be one of: {', '.join(DTYPES)}"
        yield from self._unused()

    def _unused(self) -> Iterator[str]:
        """What is asked of a basis, or of d, where the method has none."""
        row = self.row
        if self.init is not None and row.init is None:
            yield f"init={self.init!r} is not used by {self.method} (it has no basis to choose): remove it"
        for name in ("in_max", "out_max", "basis_dtype"):
            if not row.shares_basis and getattr(self, name) != _DEFAULTS[name]:
                yield f"{name}={getattr(self, name)!r} is not used by {self.method} (it has no shared basis): remove it"
        if all(factor.init != D_INIT for factor in row.factors.values()) and self.d_init != _DEFAULTS["d_init"]:
            yield f"d_init={self.d_init} is not used by {self.method} (no d of it starts there): remove it"

    @property
    def row(self) -> Method:
        """The table row, on the basis and with the magnitude that were asked for."""
        row = method_named(self.method)
        row = row if row.init is None else row.on_basis(self.init)
        return row.with_magnitude() if self.magnitude else row

    @property
    def frozen_head(self) -> str | None:
        """The word for how the head is made, None where one is trained or there is none."""
        return next((name for name in self.head if name in FROZEN_HEADS), None)

    @property
    def made_basis(self) -> str:
        """The sha256 of the made basis that it names, '' for none."""
        return self.init if self.init is not None and DIGEST.fullmatch(self.init) else ""

    @property
    def basis_init(self) -> str | None:
        """The basis that the frozen pair is, None where there is none to choose."""
        return self.init or self.row.init

    @property
    def common_rank(self) -> int:
        """The rank of every layer that rank_pattern does not name: the one given, else the method's."""
        return self.rank or self.row.rank

    def rank_of(self, site: str) -> int:
        """The rank of one layer."""
        return int(value_of(self.rank_pattern, site, self.common_rank))

    @property
    def common_alpha(self) -> float:
        """The numerator of every layer's scale that alpha_pattern does not name: the one given, else the rank."""
        return float(self.alpha if self.alpha is not None else self.common_rank)

    def alpha_of(self, site: str) -> float:
        """The numerator of the scale of one layer."""
        return float(value_of(self.alpha_pattern, site, self.common_alpha))

    def scale_of(self, site: str) -> Scale:
        """(factor, divisor) of the delta of one layer."""
        rank = self.common_rank
        by_rule = SCALINGS[self.scaling or self.row.scaling]
        divides_by = rank if self.row.scaling == "alpha,r" else self.rank_of(site)
        return by_rule(self.alpha_of(site), divides_by)

    def to_dict(self) -> dict[str, Any]:
        """The choices that differ from the defaults, as plain JSON values; the method always."""
        plain = {k: v for k, v in asdict(self).items() if k == "method" or v != _DEFAULTS[k]}
        return {k: dict(v) if k.endswith("_pattern") else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> AdapterSpec:
        """The inverse of to_dict. Raises SpecError for an unknown key, with the nearest known one."""
        for key in given:
            if key not in _DEFAULTS:
                raise SpecError(f"unknown adapter setting {key!r}{did_you_mean(key, _DEFAULTS)}")
        values: dict[str, Any] = {
            k: tuple(v.items()) if k.endswith("_pattern") and isinstance(v, dict) else v for k, v in given.items()
        }
        return cls(**values)


def is_named(site: str, ending: str) -> bool:
    """Whether a layer's name is that, or ends in it after a dot."""
    return site == ending or site.endswith(f".{ending}")


def value_of(pattern: Pattern, site: str, default: float) -> float:
    """What a pattern says of a layer by its name or the longest ending of it, else the default."""
    found = [(len(ending), value) for ending, value in pattern if is_named(site, ending)]
    return max(found)[1] if found else default


_DEFAULTS = {f.name: f.default for f in fields(AdapterSpec)}
