"""model_shapes: how large a model is and which of its layers a spec adapts, from its configuration alone.

The model is built on the meta device, which holds shapes and no numbers: nothing but the configuration is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
import transformers

from polyvera.adapter.inject import head_tensors
from polyvera.adapter.layout import Shape, Widths
from polyvera.adapter.spec import AdapterSpec
from polyvera.adapter.targets import find_sites
from polyvera.errors import SpecError, did_you_mean, one_line
from polyvera.model.config import (
    CAUSAL_LM,
    CLASSIFICATION,
    ENCODER,
    ENCODER_DECODER,
    OTHER,
    TOKEN_CLASSIFICATION,
    checked_kind,
    context_length,
    kind_of,
    own_class,
)
from polyvera.model.coverage import Coverage, coverage_of
from polyvera.model.quantizer import refusal_here

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ConfigSource = str | os.PathLike[str] | transformers.PreTrainedConfig
CONFIG = "config.json"
# What may be done where a family has no such class.
WITHOUT: Mapping[str, str] = MappingProxyType(
    {
        CAUSAL_LM: "use rows with labels, or a causal language model",
        CLASSIFICATION: "use an encoder with a class for sequence classification, such as BERT, or rows without labels",
        TOKEN_CLASSIFICATION: "use an encoder with a class for token classification, such as BERT",
        ENCODER_DECODER: "use one that transformers loads as AutoModelForSeq2SeqLM, such as T5 or BART",
        ENCODER: "from Python, inject(model, spec) adapts any model",
    }
)
MAX_CONFIG_BYTES = 2**24
AUTO_MAP = "auto_map"  # what names a folder's own code
OWN_CODE = "needs code of its own, which is never run: use a model of a family that transformers knows"
# The classes of transformers that load each kind; the first that knows a family is taken.
KINDS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        CAUSAL_LM: (
            "AutoModelForCausalLM",
            "AutoModelForImageTextToText",
            "AutoModelForMultimodalLM",
            "AutoModelForSeq2SeqLM",
        ),
        CLASSIFICATION: ("AutoModelForSequenceClassification",),
        TOKEN_CLASSIFICATION: ("AutoModelForTokenClassification",),
        ENCODER_DECODER: ("AutoModelForSeq2SeqLM",),
        ENCODER: ("AutoModel",),
        OTHER: (),
    }
)


@dataclass(frozen=True)
class ModelShapes:
    """What cost() asks of a model.

    name: its class. num_params: tied weights once. sites: the widths of each adapted layer.
    head: the shapes of the spec's head by full name. dtype: the configuration's, None where it names none.
    context_length: the tokens that it reads, as context_length() has it. coverage: what the adapted layers are of it.
    refusal: why its quantized weights cannot be loaded on this machine, '' where they can.
    """

    name: str
    num_params: int
    sites: Mapping[str, Widths]
    head: Mapping[str, Shape]
    dtype: str | None
    context_length: int | None = None
    coverage: Coverage | None = None
    refusal: str = ""


def model_shapes(
    source: ConfigSource, spec: AdapterSpec | None = None, *, kind: str | None = None, num_labels: int | None = None
) -> ModelShapes:
    """The size of a model and the layers that the spec adapts in it, without its weights.

    source, kind, num_labels: as meta_model() takes them; a head asked of an encoder makes it a classifier.
    Raises SpecError as meta_model(), TargetError as find_sites().
    """
    spec = spec or AdapterSpec()
    config = read_config(source)
    if kind is None and spec.head and kind_of(config) == ENCODER:
        kind = CLASSIFICATION
    model = meta_model(config, kind=kind, num_labels=num_labels)
    sites = find_sites(model, spec)
    return ModelShapes(
        name=type(model).__name__,
        num_params=sum(p.numel() for p in model.parameters()),
        sites=sites,
        head={key: tuple(t.shape) for key, t in head_tensors(model, spec.head).items()},
        dtype=_dtype(config),
        context_length=context_length(model),
        coverage=coverage_of(model, sites),
        refusal=refusal_here(config),
    )


def meta_model(source: ConfigSource, *, kind: str | None = None, num_labels: int | None = None) -> PreTrainedModel:
    """The model of a configuration on the meta device.

    source: a folder with a config.json, such a file, a hub id, or a configuration. kind: one of KINDS; None takes what
    the configuration says it is, and a classifier where num_labels is given. num_labels: the classes of a classifier.
    Raises SpecError where there is no such model.
    """
    config = read_config(source)
    kind = checked_kind(config, kind or (CLASSIFICATION if num_labels is not None else kind_of(config)))
    if kind not in KINDS:
        raise SpecError(f"kind={kind!r} must be one of: {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    if num_labels is not None:
        if kind not in (CLASSIFICATION, TOKEN_CLASSIFICATION) or num_labels < 1:
            raise SpecError(f"kind={kind!r} does not use num_labels={num_labels}; a classifier has 1 or more")
        config.num_labels = num_labels
    make = maker(kind, config)
    try:
        with torch.device("meta"):
            model: PreTrainedModel = make(config, attn_implementation="eager")
    except Exception as error:  # a configuration comes from outside and can break a model class in any way
        raise SpecError(f"no {kind} model can be built from {type(config).__name__}: {one_line(error, 300)}") from error
    from polyvera.model.pooled_classifier import pooled  # imports transformers' models, which takes seconds

    return pooled(model, config.name_or_path)


def maker(kind: str, config: PreTrainedConfig) -> Any:
    """What makes a model of that kind from a configuration. Raises SpecError as auto_class()."""
    if kind == OTHER:
        own: Any = own_class(config)
        return own._from_config
    found = auto_class(kind, config)
    return getattr(found, "_from_config", None) or partial(found.from_config, trust_remote_code=False)


def auto_class(kind: str, config: PreTrainedConfig) -> Any:
    """The class of transformers that loads such a model as that kind, which takes seconds to import.

    Raises SpecError where it has none.
    """
    for name in KINDS[kind]:
        found = getattr(transformers, name, None)
        if found is not None and type(config) in found._model_mapping:
            return found
    if kind_of(config) == kind and own_class(config) is not None:
        return own_class(config)
    raise SpecError(f"transformers has no {kind} model of {config.model_type!r}: {WITHOUT[kind]}")


def read_config(source: ConfigSource) -> PreTrainedConfig:
    """The configuration itself, a copy where one was given. Raises SpecError where there is none or it is unknown."""
    if isinstance(source, transformers.PreTrainedConfig):
        return deepcopy(source)
    path = Path(source).expanduser()
    local = _local_config(path) if path.exists() else None
    if local is None and (not isinstance(source, str) or _looks_local(source, path)):
        raise SpecError(f"no folder or file {str(source)!r} here{_near(path)}")
    try:
        config = transformers.AutoConfig.from_pretrained(local or source, trust_remote_code=False)
    except Exception as error:  # as above: bytes from outside
        whence = "" if local else f" here, and none came from the hub{_near(path)}"
        why = OWN_CODE if is_own_code(error) else one_line(error, 300)
        raise SpecError(f"no configuration of a known model in {str(source)!r}{whence}: {why}") from error
    assert isinstance(config, transformers.PreTrainedConfig)
    if local is not None:
        config.name_or_path = str(local.parent)
    return config


def is_own_code(error: Exception) -> bool:
    """Whether transformers refuses to run a folder's code."""
    return "trust_remote_code" in str(error)


