"""README.md of an exported adapter: the front matter that hubs read, what it is, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator

from polyvera.adapter.adapter import Adapter
from polyvera.model.unread import CLASS
from polyvera.store.peft.tasks import PeftTask

POOLED = "PooledForSequenceClassification"


def model_card(adapter: Adapter, base: str, peft_type: str, task: PeftTask | None) -> str:
    """The text of a README.md. base: the base model's public name, '' where it is unknown."""
    return "\n".join([*_front_matter(adapter, base, peft_type, task), "", *_body(adapter, base, task), ""])


def warnings_of(adapter: Adapter) -> list[str]:
    """What another program computes otherwise than polyvera, in sentences."""
    if adapter.origin.get(CLASS) == POOLED and adapter.layout.head:
        return [
            "this classifier pools its base's last hidden states, as the base's own files say, and transformers' "
            "AutoModelForSequenceClassification reads the first token: PEFT loads the numbers and answers otherwise. "
            "`polyvera merge` writes a model that sentence-transformers reads, with the same answers"
        ]
    return []


def _front_matter(adapter: Adapter, base: str, peft_type: str, task: PeftTask | None) -> Iterator[str]:
    yield "---"
    if base:
        yield f"base_model: {json.dumps(base)}"
        yield "base_model_relation: adapter"
    yield "library_name: peft"
    if task is not None:
        yield f"pipeline_tag: {task.pipeline}"
    yield "tags:"
    yield from (f"- {tag}" for tag in dict.fromkeys((peft_type.lower(), adapter.spec.method, "polyvera")))
    yield "---"


def _body(adapter: Adapter, base: str, task: PeftTask | None) -> Iterator[str]:
    layout = adapter.layout
    yield f"# {layout.title}{f' of {base}' if base else ''}"
    yield ""
    yield f"{adapter.num_params:,} trained numbers. Adapted layers: {', '.join(f'`{p}`' for p in layout.patterns)}."
    if adapter.labels:
        yield f"Classes: {', '.join(adapter.labels)}."
    if adapter.scores:
        yield ""
        yield from (f"- {name}: {value:.4g}" for name, value in adapter.scores.items())
    for warning in warnings_of(adapter):
        yield f"\n**Note:** {warning}."
    auto = "PeftModel" if task is None else f"Auto{'PeftModel' + task.auto.removeprefix('AutoModel')}"
    given = f", num_labels={len(adapter.labels)}" if adapter.labels else ""
    load = (
        f'model = {auto}.from_pretrained("."{given})'
        if task
        else f'model = {auto}.from_pretrained(base, ".")  # base: its model'
    )
    yield "\n```python\n" + f"from peft import {auto}\n\n{load}" + "\n```"
    yield f"\n```\npolyvera import . --name NAME --model {base or 'BASE'}\n```"
