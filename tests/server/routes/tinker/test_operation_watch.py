"""Who waits for an answer is woken when it is there, once for all who wait."""

import asyncio
import time

from some_runs import opened, run_of

from polyvera.jobs.operation_queue import OperationQueue, RunAnswer
from polyvera.server.routes.tinker.operation_watch import OperationWatch


def test_those_who_wait_are_woken_when_the_answer_is_there(tmp_path):
    tuning = opened(tmp_path)
    run, queue = run_of(tuning), OperationQueue(tuning.database)

    async def waited():
        watch = OperationWatch(tuning.operations, tuning.database.path)
        begun = time.monotonic()
        await watch.wait(f"{run}:0", 0.05)
        assert time.monotonic() - begun >= 0.05
        waiting = [asyncio.create_task(watch.wait(f"{run}:0", 60.0)) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert not any(task.done() for task in waiting)
        await asyncio.to_thread(queue.record, [RunAnswer(run, 0, {})])
        await asyncio.wait_for(asyncio.gather(*waiting), 30.0)
        await asyncio.wait_for(watch.wait(f"{run}:0", 60.0), 30.0)

    asyncio.run(waited())
