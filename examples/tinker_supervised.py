"""A café's tickets, learnt call by call with the tinker package, and then sampled on the same server.

pip install "tinker>=0.38,<0.39"
polyvera serve smollm2 --store adapters --train --train-rank 64
TINKER_API_KEY=tml-none python examples/tinker_supervised.py [--url http://127.0.0.1:8000] [--steps 30]
"""

from __future__ import annotations

import argparse
from typing import Any

import tinker
from orders import Order, orders
from tinker import types

QUESTION = "Two large lattes with oat milk and a scone to go"
LEARNING_RATE, BATCH_SIZE = 2e-2, 8  # the vectors of VeRA take larger steps than LoRA's matrices


def prompt_of(tokenizer: Any, said: str) -> list[int]:
    """The tokens of a chat with one message."""
    messages = [{"role": "user", "content": said}]
    found = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return [*found]


def datum_of(tokenizer: Any, order: Order) -> types.Datum:
    """An order of which the ticket is learnt."""
    prompt = prompt_of(tokenizer, order.said)
    tokens = [*prompt, *tokenizer.encode(order.ticket, add_special_tokens=False), tokenizer.eos_token_id]
    weights = [0.0] * (len(prompt) - 1) + [1.0] * (len(tokens) - len(prompt))
    size = [len(weights)]
    inputs = {
        "target_tokens": types.TensorData(data=tokens[1:], dtype="int64", shape=size),
        "weights": types.TensorData(data=weights, dtype="float32", shape=size),
    }
    return types.Datum(model_input=types.ModelInput.from_ints(tokens[:-1]), loss_fn_inputs=inputs)


def main() -> None:
    """Trains, saves, and asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--steps", type=int, default=30)
    given = parser.parse_args()
    # --8<-- [start:client]
    service = tinker.ServiceClient(base_url=given.url)
    client = service.create_lora_training_client("base", rank=32).result()
    tokenizer: Any = client.get_tokenizer()
    rows = [datum_of(tokenizer, order) for order in orders(BATCH_SIZE * given.steps, seed=0)]
    for step in range(given.steps):
        batch = rows[step * BATCH_SIZE : (step + 1) * BATCH_SIZE]
        passed = client.forward_backward(batch, "cross_entropy")
        stepped = client.optim_step(types.AdamParams(learning_rate=LEARNING_RATE, grad_clip_norm=1.0))
        tokens = sum(sum(row.loss_fn_inputs["weights"].data) for row in batch)
        print(f"step {step + 1}: {passed.result().metrics['loss:sum'] / tokens:.3f} nats a token")
        stepped.result()
    sampler = client.save_weights_and_get_sampling_client().result()
    # --8<-- [end:client]
    params = types.SamplingParams(max_tokens=40, temperature=0.0)
    prompt = types.ModelInput.from_ints(prompt_of(tokenizer, QUESTION))
    [sequence] = sampler.sample(prompt, num_samples=1, sampling_params=params).result().sequences
    print(tokenizer.decode(sequence.tokens, skip_special_tokens=True))


if __name__ == "__main__":
    main()
