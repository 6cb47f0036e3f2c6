"""What PEFT adapts where target_modules is null: its own table of families, by peft_type."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

Targets = tuple[str, ...] | str

QV: Targets = ("q_proj", "v_proj")
QUERY_VALUE: Targets = ("query", "value")
FUSED: Targets = ("query_key_value",)
ALL_OF_BART: Targets = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
SEEING: Targets = r".*language_model\..*\.(q_proj|v_proj)"
# What both tables agree in.
SAME: Mapping[str, Targets] = {
    **dict.fromkeys(("gptj", "gpt_neo", "llama", "llama4", "gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), QV),
    **dict.fromkeys(("bloom", "gpt_neox"), FUSED),
    **dict.fromkeys(("gpt2", "gpt_bigcode"), ("c_attn",)),
    "bert": QUERY_VALUE,
    "deberta": ("in_proj",),
    "gemma4": SEEING,
    "nemotron_h": ("q_proj", "k_proj", "v_proj", "o_proj"),
}
LORA: Mapping[str, Targets] = {
    **SAME,
    **dict.fromkeys(("t5", "mt5"), ("q", "v")),
    **dict.fromkeys(("bart", "opt", "mistral", "mixtral", "stablelm"), QV),
    **dict.fromkeys(("roberta", "xlm-roberta", "electra", "layoutlm"), QUERY_VALUE),
    **dict.fromkeys(("chatglm", "RefinedWebModel", "RefinedWeb", "falcon"), FUSED),
    "blip-2": ("q", "v", "q_proj", "v_proj"),
    "deberta-v2": ("query_proj", "value_proj"),
    "mpt": ("Wqkv",),
    "btlm": ("c_proj", "c_attn"),
    "codegen": ("qkv_proj",),
    "phi": ("q_proj", "v_proj", "fc1", "fc2"),
    "rwkv": ("key", "value", "receptance", "output"),
    "rwkv7": ("r_proj", "k_proj", "v_proj", "o_proj", "key", "value"),
}
FAMILY_TARGETS: Mapping[str, Mapping[str, Targets]] = MappingProxyType(
    {
        "LORA": LORA,
        "VERA": {**LORA, "phi": QV},
        "ADALORA": {
            **SAME,
            "t5": ("q", "k", "v", "o", "wi", "wo"),
            "mt5": ("q", "k", "v", "o", "wi_0", "wi_1", "wo"),
            **dict.fromkeys(("bart", "opt"), ALL_OF_BART),
            "roberta": ("query", "key", "value", "dense"),
            "deberta-v2": ("query_proj", "key_proj", "value_proj", "dense"),
        },
    }
)