def _local_config(path: Path) -> Path:
    """The configuration file at a path that exists, checked for a known model type."""
    file = path / CONFIG if path.is_dir() else path
    if not file.is_file():
        raise SpecError(f"the folder {str(path)!r} has no {CONFIG}; it holds {_listed(path)}{_near(file)}")
    if file.stat().st_size > MAX_CONFIG_BYTES:
        raise SpecError(f"{str(file)!r} is not a model configuration: it has more than {MAX_CONFIG_BYTES} bytes")
    try:
        text = file.read_text(encoding="utf-8")
        if text.startswith("\ufeff"):  # transformers reads it no further, either
            raise ValueError("it begins with a byte order mark: save it without one")
        tree = json.loads(text)
        if not isinstance(tree, dict):
            raise ValueError(f"a {type(tree).__name__}, where an object is wanted")
        model_type = tree.get("model_type")
    except (ValueError, RecursionError) as error:
        raise SpecError(f"{str(file)!r} is not a model configuration: {one_line(error, 300)}") from error
    if not isinstance(model_type, str) or model_type not in transformers.CONFIG_MAPPING:
        near = f"; it {OWN_CODE}" if AUTO_MAP in tree else did_you_mean(str(model_type), transformers.CONFIG_MAPPING)
        raise SpecError(f"{str(file)!r} has model_type={model_type!r}, which transformers does not know{near}")
    return file


def _looks_local(source: str, path: Path) -> bool:
    inside = path.parent != Path() and path.parent.is_dir()
    return inside or source.startswith((".", "/", "~")) or source.endswith(".json") or source.count("/") > 1


def _near(path: Path) -> str:
    return did_you_mean(path.name, _names(path.parent))


def _listed(folder: Path) -> str:
    names = _names(folder)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def _dtype(config: PreTrainedConfig) -> str | None:
    dtype = getattr(config, "dtype", None)
    return None if dtype is None else str(dtype).removeprefix("torch.")
