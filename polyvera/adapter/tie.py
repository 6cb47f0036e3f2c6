"""end_tie: a model whose output layer is no longer its embedding says so, to every reader of its files."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

TIE = "tie_word_embeddings"
# The word of a config by which a family multiplies what its output layer reads by width ** -0.5.
SCALED_BY: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("t5", "longt5", "pop2piano"), "scale_decoder_outputs"),
        **dict.fromkeys(("switch_transformers", "umt5", "udop"), TIE),
    }
)


def end_tie(model: nn.Module) -> None:
    """Ends a tie in the config where the embedding and the output layer hold two different matrices.

    What a family scales because of the tie is then in the output layer's own numbers. A family whose config knows the
    tie alone, whatever its file says, and scales by it (UMT5), keeps the word: transformers reads both matrices.
    """
    try:
        both: Any = [getattr(model, f"get_{side}_embeddings", lambda: None)() for side in ("input", "output")]
    except NotImplementedError:  # it reads no text
        return
    weight, output = (getattr(layer, "weight", None) for layer in both)
    if weight is None or output is None or weight is output:
        return
    config: Any = getattr(model, "config", None)
    for own in (config, getattr(config, "text_config", None)):
        if own is not None and getattr(own, TIE, False) and not _is_lasting(own):
            _fold_scale(own, both[1])
            setattr(own, TIE, False)
            _separate(model, weight)


def _is_lasting(config: Any) -> bool:
    """Whether the outputs are scaled by the tie, and a config that is read without one has it nevertheless."""
    return SCALED_BY.get(config.model_type) == TIE and bool(
        getattr(type(config).from_dict({**config.to_dict(), TIE: False}), TIE)
    )


def _fold_scale(config: Any, output: nn.Module) -> None:
    word, weight = SCALED_BY.get(config.model_type, ""), output.get_parameter("weight")
    if getattr(config, word, False):
        output.weight = nn.Parameter(weight.detach() * weight.shape[-1] ** -0.5, weight.requires_grad)
        setattr(config, word, False)


def _separate(model: nn.Module, weight: nn.Parameter) -> None:
    """Gives each name of an embedding a copy: an encoder and a decoder share theirs by the same word of the config."""
    _, *others = [name for name, p in model.named_parameters(remove_duplicate=False) if p is weight]
    for name in others:
        put_parameter(model, name, copy_of(weight))


def copy_of(weight: nn.Parameter) -> nn.Parameter:
    """The same numbers, in memory of their own."""
    return nn.Parameter(weight.detach().clone(), weight.requires_grad)


def put_parameter(model: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
    """Puts a parameter under that name alone, and returns it."""
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, parameter)
    return parameter
