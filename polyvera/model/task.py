"""Task: what rows ask of a model, as one row of a table: how they are read, what is predicted, lost and scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from polyvera.model.config import CAUSAL_LM, CLASSIFICATION, ENCODER_DECODER, TOKEN_CLASSIFICATION

LM, LABEL, MULTI_LABEL, REGRESSION = "lm", "label", "multi-label", "regression"
TOKEN_LABEL, PREFERENCE = "token-classification", "preference"
PAIRS, SIMILARITY = "pairs", "similarity"
SEQ2SEQ, ORPO = "seq2seq", "orpo"
# What a prediction is made for: the next token of an answer, a token where it stands, the row as a whole.
NEXT_TOKEN, EACH_TOKEN, WHOLE_ROW = "next token", "each token", "whole row"
THRESHOLD = 0.5
SCORE = ("score",)  # what the one output of a regression is called


@dataclass(frozen=True, slots=True)
class Task:
    """One row of the table. Most words are keys of a table beside the code that works with them.

    kind: of the model that answers. encoding: how a row becomes tokens, a key of ENCODERS. predicts: one of the three
    above. loss: of a prediction, a key of LOSSES. answer: what the outputs say, a key of ANSWERS, '' for text.
    metrics: keys of METRICS, the one to compare by first, () for those of text. peft: PEFT's name of the task.
    problem_type: transformers' name of what a head is for, '' for its default. chooses: whether each row is one of
    several classes. compares: of two answers to one prompt, a key of COMPARISONS, '' where there is one. embeds:
    whether texts get vectors: loss is then a key of VECTOR_LOSSES, and answer of VECTOR_ANSWERS. span: which of the
    labels the loss takes for 0 and 1 where they are numbers, a key of SPANS.
    """

    kind: str
    encoding: str
    predicts: str
    loss: str
    answer: str
    metrics: tuple[str, ...]
    peft: str
    problem_type: str = ""
    chooses: bool = False
    compares: str = ""
    embeds: bool = False
    span: str = ""

    @property
    def has_head(self) -> bool:
        """Whether it is answered by a head whose outputs the labels of its rows name."""
        return bool(self.answer) and not self.embeds

    @property
    def writes(self) -> bool:
        """Whether it is answered by text."""
        return not self.answer and not self.compares

    @property
    def has_own_loss(self) -> bool:
        """Whether transformers' own loss of the model is its loss."""
        return self.writes and self.predicts == NEXT_TOKEN

    @property
    def answers_apart(self) -> bool:
        """Whether an answer is a sequence of its own, which a decoder reads, and not the end of its prompt's."""
        return self.kind == ENCODER_DECODER

    @property
    def counts_rows(self) -> bool:
        """Whether the mean loss is over rows of several sequences, not over what each predicts."""
        return bool(self.compares) or self.embeds

    @property
    def needs_others(self) -> bool:
        """Whether a text is to be told from those of other rows in its batch."""
        return self.embeds and not self.span

    @property
    def scores_base(self) -> bool:
        """Whether the bare base has answers of its own: text or vectors, which need no head."""
        return self.writes or self.embeds

    @property
    def has_threshold(self) -> bool:
        """Whether each label counts from a probability on."""
        return self.answer == "labels"


BY_DPO = Task(
    CAUSAL_LM,
    "preference",
    NEXT_TOKEN,
    "cross_entropy",
    "",
    ("reward_accuracy", "reward_margin"),
    "CAUSAL_LM",
    compares="dpo",
)
TASKS: Mapping[str, Task] = MappingProxyType(
    {
        LM: Task(CAUSAL_LM, "continuation", NEXT_TOKEN, "cross_entropy", "", (), "CAUSAL_LM"),
        SEQ2SEQ: Task(ENCODER_DECODER, "source and target", EACH_TOKEN, "cross_entropy", "", (), "SEQ_2_SEQ_LM"),
        LABEL: Task(
            CLASSIFICATION,
            "class",
            WHOLE_ROW,
            "cross_entropy",
            "label",
            ("accuracy", "macro_f1", "majority"),
            "SEQ_CLS",
            chooses=True,
        ),
        MULTI_LABEL: Task(
            CLASSIFICATION,
            "set",
            WHOLE_ROW,
            "binary_cross_entropy",
            "labels",
            ("micro_f1", "macro_f1_of_labels", "exact_match_of_labels"),
            "SEQ_CLS",
            "multi_label_classification",
        ),
        REGRESSION: Task(
            CLASSIFICATION,
            "number",
            WHOLE_ROW,
            "squared_error",
            "number",
            ("pearson", "spearman", "mse"),
            "SEQ_CLS",
            "regression",
            span="deviation",
        ),
        TOKEN_LABEL: Task(
            TOKEN_CLASSIFICATION,
            "tags",
            EACH_TOKEN,
            "cross_entropy",
            "tags",
            ("entity_f1", "entity_precision", "entity_recall", "word_accuracy"),
            "TOKEN_CLS",
        ),
        PREFERENCE: BY_DPO,
        ORPO: replace(BY_DPO, compares="orpo"),
        PAIRS: Task(
            CLASSIFICATION,
            "texts",
            WHOLE_ROW,
            "in_batch_negatives",
            "rank",
            ("ndcg_at_10", "accuracy_at_1"),
            "FEATURE_EXTRACTION",
            embeds=True,
        ),
        SIMILARITY: Task(
            CLASSIFICATION,
            "texts",
            WHOLE_ROW,
            "squared_cosine_error",
            "cosine",
            ("spearman", "pearson"),
            "FEATURE_EXTRACTION",
            embeds=True,
            span="range",
        ),
    }
)


def kind_for(task: str) -> str | None:
    """The kind of model that a task is for, None where none is named, as for 'auto'."""
    row = TASKS.get(task)
    return None if row is None else row.kind


def task_named(name: str) -> Task:
    """The row of that name, '' for text."""
    return TASKS[name or LM]
