"""Limits: what an engine takes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from polyvera.errors import ServeError
from polyvera.settings.field import MIB, Count, Described
from polyvera.settings.parts import check

ENGINE = "Engine"


@dataclass(frozen=True, slots=True)
class Limits:
    """How much an engine takes on at a time. Raises ServeError for an invalid value.

    max_context: None takes the model's own, at most 4096. chunk: None takes the device's.
    """

    max_rows: Annotated[Count, Described("Requests in one batch, of each replica.", ENGINE, ("max_num_seqs",))] = 64
    max_context: Annotated[
        Count | None,
        Described("Tokens of prompt and answer; by default the model's, at most 4096.", ENGINE, ("max_model_len",)),
    ] = None
    max_waiting: Annotated[
        Count,
        Described("Answers that wait in one tenant's line; beyond: 429. Also those under way in all replicas.", ENGINE),
    ] = 1024
    chunk: Annotated[
        Count | None,
        Described(
            "Tokens of prompts computed in one step; by default 256 on a CPU, 2048 on a GPU.",
            ENGINE,
            ("max_num_batched_tokens",),
        ),
    ] = None
    num_slots: Annotated[Count, Described("Resident adapters.", ENGINE, ("max_loras",), name="slots")] = 1024
    slot_bytes: Annotated[
        Count, Described("Memory of the slots of adapters of one layout, in MiB.", ENGINE, name="slot_mib", scale=MIB)
    ] = 8 << 30
    host_bytes: Annotated[
        Count,
        Described("Memory of loaded adapters outside the slots, in MiB.", ENGINE, name="host_mib", scale=MIB),
    ] = 1 << 30
    prefix_bytes: Annotated[
        Annotated[int, Ge(0)],
        Described("Memory of cached prefixes of prompts, in MiB; 0 for none.", ENGINE, name="prefix_mib", scale=MIB),
    ] = 256 << 20
    decode_graphs: Annotated[
        bool | None,
        Described(
            "Decode by captured CUDA graphs; by default where there is CUDA. "
            "Elsewhere true goes the same way without captures, more slowly.",
            ENGINE,
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self, ServeError)
