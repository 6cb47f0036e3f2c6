"""Tiny models of many families, each with what there is to know of it: its kind and how many tokens it reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import transformers as T
from tiny_models import WORDS

from polyvera.model.config import CAUSAL_LM, CLASSIFICATION, ENCODER, ENCODER_DECODER

IDS = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LLAMA = {**IDS, **SIZES, "intermediate_size": 48, "num_key_value_heads": 2, "max_position_embeddings": 40}
BERT = {**IDS, **SIZES, "intermediate_size": 48, "max_position_embeddings": 34}
GPT2 = {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40}
OPT = {**IDS, **SIZES, "ffn_dim": 48, "max_position_embeddings": 40, "word_embed_proj_dim": 32}
DISTIL = {**IDS, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 34}
MPT = {**IDS, "d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 40}
BART = {**IDS, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
BART |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40}
T5 = {**IDS, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
VISION = {**SIZES, "intermediate_size": 48, "image_size": 16, "patch_size": 8}
GEMMA = {**LLAMA, "head_dim": 8, "sliding_window": 8, "layer_types": ["full_attention", "full_attention"]}
IMAGES = {"mm_tokens_per_image": 4, "image_token_index": 46, "boi_token_index": 45, "eoi_token_index": 44}


@dataclass(frozen=True)
class Family:
    """A model and the right answers. length: the tokens that it reads, None where nothing says."""

    make: Callable[[], T.PreTrainedModel]
    kind: str
    length: int | None


FAMILIES = {
    "llama": Family(lambda: T.LlamaForCausalLM(T.LlamaConfig(**LLAMA)), CAUSAL_LM, 40),
    "gpt2": Family(lambda: T.GPT2LMHeadModel(T.GPT2Config(**GPT2)), CAUSAL_LM, 40),
    "opt": Family(lambda: T.OPTForCausalLM(T.OPTConfig(**OPT)), CAUSAL_LM, 40),
    "bloom": Family(
        lambda: T.BloomForCausalLM(T.BloomConfig(**IDS, hidden_size=32, n_layer=2, n_head=4)), CAUSAL_LM, None
    ),
    "mpt": Family(lambda: T.MptForCausalLM(T.MptConfig(**MPT)), CAUSAL_LM, 40),
    "gemma3 with vision": Family(
        lambda: T.Gemma3ForConditionalGeneration(T.Gemma3Config(text_config=GEMMA, vision_config=VISION, **IMAGES)),
        CAUSAL_LM,
        40,
    ),
    "bert decoder": Family(lambda: T.BertLMHeadModel(T.BertConfig(**BERT, is_decoder=True)), CAUSAL_LM, 34),
    "roberta decoder": Family(lambda: T.RobertaForCausalLM(T.RobertaConfig(**BERT, is_decoder=True)), CAUSAL_LM, 32),
    "gpt2 classifier": Family(lambda: T.GPT2ForSequenceClassification(T.GPT2Config(**GPT2)), CLASSIFICATION, 40),
    "llama classifier": Family(lambda: T.LlamaForSequenceClassification(T.LlamaConfig(**LLAMA)), CLASSIFICATION, 40),
    "roberta classifier": Family(
        lambda: T.RobertaForSequenceClassification(T.RobertaConfig(**BERT)), CLASSIFICATION, 32
    ),
    "bert": Family(lambda: T.BertForMaskedLM(T.BertConfig(**BERT)), ENCODER, 34),
    "roberta": Family(lambda: T.RobertaForMaskedLM(T.RobertaConfig(**BERT)), ENCODER, 32),
    "xlm-roberta": Family(lambda: T.XLMRobertaModel(T.XLMRobertaConfig(**BERT)), ENCODER, 32),
    "mpnet": Family(lambda: T.MPNetModel(T.MPNetConfig(**BERT)), ENCODER, 32),
    "distilbert": Family(lambda: T.DistilBertModel(T.DistilBertConfig(**DISTIL)), ENCODER, 34),
    "albert": Family(lambda: T.AlbertModel(T.AlbertConfig(**BERT, embedding_size=16)), ENCODER, 34),
    "t5": Family(lambda: T.T5ForConditionalGeneration(T.T5Config(**T5)), ENCODER_DECODER, None),
    "bart": Family(lambda: T.BartForConditionalGeneration(T.BartConfig(**BART)), ENCODER_DECODER, 40),
}
