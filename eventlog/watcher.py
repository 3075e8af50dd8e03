"""Histograms of a PyTorch model's gradients and parameters, as W&B's client logs them.

    Watcher.watch(model) ── hooks ──▶ every log_freq-th pass ──▶ log({"gradients/<name>": Histogram}, commit=False)

Invariants
----------
* A pass that is not logged costs an increment for each hook, and nothing leaves the device.
* Histograms join the row that is open, and move no step.
* No hook outlives the run, and none fails a training: what cannot be counted is left out.

torch is never imported here: whoever has a model has imported it.  The graph of the model is not stored.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from eventlog.media import Histogram
from eventlog.not_yet import say_once

_BINS = 64
_LOGS = ("gradients", "parameters", "all", None)


class Watcher:
    """The hooks of one run."""

    def __init__(self, log: Callable[[Mapping[str, Histogram]], None]) -> None:
        self._log = log
        # By what is logged: `parameters/` and a prefix, or `gradients/` and a parameter's name.
        self._handles: dict[str, Any] = {}
        self._names: dict[int, list[str]] = {}
        self._models_seen = 0

    def watch(self, models: Any, log: str | None, log_freq: int, idx: int | None, log_graph: bool) -> None:
        """Hook into one model or several, or raise `TypeError` or `ValueError`."""
        if log not in _LOGS:
            raise ValueError(f"log is one of {', '.join(map(repr, _LOGS))}, not {log!r}.")
        listed = list(models) if isinstance(models, (list, tuple)) else [models]
        for model in listed:
            _require_module(model)
        if log_graph:
            say_once("watch(log_graph=True)", "is not done: the graph of the model is not stored.")
        first = self._models_seen if idx is None else idx
        for number, model in enumerate(listed, start=first):
            self._models_seen += 1
            prefix = f"graph_{number}" if number > 0 else ""
            if log in ("parameters", "all"):
                self._watch_parameters(model, prefix, log_freq)
            if log in ("gradients", "all"):
                self._watch_gradients(model, prefix, log_freq)

    def unwatch(self, models: Any = None) -> None:
        """Take the hooks of these models out again, or all."""
        listed = list(models) if isinstance(models, (list, tuple)) else [models]
        keys = [id(model) for model in listed] if models is not None else list(self._names)
        for key in keys:
            if key not in self._names:
                say_once("unwatch()", "found a model that is not watched.")
            for name in self._names.pop(key, []):
                self._handles.pop(name).remove()

    def _watch_parameters(self, model: Any, prefix: str, log_freq: int) -> None:
        is_due = _every(log_freq)

        def after_forward(module: Any, inputs: Any, output: Any) -> None:
            if is_due():
                found = {
                    f"parameters/{prefix}{name}": histogram(parameter.data)
                    for name, parameter in module.named_parameters()
                }
                self._log({key: made for key, made in found.items() if made is not None})

        name = f"parameters/{prefix}"
        self._refuse_twice(name)
        self._handles[name] = model.register_forward_hook(after_forward)
        self._names.setdefault(id(model), []).append(name)

    def _watch_gradients(self, model: Any, prefix: str, log_freq: int) -> None:
        for parameter_name, parameter in model.named_parameters():
            if parameter.requires_grad:
                name = f"gradients/{prefix}{parameter_name}"
                self._refuse_twice(name)
                self._handles[name] = parameter.register_hook(self._after_backward(name, log_freq))
                self._names.setdefault(id(model), []).append(name)

    def _after_backward(self, name: str, log_freq: int) -> Callable[[Any], None]:
        is_due = _every(log_freq)

        def after_backward(gradient: Any) -> None:
            made = histogram(gradient.data) if is_due() else None
            if made is not None:
                self._log({name: made})

        return after_backward

    def _refuse_twice(self, name: str) -> None:
        if name in self._handles:
            raise ValueError(f"{name!r} is watched already: unwatch the model, or give another idx.")


def histogram(tensor: Any) -> Histogram | None:
    """Return the counts of a tensor's finite values in 64 bins, or None if it has none."""
    torch = sys.modules["torch"]
    values = tensor.detach()
    zeros = 0
    if values.is_sparse:
        values = values.cpu().coalesce()
        zeros = values.numel() - values.values().numel()
        values = values.values()
    values = values.reshape(-1)
    # No half-precision type has `histc` everywhere.
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    values = values[torch.isfinite(values)]
    if values.numel() == 0:
        return None
    if values.device.type not in ("cpu", "cuda"):
        values = values.cpu()
    low, high = values.min().item(), values.max().item()
    if zeros:
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        return Histogram(np_histogram=([float(values.numel() + zeros)], [low, high]))
    counts = values.histc(bins=_BINS, min=low, max=high).tolist()
    edges = torch.linspace(low, high, steps=_BINS + 1).tolist()
    if zeros:
        counts[_bin_of_zero(edges)] += zeros
    return Histogram(np_histogram=(counts, edges))


def _bin_of_zero(edges: list[float]) -> int:
    inside = (at for at, edge in enumerate(edges[1:]) if edge > 0)
    return next(inside, len(edges) - 2)


def _every(times: int) -> Callable[[], bool]:
    """Return what says yes each `times`-th time that it is asked."""
    asked = 0

    def is_due() -> bool:
        nonlocal asked
        asked += 1
        if asked < times:
            return False
        asked = 0
        return True

    return is_due


def _require_module(model: Any) -> None:
    torch: Any = sys.modules.get("torch")
    if torch is None or not isinstance(model, torch.nn.Module):
        raise TypeError(f"watch takes a PyTorch model (torch.nn.Module), or a list of them, not {model!r}.")
