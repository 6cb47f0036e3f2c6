"""evaluate: how well a model with its adapters answers the rows of a table, beside the best constant answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import exp
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import functional as F

from polyvera.adapter.route import route
from polyvera.data.batching import Collator
from polyvera.data.encoding import IGNORED, Encoded, encode, with_calls_written
from polyvera.data.reward_margins import reward_margins
from polyvera.data.row_form import FORMS, Example
from polyvera.data.tables import Table
from polyvera.data.target_tokens import TargetTokens, target_logits
from polyvera.errors import DataError, did_you_mean
from polyvera.evaluate.embedded import embedded_answers
from polyvera.evaluate.entities import OUTSIDE
from polyvera.evaluate.generate import RowSlots, generate, row_slots
from polyvera.evaluate.metrics import METRICS, macro_f1, majority, share
from polyvera.model.answer import Meaning
from polyvera.model.config import are_placeholders, context_length, labels_of, vocabulary_size
from polyvera.model.inference import by_length, evaluating
from polyvera.model.prompt import bare_ids, words_passage
from polyvera.model.task import TASKS

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


OWN_MEANINGS: Mapping[int, Meaning] = MappingProxyType({})
MANY = 4  # rows for each distinct answer, on average, where answering is choosing


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Of one row's answer: the summed loss in nats, the tokens that the model would have put first, all tokens."""

    loss: float
    right: int
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """Each row's slot and answer, and for generated answers its token counts; `scores` sums them up.

    kind: a key of FORMS. answers: a text or a label, several labels, a number, or a tag for each word.
    """

    kind: str
    examples: tuple[Example, ...]
    slots: tuple[int, ...]
    answers: tuple[Any, ...]
    counts: tuple[TokenCount, ...] = ()

    @property
    def scores(self) -> dict[str, float]:
        """Named results over all rows.

        Of a head, or of two answers: the metrics of the task. Answers: exact_match (stripped, case kept, any right
        answer counts), rouge_l where rouge-score is installed, bleu (0 to 100) where sacrebleu is, macro_f1 where few
        answers come often. Tokens: token_accuracy, loss in nats, perplexity. majority: the share of rows that the best
        constant answer gets right.
        """
        return self.of_rows(range(len(self.examples)))

    def of_slot(self, slot: int) -> dict[str, float]:
        """The same over one slot's rows. Raises DataError where it has none."""
        rows = [i for i, s in enumerate(self.slots) if s == slot]
        if not rows:
            raise DataError(
                f"no row was answered by slot {slot}; the slots are {', '.join(map(str, sorted(set(self.slots))))}"
            )
        return self.of_rows(rows)

    def of_rows(self, rows: Sequence[int]) -> dict[str, float]:
        """The same over some rows, by their numbers from 0."""
        examples, answers = [self.examples[i] for i in rows], [self.answers[i] for i in rows] if self.answers else []
        metrics = TASKS[FORMS[self.kind].task].metrics
        if metrics:
            return {name: METRICS[name](examples, answers) for name in metrics}
        scores = _token_scores([self.counts[i] for i in rows])
        if answers:
            scores["exact_match"] = share(is_right(a, e) for a, e in zip(answers, examples, strict=True))
            scores |= rouge_l(answers, examples) | bleu(answers, examples)
            if _is_choice(examples):
                scores["macro_f1"] = macro_f1([e.answer.strip() for e in examples], [a.strip() for a in answers])
            scores["majority"] = majority(examples)
        return scores


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    table: Table,
    slots: RowSlots = None,
    *,
    max_new_tokens: int | None = None,
    batch_size: int = 8,
    meanings: Mapping[int, Meaning] = OWN_MEANINGS,
) -> Evaluation:
    """Answers every row greedily, rows of several adapters in one batch.

    model, tokenizer: with or without adapters in it, and with a head where the rows' task has one.
    table: N rows, as polyvera.data.tables.read() gives them.
    slots: a slot or its name for all, or N of them; None is the model's only adapter, or the base.
    max_new_tokens: of a generated answer; None is as many as the longest right answer has.
    batch_size: rows in one batch.
    meanings: what the outputs of a slot's head stand for; the model's own labels for others.

    Raises DataError for a row that the model cannot read whole, SlotError for an unknown slot.
    """
    chosen = row_slots(model, slots, len(table))
    table = with_calls_written(table.suited(model), tokenizer)
    rows, longest = measured(model, tokenizer, table)
    collate = Collator.of(model, tokenizer)
    if max_new_tokens is not None and not (table.row.writes and all(e.prompt for e in table.examples)):
        raise DataError(f"max_new_tokens={max_new_tokens} has no effect: the rows of {table.source} have no prompts")
    if table.row.has_head:
        own = Meaning(table.task, _label_names(model, table) if {*chosen} - {*meanings} else ())
        known = dict.fromkeys(chosen, own) | {**meanings}
        _check_labels(table, [known[slot].labels for slot in chosen])
        found = _heads_answers(model, rows, chosen, collate, batch_size, known)
        answers = [_of_all_words(tokenizer, e, own, rows) for e, own in zip(table.examples, found, strict=True)]
        return Evaluation(table.kind, table.examples, tuple(chosen), tuple(answers))
    if table.row.embeds:
        numbers = embedded_answers(model, rows, chosen, collate, batch_size)
        return Evaluation(table.kind, table.examples, tuple(chosen), tuple(numbers))
    if table.row.compares:
        margins = _margins(model, rows, chosen, collate, batch_size)
        return Evaluation(table.kind, table.examples, tuple(chosen), tuple(margins))
    counts = _counts(model, rows, chosen, collate, batch_size)
    prompts = [example.asked for example in table.examples]
    texts: list[str] = []
    if all(example.prompt for example in table.examples):
        texts = generate(
            model, tokenizer, prompts, slots=chosen, max_new_tokens=max_new_tokens or longest, batch_size=batch_size
        )
    return Evaluation(table.kind, table.examples, tuple(chosen), tuple(texts), tuple(counts))


