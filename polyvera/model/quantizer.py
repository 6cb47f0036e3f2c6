"""quantizer_of: what a quantized checkpoint needs said when it is loaded; transformers knows the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from polyvera.adapter.base_layer import QUANTIZED, is_linear, is_quantized
from polyvera.errors import SpecError, one_line


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How weights that one library quantized are loaded.

    keeps_dtype: they multiply in the dtype that they were stored in, and in no other. options: further arguments of
    from_pretrained().
    """

    keeps_dtype: bool = False
    options: Callable[[], Mapping[str, Any]] = dict


def _dense() -> Mapping[str, Any]:
    """Plain weights at once, which the library otherwise makes at the first forward, and nobody can read before."""
    from transformers import CompressedTensorsConfig

    return {"quantization_config": CompressedTensorsConfig(dequantize=True)}


# By the quant_method of the configuration.
QUANTIZERS: Mapping[str, Quantizer] = MappingProxyType(
    {"torchao": Quantizer(keeps_dtype=True), "compressed-tensors": Quantizer(options=_dense)}
)


def refusal_here(config: Any) -> str:
    """Why transformers cannot load quantized weights on this machine, such as a package that is absent, else ''."""
    from transformers.quantizers import auto

    made: Any = auto.AutoHfQuantizer
    found = getattr(config, "quantization_config", None)
    try:
        if isinstance(found, Mapping) and made.supports_quant_method({**found}):  # else it loads plain ones
            made.from_config({**found}, pre_quantized=True).validate_environment(device_map=None)
    except Exception as error:  # of any kind; loading would raise it, too
        return one_line(error, 200)
    return ""


def check_quantized(model: Any) -> None:
    """Raises SpecError for a model whose configuration claims quantized weights, and whose files hold plain ones."""
    for name, layer in model.named_modules():
        if is_linear(layer) and _is_claimed(layer):
            library = type(layer).__module__.partition(".")[0]
            raise SpecError(
                f"its config.json says that {library} quantized {name}, and its files hold plain weights: remove "
                "quantization_config there, or quantize the model and save it again"
            )


def _is_claimed(layer: Any) -> bool:
    """Whether a layer of a quantizing library has a plain weight."""
    return type(layer).__module__.partition(".")[0] in QUANTIZED and not is_quantized(layer)


def quantizer_of(config: Any) -> Quantizer:
    """The row of a model's configuration, given as an object or as a dictionary."""
    entries = config if isinstance(config, Mapping) else vars(config)
    found = entries.get("quantization_config")
    return QUANTIZERS.get(str(found.get("quant_method")) if isinstance(found, Mapping) else "", Quantizer())
