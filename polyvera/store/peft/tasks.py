"""PEFT's tasks: the class of transformers that each means, the head that is saved with it, and what hubs call it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class PeftTask:
    """One task_type. auto: the class that loads its models; mapping: transformers' table of those that it loads.

    heads: the modules that PEFT saves for it, named in modules_to_save or not. pipeline: what hubs call it.
    """

    name: str
    auto: str
    mapping: str
    pipeline: str
    heads: tuple[str, ...] = ()

    def has_its_head(self, heads: Collection[str]) -> bool:
        """Whether an adapter with these heads has the one without which PEFT loads no such model."""
        return not self.heads or any(head.endswith(self.heads) for head in heads)

    def num_classes(self, shapes: Mapping[str, Sequence[int]]) -> int | None:
        """The rows of the last matrix of its head, by the names of tensors; None where there is none."""
        matrices = [
            shape[0]
            for name, shape in sorted(shapes.items())
            if name.endswith(".weight") and len(shape) == 2 and not {*self.heads}.isdisjoint(name.split("."))
        ]
        return matrices[-1] if matrices else None


TASKS: Mapping[str, PeftTask] = MappingProxyType(
    {
        task.name: task
        for task in (
            PeftTask("CAUSAL_LM", "AutoModelForCausalLM", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "text-generation"),
            PeftTask(
                "SEQ_CLS",
                "AutoModelForSequenceClassification",
                "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
                "text-classification",
                ("classifier", "score"),
            ),
            PeftTask(
                "TOKEN_CLS",
                "AutoModelForTokenClassification",
                "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
                "token-classification",
                ("classifier", "score"),
            ),
            PeftTask(
                "QUESTION_ANS",
                "AutoModelForQuestionAnswering",
                "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
                "question-answering",
                ("qa_outputs",),
            ),
            PeftTask(
                "SEQ_2_SEQ_LM",
                "AutoModelForSeq2SeqLM",
                "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
                "text2text-generation",
            ),
            PeftTask("FEATURE_EXTRACTION", "AutoModel", "MODEL_MAPPING_NAMES", "feature-extraction"),
        )
    }
)


def task_of_class(name: str) -> PeftTask | None:
    """The task whose models have a class of that name, such as LlamaForCausalLM; None for any other."""
    return next((task for task in TASKS.values() if name in _classes(task.mapping)), None)


def task_of_heads(heads: tuple[str, ...]) -> PeftTask | None:
    """The first task that saves such modules."""
    return next((t for t in TASKS.values() if heads and t.heads and all(h.endswith(t.heads) for h in heads)), None)


def library_of(name: str) -> str | None:
    """The module of a class of transformers, None where there is none of that name."""
    import transformers

    found = getattr(transformers, name, None)
    return found.__module__ if isinstance(found, type) else None


@cache
def _classes(mapping: str) -> frozenset[str]:
    from transformers.models.auto import modeling_auto as auto

    names = getattr(auto, mapping).values()
    return frozenset(one for name in names for one in ((name,) if isinstance(name, str) else name))
