"""A tenant's whole way with OpenAI's client: rows are uploaded, a job trains on them, the adapter answers.

polyvera serve smollm2 --store adapters --train --train-rank 64
python examples/fine_tuning.py [--url http://127.0.0.1:8000] [--rows 64]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import time

from openai import OpenAI
from orders import orders

QUESTION = "Two large lattes with oat milk and a scone to go"


def uploaded_rows(num: int) -> bytes:
    """So many orders of a café as conversations: what a guest says, and the ticket that it becomes."""
    made = orders(num, seed=0)
    return "".join(json.dumps({"messages": turns(order.said, order.ticket)}) + "\n" for order in made).encode()


def turns(said: str, ticket: str) -> list[dict[str, str]]:
    """One conversation."""
    return [{"role": "user", "content": said}, {"role": "assistant", "content": ticket}]


def trained(client: OpenAI, rows: bytes) -> str:
    """The name of the adapter that a job makes of the rows."""
    # --8<-- [start:client]
    file = client.files.create(file=("orders.jsonl", io.BytesIO(rows)), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="base",
        training_file=file.id,
        suffix="tickets",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}},
    )
    while job.status in ("queued", "running"):
        time.sleep(1)
        job = client.fine_tuning.jobs.retrieve(job.id)
        print(job.status, client.fine_tuning.jobs.list_events(job.id, limit=1).data[0].message)
    # --8<-- [end:client]
    if job.fine_tuned_model is None:
        raise SystemExit(f"the job {job.status}: {job.error}")
    return job.fine_tuned_model


def main() -> None:
    """Trains, then asks the base and the adapter the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--rows", type=int, default=64)
    given = parser.parse_args()
    client = OpenAI(base_url=f"{given.url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
    for model in ("base", trained(client, uploaded_rows(given.rows))):
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": QUESTION}], max_tokens=40, temperature=0
        )
        print(f"{model}: {answer.choices[0].message.content}")


if __name__ == "__main__":
    main()
