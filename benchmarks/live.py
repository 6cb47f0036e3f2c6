"""Training as a service: a real `polyvera serve --train`, and the tinker package as its clients.

    pip install "tinker>=0.38,<0.39"
    TINKER_API_KEY=tml-none TINKER_TELEMETRY=0 python benchmarks/live.py [--only clients runs parking gaps]

clients   32 clients at once, each forward_backward of 2 rows of 64 tokens and optim_step, against the same clients one
          after another (bar 1.5), and against `train --fleet` of the same rows in one process (bar 0.9)
runs      1,000 runs open at once on 32 slots, two steps each; some of them against the same calls made alone (1e-4)
parking   one VeRA run (q,v, rank 256) out of its slot and back (bar 20 ms)
gaps      the p99 gap between tokens under --train-share 0.3 beside a busy trainer, against an idle one (bar 2)
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from threading import Thread
from typing import Any

import httpx
import numpy as np
from server_process import serving

from polyvera.adapter.inject import inject
from polyvera.adapter.spec import AdapterSpec
from polyvera.model.load import Base, load_base
from polyvera.train.fleet.moments import SlotMoments
from polyvera.train.fleet.train_fleet import train_fleet
from polyvera.train.live.run_state import ParkedRuns, RunState
from polyvera.train.live.slot_runs import LiveRun, SlotRuns
from polyvera.train.recipe import Recipe
from polyvera.train.tenants import Tenant, TenantRows

NUM_CLIENTS, NUM_ROWS, LENGTH = 32, 2, 64
NUM_RUNS, SHORT, NUM_SAMPLES = 1000, 8, 8
RANK, QV = 256, ("q_proj", "v_proj")
STREAMS, GAP_S, NUM_BUSY = 4, 60.0, 8
LEARNING_RATE = 0.01


def main() -> None:
    """Runs the parts that were asked for."""
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--model", default="smollm2")
    args.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args.add_argument("--turns", type=int, default=2)
    args.add_argument("--rounds", type=int, default=2)
    args.add_argument("--in-turn", type=int, default=NUM_CLIENTS)
    args.add_argument("--runs", type=int, default=NUM_RUNS)
    args.add_argument("--seconds", type=float, default=GAP_S)
    given = args.parse_args()
    for part in given.only:
        PARTS[part](given)


@contextmanager
def training(model: str, *flags: str) -> Iterator[str]:
    """The URL of a server that trains."""
    with tempfile.TemporaryDirectory() as folder:
        own = ("--train", "--train-folder", f"{folder}/training", "--train-rank", str(RANK))
        with serving(model, Path(folder), *own, *flags) as server:
            yield server.url


# --- clients ---


def clients(url: str, num: int) -> list[Any]:
    """So many training clients of tinker's, each with a session of its own."""
    import tinker

    made = [tinker.ServiceClient(base_url=url).create_lora_training_client("base", rank=RANK) for _ in range(num)]
    return [one.result() for one in made]


def drawn(number: int, num_rows: int, length: int) -> list[list[int]]:
    """Random tokens, the same at every call."""
    return np.random.RandomState(number).randint(100, 40_000, (num_rows, length)).tolist()


def datums(rows: Sequence[Sequence[int]]) -> list[Any]:
    """Rows of which every token but the first is learnt, with the weight that makes the sum their mean."""
    from tinker import types

    count = sum(len(row) - 1 for row in rows)
    found = []
    for row in rows:
        targets, weights = [*row[1:], 0], [1 / count] * (len(row) - 1) + [0.0]
        inputs = {
            "target_tokens": types.TensorData(data=targets, dtype="int64", shape=[len(row)]),
            "weights": types.TensorData(data=weights, dtype="float32", shape=[len(row)]),
        }
        found.append(types.Datum(model_input=types.ModelInput.from_ints([*row]), loss_fn_inputs=inputs))
    return found


def asked(client: Any, data: list[Any]) -> list[Any]:
    """The futures of one pass and one step."""
    from tinker import types

    step = types.AdamParams(learning_rate=LEARNING_RATE, beta2=0.999, eps=1e-8, grad_clip_norm=1.0)
    return [client.forward_backward(data, "cross_entropy"), client.optim_step(step)]


