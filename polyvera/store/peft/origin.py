"""What an adapter knows of its base beyond numbers, out of a PEFT config and the model, and into a config again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from polyvera.adapter.adapter import Adapter
from polyvera.adapter.inject import num_classes
from polyvera.adapter.layout import Layout
from polyvera.errors import SpecError
from polyvera.model.config import labels_of
from polyvera.model.task import LABEL, REGRESSION, SCORE, THRESHOLD
from polyvera.model.task import TASKS as TASKS_HERE
from polyvera.model.unread import CLASS
from polyvera.store.peft.config import OWN_KEY, PeftConfig
from polyvera.store.peft.tasks import TASKS, PeftTask, library_of, task_of_class, task_of_heads

REVISION, TASK, BARE = "revision", "task_type", "backbone_prefix"


def origin_of(config: PeftConfig, model: nn.Module, prefix: str) -> Mapping[str, str]:
    """The class of the base, the revision of it and PEFT's task, as far as the folder or the model says.

    prefix: what the folder's names leave out, as those of a bare backbone.
    """
    found = {
        CLASS: config.base_class or type(model).__name__,
        REVISION: config.revision or "",
        TASK: config.task_type or "",
        BARE: prefix,
    }
    return {key: value for key, value in found.items() if value}


def labels_from(config: PeftConfig, model: nn.Module, layout: Layout) -> tuple[str, ...]:
    """The names of a text classifier's outputs: the folder's own, else the model's where it has as many."""
    is_other = config.task_type not in (None, *(row.peft for row in TASKS_HERE.values() if row.has_head))
    if config.polyvera.labels or is_other or not layout.head or not hasattr(model, "config"):
        return config.polyvera.labels
    whole: Any = model
    named, num = labels_of(whole.config), num_classes(model, layout)
    if task_from(config, model, layout) == REGRESSION:
        return SCORE
    return named if num is not None and num > 1 and len(named) == num else ()


def task_from(config: PeftConfig, model: nn.Module, layout: Layout) -> str:
    """What the head of a folder is for, as polyvera calls it; '' is one of the labels, or text.

    One output alone is a number where nothing else is said, as transformers takes it.
    """
    whole: Any = getattr(model, "config", None)
    one = TASKS_HERE[REGRESSION].problem_type if num_classes(model, layout) == 1 else None
    problem = getattr(whole, "problem_type", None) or one
    asked = (config.task_type, "" if problem in (None, "single_label_classification") else problem)
    rows = (name for name, row in TASKS_HERE.items() if row.has_head and (row.peft, row.problem_type) == asked)
    found = config.polyvera.task or next(rows, "")
    return "" if found == LABEL else found


def task_for(adapter: Adapter, given: str | None, heads: tuple[str, ...]) -> PeftTask | None:
    """The task to write: the one asked for, else the folder's that it came from, else what class and head say.

    Raises SpecError for a task whose head was not trained.
    """
    if given is None:
        own = TASKS_HERE[adapter.task].peft if adapter.task else ""
        known = (TASKS.get(adapter.origin.get(TASK, own)), task_of_class(adapter.origin.get(CLASS, "")))
        return next((t for t in (*known, task_of_heads(heads)) if t is not None and t.has_its_head(heads)), None)
    if given not in TASKS:
        raise SpecError(f"task_type={given!r} must be one of: {', '.join(TASKS)}")
    task = TASKS[given]
    if not task.has_its_head(heads):
        raise SpecError(
            f"task_type={given!r}: PEFT wants the trained head of such a model ({' or '.join(task.heads)}), and "
            f"this adapter has {', '.join(heads) or 'no head'}; use FEATURE_EXTRACTION"
        )
    return task


def prefix_for(adapter: Adapter, model: nn.Module | None) -> str:
    """What a bare backbone's folder leaves out of every name, such as `bert.`; '' where that is nothing, or unknown."""
    import transformers

    known: Any = getattr(transformers, adapter.origin.get(CLASS, ""), None) if model is None else model
    prefix = adapter.origin.get(BARE) or f"{getattr(known, 'base_model_prefix', '')}."
    return prefix if all(name.startswith(prefix) for name in adapter.layout.site_names) else ""


def origin_config(adapter: Adapter, task: PeftTask | None) -> dict[str, Any]:
    """The keys of a config that say the task, the base's class and revision, and what only polyvera reads."""
    name = adapter.origin.get(CLASS, "")
    library = None if task or not name else library_of(name)
    own = {
        "labels": list(adapter.labels),
        "scores": dict(adapter.scores),
        "created": adapter.created,
        "lr": adapter.lr,
        "prompt_form": adapter.prompt_form,
        "task": adapter.task,
        "threshold": None if adapter.threshold == THRESHOLD else adapter.threshold,
        CLASS: name,
    }
    return {
        "task_type": None if task is None else task.name,
        "auto_mapping": {"base_model_class": name, "parent_library": library} if library else None,
        "revision": adapter.origin.get(REVISION),
        OWN_KEY: {key: value for key, value in own.items() if value},
    }
