"""Sums that are rewarded: a number and nothing beside it, best the right one. GRPO's kind of loop, with tinker.

pip install "tinker>=0.38,<0.39" matplotlib
polyvera serve smollm2 --store adapters --train --train-rank 64
TINKER_API_KEY=tml-none python examples/tinker_reinforcement.py [--log rewards.jsonl] [--picture reward.svg]

Each step samples a group of answers to each of some sums. An answer's advantage is its reward less its group's mean
(Shao 2024, without the division by the deviation), and importance_sampling makes likelier what did better. With --log,
a loop that was broken off goes on from its last saved state.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import tinker
from tinker import types

GROUP, NUM_SUMS, MAX_TOKENS = 8, 3, 8
SYSTEM = "Answer with a number."
LEARNING_RATE, SAVED_EVERY, WINDOW = 3e-2, 2, 5


@dataclass(frozen=True)
class Sum:
    """A question, and the number that answers it."""

    said: str
    total: int


def some_sums(step: int) -> list[Sum]:
    """Those of a step, the same at every call."""
    draw = random.Random(step)
    pairs = [(draw.randint(1, 9), draw.randint(1, 9)) for _ in range(NUM_SUMS)]
    return [Sum(f"What is {a} plus {b}?", a + b) for a, b in pairs]


def reward(text: str, total: int) -> float:
    """1 for the right number alone, half for a wrong one, less the more words stand around it; 0 without any."""
    numbers = re.findall(r"\d+", text)
    return (1.0 if str(total) in numbers else 0.5) / len(text.split()) if numbers else 0.0


def prompt_of(tokenizer: Any, said: str) -> list[int]:
    """The tokens of a question under the system's words."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": said}]
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return [*found]


def datum_of(prompt: Sequence[int], sequence: Any, advantage: float) -> types.Datum:
    """A sampled answer with its log-probabilities; the prompt's have no part in the loss."""
    tokens, before = [*prompt, *sequence.tokens], [0.0] * (len(prompt) - 1)
    size = [len(tokens) - 1]
    inputs = {
        "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=size),
        "logprobs": types.TensorData(data=[*before, *sequence.logprobs], dtype="float32", shape=size),
        "advantages": types.TensorData(
            data=[*before, *[advantage] * len(sequence.tokens)], dtype="float32", shape=size
        ),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def step_of(client: Any, tokenizer: Any, sums: Sequence[Sum]) -> float:
    """Samples, rewards, and makes one optimizer step; the mean reward of what was sampled."""
    sampler = client.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0)
    prompts = [prompt_of(tokenizer, one.said) for one in sums]
    asked = [
        sampler.sample(types.ModelInput.from_ints(one), num_samples=GROUP, sampling_params=params) for one in prompts
    ]
    rows, rewards = [], []
    for one, prompt, answer in zip(sums, prompts, asked, strict=True):
        sequences = answer.result().sequences
        texts = [tokenizer.decode(found.tokens, skip_special_tokens=True) for found in sequences]
        own = [reward(text, one.total) for text in texts]
        rewards += own
        advantages = [found - mean(own) for found in own]
        rows += [datum_of(prompt, found, by) for found, by in zip(sequences, advantages, strict=True) if by]
    if rows:
        client.forward_backward(rows, "importance_sampling")
        client.optim_step(types.AdamParams(learning_rate=LEARNING_RATE, grad_clip_norm=1.0)).result()
    return mean(rewards)


def draw(rewards: Sequence[float], path: Path) -> None:
    """The rewards of all steps, and their mean over the last five."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="mean reward", ylim=(0, 1))
    axes.plot(range(1, len(rewards) + 1), rewards, color="0.7")
    means = [mean(rewards[max(0, i + 1 - WINDOW) : i + 1]) for i in range(len(rewards))]
    axes.plot(range(1, len(rewards) + 1), means)
    figure.savefig(path)


def begun(service: Any, log: Path | None) -> tuple[Any, list[float]]:
    """A client, and the rewards so far: those of a log up to the last state that it names, or none."""
    lines = [] if log is None or not log.exists() else [json.loads(line) for line in log.read_text().splitlines()]
    while lines and lines[-1]["state"] is None:
        lines.pop()
    if not lines:
        return service.create_lora_training_client("base", rank=32).result(), []
    assert log is not None
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    client = service.create_training_client_from_state_with_optimizer(lines[-1]["state"]).result()
    return client, [line["reward"] for line in lines]


def main() -> None:
    """Reinforces, tells the reward of each step, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    client, rewards = begun(tinker.ServiceClient(base_url=given.url), given.log)
    tokenizer: Any = client.get_tokenizer()
    for step in range(len(rewards) + 1, given.steps + 1):
        rewards.append(step_of(client, tokenizer, some_sums(step)))
        print(f"step {step}: mean reward {rewards[-1]:.3f}", flush=True)
        if given.log is not None:
            state = client.save_state(f"step-{step}").result().path if step % SAVED_EVERY == 0 else None
            with given.log.open("a") as file:
                file.write(json.dumps({"step": step, "reward": rewards[-1], "state": state}) + "\n")
    if given.picture is not None:
        draw(rewards, given.picture)


if __name__ == "__main__":
    main()