def at_once(several: Sequence[Any], data: Sequence[list[Any]], turns: int) -> float:
    """Seconds until each has made so many turns, every one waiting for its own answers alone."""

    def loop(client: Any, own: list[Any]) -> None:
        for _ in range(turns):
            for future in asked(client, own):
                future.result()

    threads = [Thread(target=loop, args=pair) for pair in zip(several, data, strict=True)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.monotonic() - started


def in_turn(several: Sequence[Any], data: Sequence[list[Any]]) -> float:
    """Seconds until each has made a turn, one client after another."""
    started = time.monotonic()
    for client, own in zip(several, data, strict=True):
        for future in asked(client, own):
            future.result()
    return time.monotonic() - started


def part_clients(given: argparse.Namespace) -> None:
    """The same rows three times: by a fleet, by clients at once, by clients in turn."""
    base = load_base(given.model)
    fleet = fleet_rate(base, given.turns)
    rows = [drawn(i, NUM_ROWS, LENGTH) for i in range(NUM_CLIENTS)]
    tokens = NUM_CLIENTS * NUM_ROWS * LENGTH
    data = [datums(own) for own in rows]
    with training(given.model) as url:
        several = clients(url, NUM_CLIENTS)
        in_turn(several[:2], data[:2])
        slow, quick = [], []
        for _ in range(given.rounds):
            quick.append(given.turns * tokens / at_once(several, data, given.turns))
            few = given.in_turn
            slow.append(few * NUM_ROWS * LENGTH / in_turn(several[:few], data[:few]))
    own = median(quick)
    print(f"clients: {own:.1f} tokens/s at once {_all(quick)}, {median(slow):.1f} in turn {_all(slow)}, {fleet:.1f} as")
    print(
        f"  a fleet: {own / median(slow):.2f} x in turn (bar 1.5), {own / fleet:.2f} x the fleet (bar 0.9)", flush=True
    )


def _all(values: Sequence[float]) -> str:
    return f"({', '.join(f'{value:.1f}' for value in values)})"


def fleet_rate(base: Base, turns: int) -> float:
    """Tokens a second of `train --fleet` with rows of the same length, of which as much is learnt."""
    recipe = Recipe(
        model="in memory",
        data="in memory",
        fleet=True,
        rank=RANK,
        slots=NUM_CLIENTS,
        batch_size=NUM_ROWS,
        lr=LEARNING_RATE,
        max_steps=turns,
    )
    rows = [{"text": _text(base, i)} for i in range(NUM_ROWS)]
    everyone = [
        Tenant(f"t{i:02}", TenantRows(f"t{i:02}", tuple((k + 1, row) for k, row in enumerate(rows))))
        for i in range(NUM_CLIENTS)
    ]
    result = train_fleet(recipe, everyone=everyone, base=base, tell=lambda line: None)
    traffic = result.traffic
    print(f"fleet: {traffic.tokens} tokens in {traffic.batches} batches, {traffic.seconds:.1f} s", flush=True)
    return traffic.tokens_per_s


def _text(base: Base, number: int) -> str:
    """A text of LENGTH tokens with the one that ends it."""
    words = [" the", " sea", " is", " blue", " and", " red"][number:] * LENGTH
    return str(base.tokenizer.decode(base.tokenizer("".join(words)).input_ids[: LENGTH - 1]))


# --- runs ---


def part_runs(given: argparse.Namespace) -> None:
    """Many runs of one session, and some of them again, each alone."""
    import tinker

    data = [[datums(drawn(10_000 * turn + i, 1, SHORT)) for i in range(given.runs)] for turn in range(2)]
    probe = datums(drawn(1, 1, SHORT))
    with training(given.model, "--train-slots", "32", "--max-connections", "8192") as url:
        service = tinker.ServiceClient(base_url=url)
        started = time.monotonic()
        made = [service.create_lora_training_client("base", rank=RANK) for _ in range(given.runs)]
        several = [one.result() for one in made]
        opened = time.monotonic()
        for own in data:
            waits = [future for pair in zip(several, own, strict=True) for future in asked(*pair)]
            for future in waits:
                future.result()
        ended = time.monotonic()
        chosen = [i * given.runs // NUM_SAMPLES for i in range(NUM_SAMPLES)]
        together = [_logprobs(several[i], probe) for i in chosen]
        alone = [_alone(service, [own[i] for own in data], probe) for i in chosen]
    gap = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(together, alone, strict=True))
    moved = float(np.abs(together[0] - together[1]).max() / np.abs(together[0]).max())
    print(f"runs: {given.runs} opened in {opened - started:.1f} s, two steps each in {ended - opened:.1f} s;")
    print(f"  {NUM_SAMPLES} of them against the same calls alone: {gap:.1e} of the largest log-probability (bar 1e-4)")
    print(f"  two of them differ from each other by {moved:.1e}", flush=True)


def _logprobs(client: Any, data: list[Any]) -> Any:
    return np.asarray(client.forward(data, "cross_entropy").result().loss_fn_outputs[0]["logprobs"].data)


def _alone(service: Any, turns: Sequence[list[Any]], probe: list[Any]) -> Any:
    client = service.create_lora_training_client("base", rank=RANK).result()
    for own in turns:
        for future in asked(client, own):
            future.result()
    return _logprobs(client, probe)


# --- parking ---


def part_parking(given: argparse.Namespace) -> None:
    """Two runs that take turns in one slot: out of memory, and from disk."""
    base = load_base(given.model)
    bank = inject(base.model, AdapterSpec(rank=RANK, targets=QV), 1)
    moments = SlotMoments(bank)
    for tensor in (moments.grads, moments.exp_avg, moments.exp_avg_sq):
        tensor.normal_()
    state = RunState.of_slot(moments, 0)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "memory": _turns(moments, ParkedRuns(None, 1), state),
            "disk": _turns(moments, ParkedRuns(Path(folder), 1), state),
        }
    said = ", ".join(
        f"{name} {1000 * median(times):.2f} ms, at most {1000 * max(times):.2f}" for name, times in found.items()
    )
    print(f"parking: one run of {state.num_bytes:,} bytes out and another back: {said} (bar 20 ms)", flush=True)


