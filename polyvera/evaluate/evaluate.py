"""evaluate: how well a model with its adapters answers the rows of a table, beside the best constant answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import exp
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F

from polyvera.adapter.route import route
from polyvera.data.batching import Collator
from polyvera.data.encoding import IGNORED, Encoded, encode
from polyvera.data.tables import Example, Table
from polyvera.data.target_tokens import TargetTokens, target_logits
from polyvera.errors import DataError
from polyvera.evaluate.generate import RowSlots, generate, row_slots
from polyvera.model.config import LABEL, are_placeholders, context_length, labels_of, pad_token, vocabulary_size
from polyvera.model.inference import by_length, evaluating
from polyvera.model.prompt import bare_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MANY = 4  # rows for each distinct answer, on average, where answering is choosing


@dataclass(frozen=True, slots=True)
class TokenCount:
    """Of one row's answer: the summed loss in nats, the tokens that the model would have put first, all tokens."""

    loss: float
    right: int
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """Each row's slot and answer, and for generated answers its token counts; `scores` sums them up."""

    kind: str
    examples: tuple[Example, ...]
    slots: tuple[int, ...]
    answers: tuple[str, ...]
    counts: tuple[TokenCount, ...] = ()

    @property
    def scores(self) -> dict[str, float]:
        """Named results over all rows.

        Classes: accuracy, macro_f1. Answers: exact_match (stripped, case kept, any right answer counts), rouge_l
        where rouge-score is installed, bleu (0 to 100) where sacrebleu is, macro_f1 where few answers come often.
        Tokens: token_accuracy, loss in nats, perplexity. majority: the share of rows that the best constant answer
        gets right.
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
        if self.kind == LABEL:
            truth = [example.answer for example in examples]
            return {
                "accuracy": _share(a == t for a, t in zip(answers, truth, strict=True)),
                "macro_f1": macro_f1(truth, answers),
                "majority": majority(examples),
            }
        scores = _token_scores([self.counts[i] for i in rows])
        if answers:
            scores["exact_match"] = _share(is_right(a, e) for a, e in zip(answers, examples, strict=True))
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
) -> Evaluation:
    """Answers every row greedily, rows of several adapters in one batch.

    model, tokenizer: with or without adapters in it; a classifier for rows with labels.
    table: N rows, as polyvera.data.tables.read() gives them.
    slots: a slot or its name for all, or N of them; None is the model's only adapter, or the base.
    max_new_tokens: of a generated answer; None is as many as the longest right answer has.
    batch_size: rows in one batch.

    Raises DataError for a row that the model cannot read whole, SlotError for an unknown slot.
    """
    chosen = row_slots(model, slots, len(table))
    rows, longest = measured(model, tokenizer, table)
    collate = Collator(pad_token(model, tokenizer))
    if max_new_tokens is not None and (table.kind == LABEL or not all(e.prompt for e in table.examples)):
        raise DataError(f"max_new_tokens={max_new_tokens} has no effect: the rows of {table.source} have no prompts")
    if table.kind == LABEL:
        names = _label_names(model, table)
        answers = tuple(names[i] for i in _classes(model, rows, chosen, collate, batch_size))
        return Evaluation(table.kind, table.examples, tuple(chosen), answers)
    counts = _counts(model, rows, chosen, collate, batch_size)
    prompts = [example.prompt for example in table.examples]
    texts: list[str] = []
    if all(prompts):
        texts = generate(
            model, tokenizer, prompts, slots=chosen, max_new_tokens=max_new_tokens or longest, batch_size=batch_size
        )
    return Evaluation(table.kind, table.examples, tuple(chosen), tuple(texts), tuple(counts))


def measured(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, table: Table) -> tuple[Encoded, int]:
    """(the rows in tokens, the tokens of the longest right answer and its end). Raises DataError for too long a row."""
    limit = context_length(model, tokenizer)
    rows = encode(table, tokenizer, limit, num_tokens=vocabulary_size(model))
    if table.kind == LABEL or not all(example.prompt for example in table.examples):
        return rows, 0
    longest = 1 + max(len(bare_ids(tokenizer, right)) for e in table.examples for right in e.right)
    if limit is not None and (rows.shortened or max(_num_read(r["labels"]) for r in rows.rows) + longest > limit):
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


def majority(examples: Sequence[Example]) -> float:
    """The share of rows that the best constant answer gets right."""
    votes = Counter(right for example in examples for right in {r.strip() for r in example.right})
    return votes.most_common(1)[0][1] / len(examples)


def macro_f1(truth: Sequence[str], answers: Sequence[str]) -> float:
    """The mean F1 of the classes that occur among the truths or the answers."""
    classes = sorted({*truth, *answers})
    pairs, given, wanted = Counter(zip(truth, answers, strict=True)), Counter(answers), Counter(truth)
    return sum(2 * pairs[c, c] / (given[c] + wanted[c]) for c in classes) / len(classes)


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


def _share(hits: Iterable[bool]) -> float:
    found = list(hits)
    return sum(found) / len(found)


def _token_scores(counts: Sequence[TokenCount]) -> dict[str, float]:
    tokens = sum(count.tokens for count in counts)
    loss = sum(count.loss for count in counts) / tokens
    return {
        "token_accuracy": sum(count.right for count in counts) / tokens,
        "loss": loss,
        "perplexity": exp(min(loss, 700.0)),
    }


def _classes(
    model: PreTrainedModel, rows: Encoded, slots: Sequence[int], collate: Collator, batch_size: int
) -> list[int]:
    classes = [0] * len(rows)
    for batch, logits, _ in _forwards(model, rows, slots, collate, batch_size):
        for i, best in zip(batch, logits.argmax(-1).tolist(), strict=True):
            classes[i] = best
    return classes


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
            targets = TargetTokens.of(inputs.pop("labels")).to(model.device)
            with route([slots[i] for i in batch]):
                logits = target_logits(model, {k: t.to(model.device) for k, t in inputs.items()}, targets)
            yield batch, logits, targets


def _label_names(model: PreTrainedModel, table: Table) -> tuple[str, ...]:
    """The label of each output: the config's names, or the table's where the config has none."""
    names = labels_of(model.config)
    if are_placeholders(names) and len(names) == len(table.labels):
        return table.labels
    unknown = [label for label in table.labels if label not in names]
    if unknown:
        raise DataError(f"{table.source} has the label {unknown[0]!r}; the model knows {', '.join(names)}")
    return names
