"""A form that is rewarded: answers of words without the letter e. A loop of GRPO's kind with the tinker package.

pip install "tinker>=0.38,<0.39" matplotlib
polyvera serve smollm2 --store adapters --train --train-rank 64
TINKER_API_KEY=tml-none python examples/tinker_reinforcement.py [--steps 30] [--picture reward.svg]

Each step samples a group of answers to each of some questions. An answer's advantage is its reward less its group's
mean (Shao 2024, without the division by the deviation), and importance_sampling makes likelier what did better.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean as mean
from typing import Any

import tinker
from tinker import types
from tinker_supervised import prompt_of

QUESTIONS = tuple(
    f"{ask} {thing}?"
    for ask in ("What is", "Why do people like", "How would you describe", "Where do we find")
    for thing in ("bread", "rain", "the sea", "music", "a bicycle", "winter", "chess", "a forest", "tea", "the moon")
)
GROUP, NUM_QUESTIONS, MAX_TOKENS = 8, 4, 24
LEARNING_RATE = 2e-2


def reward(text: str) -> float:
    """The share of words without an e; nothing for an answer without any words."""
    words = text.lower().split()
    return mean("e" not in word for word in words) if words else 0.0


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


def step_of(client: Any, tokenizer: Any, questions: Sequence[str]) -> float:
    """Samples, rewards, and makes one optimizer step; the mean reward of what was sampled."""
    sampler = client.save_weights_and_get_sampling_client().result()
    params = types.SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0)
    prompts = [prompt_of(tokenizer, question) for question in questions]
    asked = [
        sampler.sample(types.ModelInput.from_ints(one), num_samples=GROUP, sampling_params=params) for one in prompts
    ]
    rows, rewards = [], []
    for prompt, answer in zip(prompts, asked, strict=True):
        sequences = answer.result().sequences
        texts = [tokenizer.decode(one.tokens, skip_special_tokens=True) for one in sequences]
        own = [reward(text) for text in texts]
        rewards += own
        advantages = [one - mean(own) for one in own]
        rows += [datum_of(prompt, one, by) for one, by in zip(sequences, advantages, strict=True) if by]
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
    axes.plot(range(1, len(rewards) + 1), [mean(rewards[max(0, i - 4) : i + 1]) for i in range(len(rewards))])
    figure.savefig(path)


def main() -> None:
    """Reinforces, tells the reward of each step, and draws it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    client = tinker.ServiceClient(base_url=given.url).create_lora_training_client("base", rank=32).result()
    tokenizer: Any = client.get_tokenizer()
    drawing, rewards = random.Random(0), list[float]()
    for step in range(given.steps):
        rewards.append(step_of(client, tokenizer, drawing.sample(QUESTIONS, NUM_QUESTIONS)))
        print(f"step {step + 1}: mean reward {rewards[-1]:.3f}", flush=True)
    if given.picture is not None:
        draw(rewards, given.picture)


if __name__ == "__main__":
    main()
