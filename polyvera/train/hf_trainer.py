"""AdapterTrainer: transformers' Trainer of the trained parameters alone; its checkpoints hold nothing of the base."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerState, TrainingArguments

from polyvera.adapter.bank import Bank
from polyvera.adapter.route import route
from polyvera.adapter.slot_table import BASE_SLOT
from polyvera.data.batching import PARTS, Collator, EpochOrder
from polyvera.data.encoding import Encoded
from polyvera.data.target_tokens import TargetTokens
from polyvera.errors import DivergedError
from polyvera.model.task import NEXT_TOKEN
from polyvera.train import checkpoint
from polyvera.train.budget import orthogonal_weight, orthogonality
from polyvera.train.callbacks import Stateful
from polyvera.train.loss import is_plain_loss, row_losses
from polyvera.train.recipe import Recipe
from polyvera.train.schedule import lr_factor, num_steps
from polyvera.train.trained_numbers import NUM_COMPARED, check_loss, check_numbers

TRAINED = "trained.safetensors"
BESIDE = "beside.safetensors"
NUM_TRIED = (16, 11)  # tokens of rows whose loss is looked at before the first step; the second row is padded


class AdapterTrainer(Trainer):
    """The training loop of one bank of slots (of the bare model in full fine-tuning, where bank is None)."""

    def __init__(
        self,
        recipe: Recipe,
        model: nn.Module,
        bank: Bank | None,
        rows: Encoded,
        held_out: Encoded | None,
        args: TrainingArguments,
        collate: Collator,
        head: set[str],
    ) -> None:
        # transformers' own loss of a language model holds the logits of all tokens. That of a head would take
        # num_items_in_batch and ignore it, which would make the sum of accumulated batches the loss, not their mean.
        self.task, self.num_sequences = rows.task, len(rows[0].get(PARTS, (1,)))
        self.asks_model = self.task.has_own_loss and not _is_plain(model, rows, collate)
        with _adapters_shown(model):
            own_loss = None if self.asks_model else step_loss
            super().__init__(model, args, collate, rows, held_out, compute_loss_func=own_loss)
        self.pop_callback(PrinterCallback)
        self.recipe, self.bank, self.rows, self.head = recipe, bank, rows, head
        self.held_out = () if held_out is None else held_out.rows
        self.beside: list[Stateful] = []
        choice = recipe.budget
        self.orthogonal = 0.0 if choice is None or bank is None else orthogonal_weight(choice, bank)

    def watch(self, callback: TrainerCallback, state: Stateful | None = None) -> None:
        """Adds a callback, and what of it goes into checkpoints."""
        self.add_callback(callback)
        self.beside += [] if state is None else [state]

    def restore(self, at: Path) -> None:
        """Sets the numbers, what is beside them, and the record of the run to those of a checkpoint."""
        self._load_from_checkpoint(str(at))
        self.state = TrainerState.load_from_json(str(at / checkpoint.STATE))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with a learning rate for the vectors or matrices and one for the head."""
        if self.optimizer is None:
            named = checkpoint.trained(model or self.whole)
            groups = [
                {"params": [p for n, p in named.items() if n not in self.head], "lr": self.recipe.learning_rate},
                {"params": [p for n, p in named.items() if n in self.head], "lr": self.recipe.head_learning_rate},
            ]
            self.optimizer = torch.optim.AdamW(
                [g for g in groups if g["params"]], weight_decay=self.recipe.weight_decay
            )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """The recipe's schedule, whichever form of training it is for."""
        if self.lr_scheduler is None:
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = LambdaLR(chosen, lr_factor(self.recipe, num_training_steps))
        return self.lr_scheduler

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The task's loss, with the orthogonality term of the rank budget in training."""
        asked: Any = model if self.asks_model else partial(self._losses, model, inputs["labels"])
        loss, outputs = super().compute_loss(asked, inputs, True, num_items_in_batch)
        if self.orthogonal and self.bank is not None and model.training:
            skew = orthogonality(self.bank)
            loss = loss if skew is None else loss + self.orthogonal * skew / self.current_gradient_accumulation_steps
        return (loss, outputs) if return_outputs else loss

    def _losses(self, model: Any, labels: Tensor, num_items_in_batch: Any = None, **inputs: Tensor) -> Tensor:
        """The loss of each row, in the place of a model's outputs."""
        targets = TargetTokens.of(labels, self.task.predicts)
        return row_losses(model, inputs, targets, self.task, self._one_group(labels))

    def _one_group(self, labels: Tensor) -> Tensor:
        """The rows of a batch as one group."""
        return torch.zeros(len(labels) // self.num_sequences, dtype=torch.long)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        """What the mean loss counts in these batches: labels, or the rows where each has several sequences."""
        if self.task.counts_rows:
            counted = [self._one_group(batch["labels"]) for batch in batch_samples]
        elif self.task.predicts == NEXT_TOKEN:
            counted = [batch["labels"][:, 1:] for batch in batch_samples]
        else:
            return super()._get_num_items_in_batch(batch_samples, device)
        batch_samples = [{"labels": part, "shift_labels": part} for part in counted]
        return super()._get_num_items_in_batch(batch_samples, device)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """One forward and backward. Raises DivergedError where the loss is NaN or infinite."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._check(float(loss), "the loss")
        if self.bank is not None and self.accelerator.sync_gradients:  # all gradients of the step are summed
            self.bank.tie_gradients()
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The mean validation loss: over the target tokens, or what else the task predicts; nats."""
        metrics = {f"{metric_key_prefix}_loss": self._check(self.mean_loss(self.held_out), "the validation loss")}
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def mean_loss(self, rows: Any) -> float:
        """The mean loss of encoded rows, spread over the processes: over all that the task predicts of them; nats."""
        was_training = self.whole.training
        self.whole.eval()
        total = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        with torch.no_grad():
            for inputs in self._share(rows):
                labels = inputs.pop("labels")
                targets = TargetTokens.of(labels, self.task.predicts).to(self.args.device)
                inputs, group = self._prepare_inputs(inputs), self._one_group(labels)
                losses = row_losses(self.whole, inputs, targets, self.task, group)  # type: ignore[arg-type]
                found = [float(losses.sum()), len(losses) if self.task.counts_rows else targets.labels.numel()]
                total += torch.tensor(found, dtype=torch.float64, device=total.device)
        self.whole.train(was_training)
        summed, count = self.accelerator.reduce(total, reduction="sum").tolist()
        return float(summed / count)

    def check_trained(self, losses: Sequence[float], slot: int) -> None:
        """Raises DivergedError for numbers that cannot be kept, and for an adapter that is far worse than the base.

        losses: of each step. slot: of the adapter.
        """
        lr = self.recipe.learning_rate
        check_numbers(checkpoint.trained(self.whole).values(), lr)

        def loss(of: int) -> float:
            with route(of):
                return self.mean_loss(self.rows.rows[:NUM_COMPARED])

        has_base = self.bank is not None and not self.head
        check_loss(losses, partial(loss, slot), partial(loss, BASE_SLOT) if has_base else None, lr)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: the Trainer's estimate walks over all parameters at every step."""
        return 0

    def _share(self, rows: Any) -> Iterator[dict[str, Tensor]]:
        """This process's share of rows in batches, none of them twice."""
        batches = range(0, len(rows), self.recipe.batch_size)
        for first in batches[self.args.process_index :: self.args.world_size]:
            yield self.data_collator(list(rows[first : first + self.recipe.batch_size]))

    @property
    def whole(self) -> nn.Module:
        """The model, which is never None here."""
        assert self.model is not None
        return self.model

    def _check(self, loss: float, what: str) -> float:
        if not isfinite(loss) and self.state.global_step == 0:
            raise DivergedError(
                f"{what} is {loss} before anything was trained: the base's own weights are damaged, or too large for "
                f"{getattr(self.whole, 'dtype', 'its dtype')}; copy or download it again, or give dtype='float32'"
            )
        if not isfinite(loss):
            raise DivergedError(
                f"{what} is {loss} at step {self.state.global_step + 1} with lr={self._get_learning_rate():.3g}: lower "
                f"lr (at its highest it is {self.recipe.learning_rate:g}), raise warmup, or train in float32"
            )
        return loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        lengths = self.rows.lengths if self.recipe.group_by_length else None
        return EpochOrder(len(self.rows), self.recipe.run_seed, lengths, self.recipe.batch_size)

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        here = checkpoint.trained(self.whole)
        checkpoint.write(folder / TRAINED, here if state_dict is None else {k: state_dict[k] for k in here})
        states = {f"{i}.{k}": t for i, part in enumerate(self.beside) for k, t in part.state().items()}
        checkpoint.write(folder / BESIDE, states)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            checkpoint.seal(Path(str(self.args.output_dir)) / f"{checkpoint.PREFIX}{self.state.global_step}")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoint.read_into(Path(resume_from_checkpoint) / TRAINED, model or self.whole)
        states = checkpoint.read(Path(resume_from_checkpoint) / BESIDE)
        for i, part in enumerate(self.beside):
            part.restore({k.partition(".")[2]: t for k, t in states.items() if k.startswith(f"{i}.")})


def _is_plain(model: Any, rows: Encoded, collate: Collator) -> bool:
    """Whether the model's own loss is the mean over target tokens, by the beginnings of two rows."""
    starts = [row["input_ids"][:length] for row, length in zip(rows.rows, NUM_TRIED, strict=False)]
    batch = collate([{"input_ids": ids, "labels": ids} for ids in starts])
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    return is_plain_loss(model, batch, batch.pop("labels"))


@contextmanager
def _adapters_shown(model: Any) -> Iterator[None]:
    """Lets the Trainer take a quantized base, which it does only where it knows of adapters in it."""
    quantized = getattr(model, "is_quantized", False)
    if quantized:
        model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        if quantized:
            del model._hf_peft_config_loaded


def step_loss(losses: Tensor, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
    """The rows' share of the mean over all that an optimizer step counts, or over the rows where that is not known."""
    return losses.sum() / (len(losses) if num_items_in_batch is None else num_items_in_batch)


def arguments(recipe: Recipe, folder: Path, num_rows: int) -> TrainingArguments:
    """The recipe in the Trainer's words."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    epoch, total = num_steps(recipe, num_rows, processes)
    often = min(epoch, total)
    return TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulate,
        max_steps=total,
        learning_rate=recipe.learning_rate,
        max_grad_norm=recipe.clip,
        seed=recipe.run_seed,
        eval_strategy="no" if recipe.validation is None else "steps",
        eval_steps=recipe.eval_every or often,
        save_strategy="no" if recipe.output is None else "steps",
        save_steps=recipe.save_every or often,
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        use_cpu=processes > 1 and not torch.cuda.is_available(),  # else each process would train alone
        disable_tqdm=True,
        report_to=[],
    )


def columns_of(history: Sequence[Mapping[str, Any]], name: str) -> tuple[tuple[int, float], ...]:
    """(step, value) of each record that has the value."""
    return tuple((int(record["step"]), float(record[name])) for record in history if name in record)
