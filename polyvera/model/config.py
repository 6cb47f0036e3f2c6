"""What is asked of a base model, each question answered once: its kind, context length, special tokens and labels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from polyvera.errors import RecipeError, SpecError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    ModelOrConfig = PreTrainedModel | PreTrainedConfig

CAUSAL_LM, CLASSIFICATION, ENCODER, ENCODER_DECODER = "causal-lm", "classification", "encoder", "encoder-decoder"
TOKEN_CLASSIFICATION = "token-classification"
OTHER = "other"  # reads images, sound or series: adapted from Python, planned, and nothing else
TEXT = "input_ids"
AUTO_TASK = "auto"
# How the name of a model class ends, and the kind that it is.
ENDINGS = (
    ("ForSequenceClassification", CLASSIFICATION),
    ("ForTokenClassification", TOKEN_CLASSIFICATION),
    ("ForCausalLM", CAUSAL_LM),
    ("LMHeadModel", CAUSAL_LM),
)
# Where families state how many positions they have; the first that is a positive number counts.
LENGTHS = ("max_position_embeddings", "n_positions", "max_seq_len")
# transformers writes 10**30 where a tokenizer states no limit.
UNLIMITED = 2**31
LENGTH_DEPENDENT = frozenset(("longrope", "dynamic"))


def text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The part of a configuration that describes the text model; the whole one where there is no single such part."""
    try:
        return config.get_text_config()
    except ValueError:  # several texts models in one
        return config


def kind_of(model: ModelOrConfig) -> str:
    """The kind of a model, or of what a configuration describes.

    A model's class decides, a configuration's `architectures`; without a name that tells, the family does. A backbone
    without a head is an encoder: it gives vectors. What reads no text is OTHER.
    """
    config: Any = getattr(model, "config", model)
    if main_input(model) != TEXT:
        return ENCODER_DECODER if config.is_encoder_decoder else OTHER
    names: Any = (config.architectures or ()) if model is config else (type(model).__name__,)
    for name in names:
        for ending, kind in ENDINGS:
            if name.endswith(ending) and not (kind == CAUSAL_LM and config.is_encoder_decoder):
                return kind
    is_backbone = model is not config and getattr(model, "base_model", None) is model
    return ENCODER if is_backbone and not config.is_encoder_decoder else _family_kind(config)


def kind_to_load(config: PreTrainedConfig, wanted: str | None = None) -> str:
    """The kind to load a checkpoint as: the one that is wanted, None for what it is itself.

    An encoder then becomes a classifier, whose backbone gives its vectors. Raises SpecError for text with a model that
    sees later tokens, and for one that reads no text.
    """
    own = kind_of(config)
    if own == OTHER:
        check_kind(config, CAUSAL_LM)
    return checked_kind(config, wanted or (CLASSIFICATION if own == ENCODER else own))


def checked_kind(config: PreTrainedConfig, wanted: str) -> str:
    """The kind that is wanted, where an encoder-decoder stands in for a causal language model: both write text.

    Raises SpecError as check_kind().
    """
    stands_in = wanted == CAUSAL_LM and kind_of(config) == ENCODER_DECODER
    kind = ENCODER_DECODER if stands_in else wanted
    check_kind(config, kind)
    return kind


def main_input(model: ModelOrConfig) -> str:
    """What a model reads first: input_ids, pixel_values, input_features and others, in transformers' words."""
    config: Any = getattr(model, "config", model)
    whole: Any = model
    kind = own_class(whole) if whole is config else type(whole)
    return str(getattr(kind, "main_input_name", TEXT))


def own_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The class that a configuration names as its architecture, else its family's backbone; None for an unknown one."""
    import transformers

    for name in config.architectures or ():
        kind = getattr(transformers, name, None)
        if isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel):
            return kind
    found: Any = transformers.MODEL_MAPPING.get(type(config), None)
    return next(iter(found), None) if isinstance(found, tuple) else found


def check_kind(config: PreTrainedConfig, kind: str) -> None:
    """Raises SpecError where a configuration cannot be loaded as that kind with sense."""
    name = next(iter(config.architectures or ()), type(config).__name__)
    own = kind_of(config)
    if (kind == ENCODER_DECODER or (kind != OTHER and own == OTHER)) and main_input(config) != TEXT:
        raise SpecError(
            f"{name} reads {main_input(config)}, not text, and this command takes text; from Python, inject(model, "
            "spec) adapts any model"
        )
    if kind == ENCODER_DECODER and own != kind:
        raise SpecError(f"{name} is not an encoder-decoder, such as T5 or BART: leave the task out")
    if kind == CAUSAL_LM and CAUSAL_LM not in (own, _family_kind(config)):
        raise SpecError(
            f"{name} is an encoder, whose tokens see later tokens, so it cannot write text: use rows with labels, or "
            "a causal language model"
        )


