"""The same runs in a peer's own store, asked the same: python -m tests.bench.asking_peers PEER HOME RUNS

A peer's interpreter may have nothing but the peers. Its store is filled as its own importers fill one, which is not measured.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from tests.bench.many_runs import KEYS, LONG_RUNS, config_of, name_of, rows_of

REPEATS = 5
KEY = KEYS[3]
Questions = dict[str, Callable[[list[str]], Any]]


def trackio(home: str, runs: Iterable[int]) -> Questions:
    os.environ["TRACKIO_DIR"] = home
    from trackio.sqlite_storage import SQLiteStorage

    for run in runs:
        rows = list(rows_of(run))
        SQLiteStorage.bulk_log("sweep", name_of(run), rows, list(range(len(rows))), config=config_of(run))

    def curve(run: str) -> list[Any]:
        return [row[KEY] for row in SQLiteStorage.get_logs("sweep", run)]

    return {
        "one curve": lambda some: curve(some[0]),
        "100 curves": lambda some: [curve(run) for run in some],
    }


def tensorboard(home: str, runs: Iterable[int]) -> Questions:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary import Writer

    for run in runs:
        writer = Writer(f"{home}/{name_of(run)}")
        for step, row in enumerate(rows_of(run)):
            for key, value in row.items():
                writer.add_scalar(key, value, step)
        writer.close()

    def curve(run: str) -> list[Any]:
        read = EventAccumulator(f"{home}/{run}", size_guidance={"scalars": 0, "tensors": 0})
        read.Reload()
        return list(read.Tensors(KEY))

    return {
        "one curve": lambda some: curve(some[0]),
        "100 curves": lambda some: [curve(run) for run in some],
    }


def mlflow(home: str, runs: Iterable[int]) -> Questions:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    os.makedirs(home, exist_ok=True)
    client = MlflowClient(f"sqlite:///{home}/mlflow.db")
    experiment = client.create_experiment("sweep")
    ids = {}
    for run in runs:
        run_id = client.create_run(experiment, run_name=name_of(run)).info.run_id
        ids[name_of(run)] = run_id
        metrics = [
            Metric(key, value, step, step)
            for step, row in enumerate(rows_of(run))
            for key, value in row.items()
        ]
        params = [Param(key, str(value)) for key, value in config_of(run).items()]
        for at in range(0, len(metrics), 1000):
            client.log_batch(run_id, metrics[at : at + 1000], params if at == 0 else [])
        client.set_terminated(run_id)

    def curve(run: str) -> list[Any]:
        return list(client.get_metric_history(ids[run], KEY))

    def table() -> list[Any]:
        found, token = [], None
        while True:
            page = client.search_runs([experiment], max_results=1000, page_token=token)
            found += [(run.info.run_name, run.data.params, run.data.metrics) for run in page]
            token = page.token
            if not token:
                return found

    return {
        "one curve": lambda some: curve(some[0]),
        "100 curves": lambda some: [curve(run) for run in some],
        "best run by config": lambda some: client.search_runs(
            [experiment], "params.model = 'a'", order_by=[f"metrics.`{KEYS[0]}` DESC"], max_results=10
        ),
        "summary table": lambda some: table(),
    }


PEERS = {"trackio": trackio, "tensorboard": tensorboard, "mlflow": mlflow}


def main() -> None:
    peer, home, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    # Those of 100 steps: what our side is asked too.
    asked = range(LONG_RUNS, LONG_RUNS + runs)
    questions = PEERS[peer](home, asked)
    draw = random.Random(0)
    ms: dict[str, list[float]] = {}
    for what, ask in questions.items():
        for _ in range(REPEATS):
            some = [name_of(run) for run in draw.sample(asked, min(100, runs))]
            begin_s = time.perf_counter()
            assert ask(some)
            ms.setdefault(what, []).append((time.perf_counter() - begin_s) * 1000)
    print(json.dumps({what: statistics.median(each) for what, each in ms.items()}))


if __name__ == "__main__":
    main()