def _turns(moments: SlotMoments, parked: ParkedRuns, state: RunState) -> list[float]:
    slots, runs = SlotRuns(moments, parked), [LiveRun("a"), LiveRun("b"), LiveRun("c")]
    for run in runs:
        parked.put(run.name, state)
    times = []
    for number in range(300):
        run = runs[number % len(runs)]
        started = time.perf_counter()
        slots.seat(run, [run])
        times.append(time.perf_counter() - started)
    return times[len(runs) :]


# --- gaps ---


def part_gaps(given: argparse.Namespace) -> None:
    """Streamed answers, while nobody trains and while many do."""
    with training(given.model, "--train-share", "0.3") as url:
        gaps(url, 5.0)
        idle = gaps(url, given.seconds)
        process = get_context("spawn").Process(target=_keep_busy, args=(url,), daemon=True)
        process.start()
        _wait_busy(url)
        before, started = _passes(url), time.monotonic()
        busy = gaps(url, given.seconds)
        trained = (_passes(url) - before) * NUM_ROWS * LENGTH / (time.monotonic() - started)
        process.kill()
        process.join()
    quantiles = {name: np.quantile(found, (0.5, 0.9, 0.99)) * 1000 for name, found in (("idle", idle), ("busy", busy))}
    for name, (half, most, last) in quantiles.items():
        print(f"gaps: beside an {name} trainer p50 {half:.1f} ms, p90 {most:.1f}, p99 {last:.1f}")
    ratio = quantiles["busy"][2] / quantiles["idle"][2]
    print(f"  {ratio:.2f} x (bar 2), {trained:.1f} tokens/s trained meanwhile", flush=True)


def gaps(url: str, seconds: float) -> list[float]:
    """The seconds between two tokens, of some answers that are streamed at once."""
    found: list[float] = []
    ends = time.monotonic() + seconds
    threads = [Thread(target=_stream, args=(url, ends, found)) for _ in range(STREAMS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def _stream(url: str, ends: float, found: list[float]) -> None:
    body = {"model": "base", "prompt": "The sea is", "max_tokens": 120, "ignore_eos": True, "stream": True}
    with httpx.Client(timeout=120) as http:
        while time.monotonic() < ends:
            ticks = []
            with http.stream("POST", f"{url}/v1/completions", json=body) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["text"]:
                        ticks.append(time.monotonic())
            found += np.diff(ticks).tolist()


def _keep_busy(url: str) -> None:
    several = clients(url, NUM_BUSY)
    at_once(several, [datums(drawn(i, NUM_ROWS, LENGTH)) for i in range(NUM_BUSY)], 10_000)


def _passes(url: str) -> int:
    """How many passes have been made."""
    return sum(one["step"] for one in httpx.get(f"{url}/v1/fine_tuning/curves?limit=100").json()["data"])


def _wait_busy(url: str) -> None:
    """Until the first passes of so many clients are under way."""
    while len(httpx.get(f"{url}/api/v1/training_runs").json()["training_runs"]) < NUM_BUSY:
        time.sleep(1.0)
    time.sleep(5.0)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "clients": part_clients,
    "runs": part_runs,
    "parking": part_parking,
    "gaps": part_gaps,
}

if __name__ == "__main__":
    main()
