"""Of what a config is made: a mapping, a dataclass, flags or a YAML file; and in which order several of them count.

    config-defaults.yaml  <  init(config=…)  <  WANDB_CONFIG_PATHS  <  the sweep's parameters

Invariants
----------
* What is no config raises before anything has happened.
* A file that was asked for and cannot be taken raises; `config-defaults.yaml` may be missing.
* Values become what W&B makes of them: an enum its name, a function its full name, a set or deque a list.  A value
  without a word in JSON stays, whatever its own code does, and the log marks it.

PyYAML is imported by the function that reads a file; it comes with W&B's client, and with most trainers.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from eventlog.errors import ConfigError, UsageError

DEFAULTS_FILE = "config-defaults.yaml"
# A value of W&B's files stands under this key, beside a description.
_VALUE = "value"
_VERSION_KEY = "wandb_version"
# A longer range or sequence is no list that anybody meant: it stays what it is, and the log has a text.
_LIST_MAX = 1_000_000


def as_config(values: Any) -> dict[str, Any]:
    """Return the config that a mapping, a dataclass, flags or the path of a YAML file stand for, or raise `TypeError`."""
    if values is None:
        return {}
    if isinstance(values, (str, Path)):
        items: Mapping[Any, Any] = config_file(Path(values))
    elif isinstance(values, Mapping):
        items = values
    elif dataclasses.is_dataclass(values) and not isinstance(values, type):
        items = dataclasses.asdict(values)
    elif hasattr(values, "flag_values_dict") or hasattr(getattr(values, "FLAGS", None), "flag_values_dict"):
        items = getattr(values, "FLAGS", values).flag_values_dict()
    elif hasattr(values, "__dict__") and not isinstance(values, type):
        items = {key: value for key, value in vars(values).items() if not key.startswith("_")}
    else:
        try:
            items = dict(values)
        except (TypeError, ValueError):
            raise TypeError(
                f"a config is a dict, a dataclass, an argparse.Namespace or the path of a YAML file, not {values!r}."
            ) from None
    # W&B takes the dashes of a flag off its name.
    return {str(key).strip("-"): friendly(value) for key, value in items.items()}


def chosen(
    config: dict[str, Any], include: Iterable[str] | None = None, exclude: Iterable[str] | None = None
) -> dict[str, Any]:
    """Return the keys of `config` that are wanted.

    >>> chosen({"lr": 1, "seed": 2}, exclude=["seed"])
    {'lr': 1}
    """
    if include and exclude:
        raise UsageError("give config_include_keys or config_exclude_keys, not both.")
    wanted, unwanted = list(include or config), set(exclude or ())
    return {key: value for key, value in config.items() if key in wanted and key not in unwanted}


def layered(
    given: Mapping[str, Any], paths: Iterable[str] = (), sweep_path: str | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return the config of all layers, and which of its keys a sweep has set."""
    defaults = Path(DEFAULTS_FILE)
    config = as_config(defaults) if defaults.is_file() else {}
    config |= given
    for path in paths:
        config |= as_config(path)
    sweep = as_config(sweep_path) if sweep_path else {}
    for key, value in sweep.items():
        config[key] = merged(config.get(key), value)
    return config, list(sweep)


def config_file(path: Path) -> dict[str, Any]:
    """Return what a YAML file says, in W&B's form (`lr: {value: 0.1}`) or plainly (`lr: 0.1`)."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no config file {str(path)!r}. Give its path, or a dict.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {str(path)!r} cannot be read: {error}") from None
    found = _parsed(text, path)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise ConfigError(f"the config file {str(path)!r} holds no `key: value` lines.")
    if found.pop(_VERSION_KEY, 1) != 1:
        raise ConfigError(f"the config file {str(path)!r} has a {_VERSION_KEY} that is not 1.")
    return {
        str(key): value[_VALUE] if isinstance(value, dict) and _VALUE in value else value
        for key, value in found.items()
        # W&B's own block, in the config.yaml that it makes of a run.
        if key != "_wandb"
    }


def friendly(value: Any) -> Any:
    """Return a value as W&B keeps it in a config; a container as a copy.

    >>> friendly({"shape": (1, 2), "f": print, "when": slice(1)})
    {'shape': [1, 2], 'f': 'builtins.print', 'when': {'slice_start': None, 'slice_step': None, 'slice_stop': 1}}
    """
    try:
        return _friendly(value)
    except RecursionError:
        # It holds itself: the log marks that.
        return value


def _friendly(value: Any) -> Any:
    try:
        return _in_words(value)
    except RecursionError:
        raise
    except Exception:  # noqa: BLE001 - a stranger's own code runs here; whatever it does, the config is kept
        return value


def _in_words(value: Any) -> Any:
    if value is None or (isinstance(value, (str, bool, int, float)) and not isinstance(value, enum.Enum)):
        return value
    if isinstance(value, Mapping):
        return {key: _friendly(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, (list, tuple, set, frozenset)) or _is_list_of_another_kind(value):
        return [_friendly(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, slice):
        return {"slice_start": value.start, "slice_step": value.step, "slice_stop": value.stop}
    if hasattr(value, "isoformat"):
        return value.isoformat()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _friendly(dataclasses.asdict(value))
    if callable(value) and hasattr(value, "__qualname__"):
        return f"{value.__module__}.{value.__qualname__}"
    return _number_or_list(value)


def _is_list_of_another_kind(value: Any) -> bool:
    return isinstance(value, (Sequence, Set)) and len(value) <= _LIST_MAX


def copied(value: Any) -> Any:
    """Return a copy of the dicts and lists in a value, and what they hold as it is: not all that can be held has a copy."""
    try:
        return _copied(value)
    except RecursionError:
        # It holds itself.
        return value


def _copied(value: Any) -> Any:
    if type(value) is dict:
        # Listed in one go, because another thread may change it meanwhile.
        return {key: _copied(item) for key, item in list(value.items())}
    if type(value) is list:
        return [_copied(item) for item in value]
    return value


def merged(there: Any, value: Any) -> Any:
    """Return `value`; of two dicts, both, grown together."""
    if not isinstance(there, dict) or not isinstance(value, dict):
        return value
    return {**there, **{key: merged(there.get(key), item) for key, item in value.items()}}


def _number_or_list(value: Any) -> Any:
    """Return what a NumPy or torch value holds; anything else as it is, for the log to store as a text."""
    torch, numpy = sys.modules.get("torch"), sys.modules.get("numpy")
    if torch is not None and isinstance(value, torch.Tensor):
        return value.item() if value.numel() == 1 else value.detach().cpu().tolist()
    if numpy is not None and isinstance(value, numpy.generic):
        return value.item()
    if numpy is not None and isinstance(value, numpy.ndarray):
        return value.item() if value.size == 1 else value.tolist()
    return value


def _parsed(text: str, path: Path) -> Any:
    try:
        yaml: Any = importlib.import_module("yaml")
    except ImportError:
        raise ConfigError(
            f"reading the config file {str(path)!r} needs PyYAML: `pip install pyyaml`, or give a dict."
        ) from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the config file {str(path)!r} is no YAML: {error}") from None
