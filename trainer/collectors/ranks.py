"""What ranks say of themselves: `ddp/*` from every rank, `accelerate/sync_gradients` at each optimiser step.

Strings (`accelerate/device`) are no curves: `launch` puts them into the run's config and summary.
"""

from __future__ import annotations

from collections.abc import Callable

from trainer.collectors import At, Collector, Metrics, UpdateStats


class Accelerate(Collector):
    """Of a training by accelerate: whether the gradient that was stepped on was the sum of all parts and ranks."""

    def __init__(self, sync_gradients: Callable[[], bool]) -> None:
        self._sync_gradients = sync_gradients

    def of_update(self, at: At, update: UpdateStats | None, is_batchs_last: bool) -> Metrics:
        return {} if update is None else {"accelerate/sync_gradients": int(self._sync_gradients())}


class Ranks(Collector):
    """Of a training by several processes: which one this is, in rows of its own."""

    def __init__(self, count: int, index: int, local_index: int, sync_gradients: Callable[[], bool]) -> None:
        self._place = {
            "ddp/num_processes": count,
            "ddp/process_index": index,
            "ddp/local_process_index": local_index,
        }
        self._sync_gradients = sync_gradients

    def of_process(self, at: At) -> Metrics:
        return dict(self._place)

    def of_update(self, at: At, update: UpdateStats | None, is_batchs_last: bool) -> Metrics:
        return {} if update is None else {"ddp/sync_gradients": int(self._sync_gradients())}
