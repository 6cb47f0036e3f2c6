"""Families whose language models llama.cpp's converter takes as they are, and what it calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from polyvera.errors import SpecError


@dataclass(frozen=True, slots=True)
class Architecture:
    """One family. name: in GGUF. permutes: the layers whose rows the converter interleaves head by head, for rotary
    embeddings that pair neighbours, each with the entry of the configuration that counts its heads.
    """

    name: str
    permutes: Mapping[str, str]


ROTATED: Mapping[str, str] = MappingProxyType({"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"})
AS_IT_IS: Mapping[str, str] = MappingProxyType({})

ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": Architecture("llama", ROTATED),
        "mistral": Architecture("llama", ROTATED),
        "granite": Architecture("granite", ROTATED),
        "smollm3": Architecture("smollm3", ROTATED),
        "qwen2": Architecture("qwen2", AS_IT_IS),
        "qwen3": Architecture("qwen3", AS_IT_IS),
        "gemma": Architecture("gemma", AS_IT_IS),
        "gemma2": Architecture("gemma2", AS_IT_IS),
        "gemma3_text": Architecture("gemma3", AS_IT_IS),
        "phi": Architecture("phi2", AS_IT_IS),
        "phi3": Architecture("phi3", AS_IT_IS),
        "olmo2": Architecture("olmo2", AS_IT_IS),
        "starcoder2": Architecture("starcoder2", AS_IT_IS),
        "stablelm": Architecture("stablelm", AS_IT_IS),
        "gpt2": Architecture("gpt2", AS_IT_IS),
    }
)


def architecture_of(family: str) -> Architecture:
    """The row of a family, by transformers' model_type. Raises SpecError where there is none."""
    if family not in ARCHITECTURES:
        raise SpecError(
            f"no GGUF adapter is written for {family or 'an unknown family'} (known: {', '.join(ARCHITECTURES)}): use "
            "`merge` and llama.cpp's convert_hf_to_gguf.py"
        )
    return ARCHITECTURES[family]
