"""The families that the law is about: those that transformers' auto classes know and a tiny configuration makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tiny_config import tiny_config
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto as auto

from polyvera.model.task import LABEL, LM

WRITES, READS, ENCODER_DECODER, SEES, HEARS = "writes text", "reads text", "encoder-decoder", "images", "sound"
# Of what no tiny model is made: what a configuration alone does not say, or a package that is not installed.
LEFT_OUT = frozenset(
    [
        "bailing_hybrid",
        "bamba",
        "blt",
        "cohere_compass_text",
        "cpmant",
        "dbrx",
        "deepseek_v2",
        "dots1",
        "dots3_note",
        "dots3_note_text",
        "gemma3n",
        "gemma3n_text",
        "gemma4_assistant",
        "gemma4_unified_assistant",
        "got_ocr2",
        "longcat_flash",
        "musicgen",
        "musicgen_melody",
        "nemotron_h",
        "phi4_multimodal",
        "qwen4_exp",
        "qwen4_exp_text",
        "reformer",
        "xlstm",
        "zamba",
        "zamba2",
        "neomme",
        "bit",
        "cvt",
        "deit",
        "dinat",
        "efficientnet",
        "hgnet_v2",
        "hiera",
        "levit",
        "mobilenet_v1",
        "mobilenet_v2",
        "mobilevit",
        "mobilevitv2",
        "perceiver",
        "pp_lcnet",
        "pvt",
        "swiftformer",
        "textnet",
        "timm_wrapper",
        "imagegpt",
        "musicflamingo",
        "nemo_speechlm",
        "vibevoice_asr",
        "audio-spectrogram-transformer",
        "wav2vec2-bert",
        "whisper",
    ]
)
# Written after another of the table with other numbers: the daily run goes without them.
NEAR_COPIES = frozenset(
    [
        "arcee",
        "aria_text",
        "axk2",
        "beam",
        "bert-generation",
        "bitnet",
        "blenderbot",
        "blenderbot-small",
        "cohere2_moe",
        "cwm",
        "data2vec-text",
        "deepseek_v32",
        "encoder-decoder",
        "ernie",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone4",
        "exaone_moe",
        "flex_olmo",
        "flint",
        "gemma4",
        "gemma4_unified",
        "gemma4_unified_text",
        "gemma3_text",
        "glm",
        "glm4",
        "glm4_moe_lite",
        "glm_moe_dsa",
        "glmasr",
        "gpt-sw3",
        "granite_speech",
        "granite_speech_plus",
        "granite_swa",
        "granitemoe_swa",
        "granitemoeshared",
        "hy_v3",
        "hy_v4",
        "hyperclovax",
        "inkling2_text",
        "inkling_text",
        "internlm3",
        "iquestcoder",
        "jais2",
        "kimi_linear",
        "kolibri1",
        "laguna",
        "lfm2_moe",
        "lfm3",
        "llama4",
        "mellum",
        "mimo_v2_flash",
        "minimax_m2",
        "minimax_m3_vl_text",
        "ministral",
        "ministral3",
        "mllama",
        "moss_transcribe_diarize",
        "mvp",
        "nanochat",
        "nllb-moe",
        "olmo2",
        "olmo_hybrid",
        "pegasus",
        "pegasus_x",
        "plbart",
        "qwen3_5",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
        "qwen3_moe",
        "roc_bert",
        "roberta-prelayernorm",
        "seamless_m4t",
        "seamless_m4t_v2",
        "seed_oss",
        "solar_open",
        "t5gemma2",
        "trocr",
        "ultrabert",
        "ultravbert",
        "umt5",
        "vaultgemma",
        "voxtral",
        "voxtral_realtime",
        "xlm-roberta",
        "xlm-roberta-xl",
        "youtu",
        "camembert",
        "esmc",
        "gte",
        "jina_embeddings_v3",
        "luke",
        "megatron-bert",
        "mra",
        "nystromformer",
        "yoso",
        "convnextv2",
        "dinov2_with_registers",
        "data2vec-vision",
        "ijepa",
        "metaclip_2",
        "shieldgemma2",
        "siglip2",
        "swinv2",
        "vit_msn",
        "unispeech",
        "unispeech-sat",
        "sew-d",
        "data2vec-audio",
        "marian",
        "mbart",
        "led",
    ]
)


def _ids() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[7, 8, 9, 10, 11, 12], [21, 8, 30, 31, 9, 40], [12, 11, 10, 9, 8, 7]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _both_ids(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    given = _ids()
    return {**given, "decoder_input_ids": given["input_ids"].flip(1)}


def _pixels(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    config: Any = getattr(model.config, "vision_config", model.config)
    size: Any = getattr(config, "image_size", None) or 32
    side = size if isinstance(size, int) else size[0]
    draw = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn(3, getattr(config, "num_channels", 3), side, side, generator=draw)}


def _waves(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {"input_values": torch.randn(3, 1600, generator=torch.Generator().manual_seed(1))}


@dataclass(frozen=True, slots=True)
class Sort:
    """Families of one sort: the auto class that makes them, transformers' table of them, what a forward gets."""

    auto: str
    names: Mapping[str, str]
    inputs: Callable[[PreTrainedModel], dict[str, torch.Tensor]]
    task: str = LM


SORTS = {
    WRITES: Sort("AutoModelForCausalLM", auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, lambda _: _ids()),
    READS: Sort("AutoModelForMaskedLM", auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, lambda _: _ids(), LABEL),
    ENCODER_DECODER: Sort("AutoModelForSeq2SeqLM", auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES, _both_ids),
    SEES: Sort("AutoModelForImageClassification", auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES, _pixels),
    HEARS: Sort("AutoModelForAudioClassification", auto.MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES, _waves),
}
ORDER = (ENCODER_DECODER, READS, WRITES, SEES, HEARS)


@dataclass(frozen=True, slots=True)
class Row:
    """One family."""

    model_type: str
    sort: str

    def make(self) -> PreTrainedModel:
        torch.manual_seed(0)
        config = tiny_config(self.model_type)
        model: PreTrainedModel = getattr(transformers, SORTS[self.sort].auto).from_config(config).eval()
        draw = torch.Generator().manual_seed(1)
        for parameter in model.parameters():  # tiny weights would hide mistakes
            if parameter.is_floating_point() and parameter.dim() > 1:
                parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=draw).to(parameter.dtype))
        return model


def _rows() -> dict[str, Row]:
    found: dict[str, Row] = {}
    for sort in ORDER:
        for name in SORTS[sort].names:
            if name not in LEFT_OUT | NEAR_COPIES:
                found.setdefault(name, Row(name, sort))
    return dict(sorted(found.items()))


ROWS = _rows()
