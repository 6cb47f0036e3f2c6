"""tiny_config: the default configuration of any family of transformers with every size in it shrunk.

Sizes are known by the names of their fields; what a family needs beside that is a row of OWN.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import transformers
from tiny_models import WORDS
from transformers import PretrainedConfig

LENGTH = 64
# A field's whole name, and what it shrinks to; the first that fits counts, and nothing grows.
SIZES = (
    (r"(\w+_)?vocab_size(_\w+)?|n_words|text_vocab_size", len(WORDS)),
    (r"(bos|decoder_start|forced_bos|sos|cls|lang|image|boi|eoi|video|audio|boa|eoa|sep|mask)_(token_)?(id|index)", 0),
    (r"eos_token_id|forced_eos_token_id|pad_token_id|pad_index", 1),
    (r"num_labels", 2),
    (r"moe_intermediate_size|\w*expert\w*_(intermediate_size|ffn_hidden_size)|expert_ffn\w*", 16),
    (r"(\w+_)?(intermediate|ffn)_(size|dim|hidden_size)|\w*ffn_dim|d_ff|dff|n_inner|inner_dim|hidden_dim", 48),
    (r"num_(key_value|kv)_heads|n_kv_heads|multi_query_group_num|num_query_groups", 2),
    (r"(num|n)_\w*(experts|routed_experts)|num_experts|n_routed_experts|num_local_experts", 4),
    (r"num_experts_per_tok(en)?|moe_topk|top_k_experts|num_selected_experts|moe_top_k", 2),
    (r"n_shared_experts|num_shared_experts|n_group|topk_group|first_k_dense_replace", 1),
    (r"(\w+_)?(heads|n_heads?|num_heads|n_head)|\w*attention_heads", 4),
    (r"rotary_dim|mamba_dt_rank", 4),
    (r"\w*head_dim|d_kv|d_head|qk_nope_head_dim|kv_channels|attention_head_size", 8),
    (r"(\w+_)?lora_rank|\w+low_rank_dim", 16),
    (r"(\w+_)?(num_hidden_layers|num_layers|n_layers?|encoder_layers|decoder_layers|num_\w*layers|\w+_layers)", 2),
    (r"(\w+_)?(hidden_size|d_model|n_embd|dim|embed_dim|emb_dim|embedding_size|word_embed_proj_dim|model_dim)", 32),
    (r"\w*(hidden_dim|embedding_dim|projection_dim)|lru_width|attention_dim|pooler_hidden_size", 32),
    (r"max_position_embeddings|n_positions|max_seq_len|max_\w*positions|max_sequence_length|seq_length|n_ctx", LENGTH),
    (r"max_\w*length|model_max_length|original_max_position_embeddings", LENGTH),
    (r"sliding_window(_size)?|attention_window|window_size|local_window_size|attention_chunk_size|chunk_size", 8),
    (r"image_size|img_size", 16),
    (r"patch_size|state_size|mamba_d_state|ssm_state_size|d_state", 8),
)
RULES = tuple((re.compile(rf"(?:{names})\Z"), size) for names, size in SIZES)
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "layer_types": ["mamba", "attention"]}
CONV = {"conv_dim": (16, 16), "conv_stride": (4, 4), "conv_kernel": (8, 4), "num_conv_pos_embeddings": 8}
SEW = {**CONV, "squeeze_factor": 1}
STAGES = {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2, "layer_scale_init_value": 1.0}
SWIN = {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 16, "window_size": 2, "patch_size": 4, "image_size": 32}
SHARED = {"num_kv_shared_layers": 0}
OWN: Mapping[str, dict[str, Any]] = {
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "granitemoehybrid": MAMBA,
    "mamba2": {"num_heads": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {"axial_pos_shape": [8, 8], "axial_pos_embds_dim": [16, 16]},
    "xmod": {"default_language": "en_XX"},
    "esmc": {"num_key_value_heads": 4},
    "esm": {"vocab_size": len(WORDS), "pad_token_id": 1, "mask_token_id": 2},
    "dots3_note_text": {"num_key_value_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mobilebert": {"true_hidden_size": 32, "embedding_size": 32, "intra_bottleneck_size": 32},
    "perceiver": {"num_latents": 8, "d_latents": 32, "d_model": 32},
    "gemma4_text": SHARED,
    "gemma3n_text": SHARED,
    "gemma4": {"text_config": SHARED},
    "gemma4_unified": {"text_config": SHARED},
    "gemma4_unified_text": SHARED,
    "deepseek_v2": {"topk_method": "greedy", "n_group": None, "topk_group": None},
    "dots1": {"moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "cpmant": {"prompt_length": 8, "segment_types": 4},
    "funnel": {"block_sizes": [1, 1], "num_decoder_layers": 1, "d_model": 32, "d_inner": 48},
    "clip": {"projection_dim": 32},
    "deit": {"image_size": 16, "patch_size": 8},
    "convnext": STAGES,
    "convnextv2": STAGES,
    "resnet": {**STAGES, "embedding_size": 16},
    "regnet": {**STAGES, "embedding_size": 16, "groups_width": 8},
    "poolformer": {**STAGES, "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1]},
    "pvt_v2": {"depths": [1, 1], "hidden_sizes": [16, 32], "num_encoder_blocks": 2, "num_attention_heads": [2, 4]},
    "segformer": {  # with these strides a last stage of several positions: attention to one has no gradient by q
        "depths": [1, 1, 1, 1],
        "hidden_sizes": [16, 16, 16, 32],
        "num_attention_heads": [2, 2, 2, 4],
        "strides": [2, 2, 2, 2],
    },
    "swin": SWIN,
    "swinv2": SWIN,
    "donut-swin": SWIN,
    "focalnet": {"depths": [1, 1], "embed_dim": 16, "image_size": 32, "focal_levels": [1, 1], "focal_windows": [3, 3]},
    "wav2vec2": CONV,
    "hubert": CONV,
    "unispeech": CONV,
    "unispeech-sat": CONV,
    "wavlm": CONV,
    "data2vec-audio": CONV,
    "sew": SEW,
    "sew-d": SEW,
    "wav2vec2-conformer": CONV,
}


def tiny_config(model_type: str) -> PretrainedConfig:
    """A small configuration of that family."""
    kind = transformers.CONFIG_MAPPING[model_type]
    return kind(**_shrunk(kind(), OWN.get(model_type, {})))


def _shrunk(config: PretrainedConfig, own: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, PretrainedConfig):
            found[name] = _shrunk(value, own.get(name, {}))
        elif name.endswith("layer_types") and value:
            found[name] = _each_twice(value)
        elif not name.startswith("_"):
            found |= _field(config, name, value)
    found |= {name: value for name, value in own.items() if not (isinstance(value, dict) and name in found)}
    if "layer_types" in found:  # one of each kind, and as many layers
        counts = [name for name in found if re.fullmatch(r"(num_hidden_layers|num_layers|n_layers?)", name)]
        found |= dict.fromkeys(counts, len(found["layer_types"]))
    return found


def _each_twice(kinds: list[str]) -> list[str]:
    different = list(dict.fromkeys(kinds))
    return different * 2 if len(different) == 1 else different


def _field(config: PretrainedConfig, name: str, value: Any) -> dict[str, Any]:
    size = next((size for rule, size in RULES if rule.match(name)), None)
    if size is None or isinstance(value, bool) or not isinstance(value, int | list | tuple):
        return {}
    if name.endswith("token_id") and not isinstance(value, int):
        return {name: size}
    if not isinstance(value, int):
        return {}
    if name.endswith("kv_heads") or name.endswith("key_value_heads"):  # as many as queries where it was so
        size = 4 if value == getattr(config, "num_attention_heads", None) else size
    return {name: min(size, value) if value > 0 else value}