def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, table: Table) -> tuple[Encoded, int]:
    """(the rows in tokens, the tokens of the longest right answer and its end). Raises DataError for too long a row."""
    limit = context_length(model, tokenizer)
    rows = encode(table, tokenizer, limit, num_tokens=vocabulary_size(model))
    if not (table.row.writes and all(example.prompt for example in table.examples)):
        return rows, 0
    longest = 1 + max(len(bare_ids(tokenizer, right)) for e in table.examples for right in e.right)
    before = 0 if table.row.answers_apart else max(_num_read(row["labels"]) for row in rows.rows)
    if limit is not None and (rows.shortened or before + longest > limit):
        raise DataError(
            f"{table.source}: its longest prompt and answer together have more than the model's {limit} tokens"
        )
    return rows, longest


def _num_read(labels: Sequence[int]) -> int:
    """Tokens before the last answer."""
    return 1 + max(i for i, label in enumerate(labels) if label == IGNORED)


def is_right(answer: str, example: Example) -> bool:
    """Whether the answer is one of the right ones, but for space around it."""
    return answer.strip() in {right.strip() for right in example.right}


def rouge_l(answers: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """{'rouge_l': the mean best F-measure over the right answers}, or nothing where rouge-score is not installed."""
    if find_spec("rouge_score") is None:
        return {}
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    best = [scorer.score_multi(e.right, a)["rougeL"].fmeasure for a, e in zip(answers, examples, strict=True)]
    return {"rouge_l": sum(best) / len(best)}


def bleu(answers: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
    """{'bleu': sacrebleu's corpus score over the right answers, 0 to 100}, or nothing where it is not installed."""
    if find_spec("sacrebleu") is None:
        return {}
    import sacrebleu

    most = max(len(e.right) for e in examples)
    columns = [[e.right[i] if i < len(e.right) else None for e in examples] for i in range(most)]
    return {"bleu": float(sacrebleu.corpus_bleu(list(answers), columns).score)}  # type: ignore[arg-type]


def _is_choice(examples: Sequence[Example]) -> bool:
    """Whether the answers are a choice among few: one right answer a row, and each comes several times on average."""
    return all(len(e.right) == 1 for e in examples) and MANY * len({e.answer.strip() for e in examples}) <= len(
        examples
    )


def _token_scores(counts: Sequence[TokenCount]) -> dict[str, float]:
    tokens = sum(count.tokens for count in counts)
    loss = sum(count.loss for count in counts) / tokens
    return {
        "token_accuracy": sum(count.right for count in counts) / tokens,
        "loss": loss,
        "perplexity": exp(min(loss, 700.0)),
    }


def _heads_answers(
    model: PreTrainedModel,
    rows: Encoded,
    slots: Sequence[int],
    collate: Collator,
    batch_size: int,
    meanings: Mapping[int, Meaning],
) -> list[Any]:
    """What each row's head says: of its text, or of each word whose first token was read."""
    answers: list[Any] = [None] * len(rows)
    for batch, logits, targets in _forwards(model, rows, slots, collate, batch_size):
        outputs = torch.split(logits.cpu(), [int((targets.rows == j).sum()) for j in range(len(batch))])
        for i, own in zip(batch, outputs, strict=True):
            meaning = meanings[slots[i]]
            scores = meaning.scores(own)
            answers[i] = meaning.answer(scores if targets.positions is not None else scores[0])
    return answers


def _of_all_words(tokenizer: PreTrainedTokenizerBase, example: Example, found: Any, rows: Encoded) -> Any:
    """An answer with a tag for every word where words are labelled, as it is for others."""
    if not example.words:
        return found
    return tags_of_words(found, words_passage(tokenizer, example.words, rows.max_length)[1], len(example.words))


def tags_of_words(found: Sequence[str], words: Sequence[int | None], num_words: int) -> tuple[str, ...]:
    """A tag for each word; O for those that were cut off or that the tokenizer drops. words: of each token."""
    read = dict(zip(dict.fromkeys(word for word in words if word is not None), found, strict=True))
    return tuple(read.get(i, OUTSIDE) for i in range(num_words))


def _margins(
    model: PreTrainedModel, rows: Encoded, slots: Sequence[int], collate: Collator, batch_size: int
) -> list[float]:
    margins = [0.0] * len(rows)
    with evaluating(model):
        for batch in by_length(rows.lengths, batch_size):
            inputs = collate([rows[i] for i in batch])
            targets = TargetTokens.of(inputs.pop("labels")).to(model.device)
            with route([slots[i] for i in batch] * 2):
                found = reward_margins(model, {k: t.to(model.device) for k, t in inputs.items()}, targets)
            for i, margin in zip(batch, found.tolist(), strict=True):
                margins[i] = margin
    return margins


def _counts(
    model: PreTrainedModel, rows: Encoded, slots: Sequence[int], collate: Collator, batch_size: int
) -> list[TokenCount]:
    counts = [TokenCount(0.0, 0, 0)] * len(rows)
    for batch, logits, targets in _forwards(model, rows, slots, collate, batch_size):
        losses = F.cross_entropy(logits, targets.labels, reduction="none")
        right = logits.argmax(-1) == targets.labels
        found = [targets.summed(v, len(batch)).tolist() for v in (losses, right.long(), torch.ones_like(targets.rows))]
        for i, *count in zip(batch, *found, strict=True):
            counts[i] = TokenCount(*count)
    return counts


def _forwards(
    model: PreTrainedModel, rows: Encoded, slots: Sequence[int], collate: Collator, batch_size: int
) -> Iterator[tuple[list[int], torch.Tensor, TargetTokens]]:
    """(row numbers, logits of their targets, the targets) of each batch."""
    with evaluating(model):
        for batch in by_length(rows.lengths, batch_size):
            inputs = collate([rows[i] for i in batch])
            targets = TargetTokens.of(inputs.pop("labels"), rows.task.predicts).to(model.device)
            with route([slots[i] for i in batch]):
                logits = target_logits(model, {k: t.to(model.device) for k, t in inputs.items()}, targets)
            yield batch, logits, targets


def _check_labels(table: Table, known: Sequence[Sequence[str]]) -> None:
    """Raises DataError for a row whose label no answer could be. known: the labels that each row may be answered by."""
    for example, labels in zip(table.examples, known, strict=True):
        if table.row.chooses and not labels:
            raise DataError(
                f"{table.source} has labels, and the adapter answers with text: give prompt and completion, or messages"
            )
        if table.row.chooses and example.answer not in labels:
            raise DataError(
                f"{table.source}, row {example.row}: the label {example.answer!r} is none that the adapter was "
                f"trained on, which are {', '.join(labels)}{did_you_mean(example.answer, labels)}"
            )


def _label_names(model: PreTrainedModel, table: Table) -> tuple[str, ...]:
    """The label of each output: the config's names, or the table's where the config has none."""
    names = labels_of(model.config)
    if are_placeholders(names) and len(names) == len(table.labels):
        return table.labels
    unknown = [label for label in table.labels if label not in names]
    if unknown:
        raise DataError(f"{table.source} has the label {unknown[0]!r}; the model knows {', '.join(names)}")
    return names
