"""What PEFT makes of a folder on some families of models: other layers than it names, or an error."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

# The names of layers that PEFT 0.19 to 0.21 takes for those of fused experts, by the pattern of the family.
EXPERTS: Mapping[str, frozenset[str]] = MappingProxyType(
    {
        "mixtral": frozenset(("gate", "w1", "w2", "w3")),
        "qwen2_moe": frozenset(("gate", "gate_proj", "up_proj", "down_proj")),
    }
)
MAMBA = frozenset(("mamba", "mamba2", "falcon_mamba", "falcon_h1", "nemotron_h"))
WITHOUT_MAMBA = frozenset(("out_proj", "conv1d"))
LORA, LIKE_LORA = ("LORA",), ("LORA", "ADALORA")


def refusal(model_type: str, peft_type: str, sites: Collection[str]) -> str:
    """Why PEFT would not give these layers of such a model the same logits; empty where it does."""
    endings = {site.rpartition(".")[2]: site for site in sites}
    pattern = model_type if model_type in EXPERTS else _patterns().get(model_type, "")
    taken = sorted(EXPERTS.get(pattern, frozenset()) & set(endings))
    if peft_type in LORA and taken:
        return (
            f"PEFT takes {endings[taken[0]]} of a {model_type} for a part of its experts and adapts those instead: "
            f"leave out layers named {', '.join(taken)}"
        )
    refused = sorted(WITHOUT_MAMBA & set(endings)) if model_type in MAMBA else []
    if peft_type in LIKE_LORA and refused:
        return f"PEFT refuses {endings[refused[0]]} of a {model_type}: leave out layers named {', '.join(refused)}"
    return ""


@cache
def _patterns() -> Mapping[str, str]:
    """The family whose experts each family's are like, as transformers has it."""
    from transformers import conversion_mapping

    found: Mapping[str, str] = getattr(conversion_mapping, "_MODEL_TO_CONVERSION_PATTERN", {})
    return found


def model_type_of(name: str) -> str:
    """The family of a base that is on this machine, by name; empty where it is not."""
    from transformers import AutoConfig

    if not name:
        return ""
    source = str(Path(name).expanduser())
    try:
        config: Any = AutoConfig.from_pretrained(
            source if Path(source).is_dir() else name, local_files_only=True, trust_remote_code=False
        )
    except Exception:  # a folder may hold anything
        return ""
    return str(config.model_type)