def _family_kind(config: PreTrainedConfig) -> str:
    if config.is_encoder_decoder:
        return ENCODER_DECODER
    causal, masked = _families()
    writes = getattr(config, "is_decoder", False) or config.model_type in causal - masked
    return CAUSAL_LM if writes else ENCODER


@lru_cache(maxsize=1)
def _families() -> tuple[frozenset[str], frozenset[str]]:
    """The model types whose text part writes from left to right, and those that fill in masked words."""
    from transformers.models.auto import modeling_auto as auto

    return (
        frozenset(auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        | frozenset(auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
        | frozenset(auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES)
        | frozenset(auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES),  # those that are no encoder-decoders
        frozenset(auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES),
    )


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> int | None:
    """How many tokens the model reads at most, or None where neither it nor its tokenizer says.

    The configuration's positions, less those that come before the first token (RoBERTa counts from its padding token
    on); where it has none, the tokenizer's model_max_length. model: may be on the meta device.
    """
    config = text_config(model.config)
    stated = (getattr(config, name, None) for name in LENGTHS)
    positions = next((n for n in stated if isinstance(n, int) and n > 0), None)
    if positions is not None:
        return positions - _first_position(model)
    limit = getattr(tokenizer, "model_max_length", None)
    return int(limit) if limit is not None and 0 < limit < UNLIMITED else None


def _first_position(model: PreTrainedModel) -> int:
    tables = (m for name, m in model.named_modules() if name.endswith("position_embeddings"))
    padding = [table.padding_idx for table in tables if isinstance(getattr(table, "padding_idx", None), int)]
    return max(padding, default=-1) + 1


def rope_limit(model: PreTrainedModel) -> int | None:
    """The positions below which rotary frequencies depend on no other row of a forward; None where they never do.

    Past it `longrope` and `dynamic` take the frequencies of a forward from the largest position in it.
    """
    limits = [_original_length(m) for m in model.modules() if LENGTH_DEPENDENT & set(_rope_types(m))]
    return min(limits, default=None)


def _rope_types(module: Any) -> tuple[str, ...]:
    kinds = getattr(module, "rope_type", ())
    return (kinds,) if isinstance(kinds, str) else tuple(kinds.values() if isinstance(kinds, Mapping) else ())


def _original_length(module: Any) -> int:
    stated = getattr(module.config, "rope_parameters", None) or {}
    several = [stated, *(part for part in stated.values() if isinstance(part, Mapping))]
    lengths = [part.get("original_max_position_embeddings") for part in several]
    return min((n for n in lengths if isinstance(n, int)), default=int(module.config.max_position_embeddings))


def vocabulary_size(model: PreTrainedModel) -> int:
    """The number of tokens that have an embedding; ids are from 0 to one less."""
    return int(text_config(model.config).vocab_size)


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokens that end an answer: those of the model's generation config and the tokenizer's own."""
    config = getattr(model, "generation_config", None)
    ends = None if config is None else config.eos_token_id
    several = ends if isinstance(ends, list | tuple) else [ends]
    return frozenset(int(token) for token in (*several, tokenizer.eos_token_id) if token is not None)


def pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills up short rows: the model's, since classifiers look for it; else the tokenizer's pad or end.

    Raises RecipeError where there is none with an embedding.
    """
    own = getattr(text_config(model.config), "pad_token_id", None)
    for token in (own, tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int) and 0 <= token < vocabulary_size(model):
            return token
    raise RecipeError(f"{tokenizer.name_or_path!r} has neither a pad token nor an end token: set tokenizer.pad_token")


def set_pad_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Tells the model which token pads, where its configuration names none that it has. Raises RecipeError."""
    token = pad_token(model, tokenizer)
    for config in (model.config, text_config(model.config)):
        config.pad_token_id = token


def labels_of(config: PreTrainedConfig) -> tuple[str, ...]:
    """The names of a classifier's outputs, in their order."""
    named: Mapping[Any, str] = config.id2label or {}
    return tuple(named[i] for i in sorted(named))


def are_placeholders(labels: tuple[str, ...]) -> bool:
    """Whether these are the names that transformers gives to outputs without names."""
    return labels == tuple(f"LABEL_{i}" for i in range(len(labels)))


def set_labels(config: PreTrainedConfig, labels: tuple[str, ...]) -> None:
    """Names the outputs of a classifier that has as many."""
    for key, value in label_names(labels).items():
        setattr(config, key, value)


def label_names(labels: tuple[str, ...]) -> dict[str, Any]:
    """The configuration's entries for these labels."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def trained_labels(model: PreTrainedModel) -> tuple[str, ...]:
    """The labels of a head that came with its checkpoint; () where none did, or one output has no stated meaning."""
    from polyvera.adapter.targets import find_head

    config: Any = model.config
    is_own = type(model).__name__ in (config.architectures or ()) and bool(find_head(model))
    return labels_of(config) if is_own and (config.num_labels > 1 or config.problem_type) else ()
