"""The model that is trained, and its tokenizer: a tiny one from nothing, or a pretrained one by name or path.

Invariants
----------
* For one seed and one set of problems a tiny model's tokenizer and first weights are the same.
* The reference policy costs a second copy of the weights only where all of them are trained: with LoRA it is the same
  model with its adapter off.
* A pretrained model speaks ChatML, as Qwen's do, and has an embedding for each token of its tokenizer; another is
  refused by name, before anything is trained.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from eventlog import Turn
from trainer.chat import END, Chat
from trainer.config import Settings
from trainer.errors import SettingsError
from trainer.problems import Problems
from trainer.tasks import Task

# Openings of problems that are not demonstrated, whose words the tokenizer should know too.
MAX_OPENINGS = 2000


def chat_of(settings: Settings, task: Task, problems: Problems, kept: str | None = None) -> Chat:
    """Return the tokenizer of these settings: a pretrained model's, or one that is learnt from the task's texts.

    `kept` is what a checkpoint has of one that was learnt, as JSON.
    """
    if kept:
        return Chat.from_json(kept)
    if settings.model_name:
        return Chat.pretrained(settings.model_name, task.tools)
    demonstrated: Iterator[Sequence[Turn]] = (task.demonstrate(problem) for problem in problems.warmup)
    opened = (task.opening(problem) for problem in itertools.islice(problems.train, MAX_OPENINGS))
    return Chat.learn(
        itertools.chain(demonstrated, opened), settings.vocab_size, split_words=settings.split_words
    )


def model_of(settings: Settings, vocab_size: int) -> Any:
    """Return the model of these settings with its first weights; a tiny one's are drawn from torch's generator.

    A pretrained one may have more embeddings than there are tokens: it is usual to pad them to a round number.
    """
    from trainer.policy.transformers import pretrained, tiny_qwen3

    if settings.model_name:
        model = pretrained(settings.model_name, settings.dtype)
        rows = model.get_input_embeddings().num_embeddings
        if rows < vocab_size:
            raise SettingsError(
                f"the tokenizer of {settings.model_name!r} has {vocab_size} tokens, and its model embeddings for {rows}: "
                "they do not belong together. Give --model-name a directory whose model was resized when tokens were "
                "added, or another model."
            )
        return model
    return tiny_qwen3(
        vocab_size, hidden=settings.hidden, layers=settings.layers, max_tokens=settings.max_length
    )


def with_adapter(settings: Settings, model: Any) -> Any:
    """Return the model with a LoRA adapter that is all that training changes, if the settings ask for one."""
    if not settings.lora_rank:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError:
        raise SettingsError(
            "setting 'lora_rank' needs `peft`, which is not installed. Install `tidelog[trainer]`."
        ) from None
    adapter = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        lora_dropout=0.0,  # the ratio of the loss compares two forward passes of the same weights
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, adapter).eval()


class Reference:
    """The policy before its training, from which the KL is measured."""

    def __init__(self, model: Any) -> None:
        self._adapted = model if hasattr(model, "disable_adapter") else None
        # What a LoRA model starts from is what it is without its adapter, so long as the adapter starts at zero.
        self._copy = None if self._adapted is not None else copy.deepcopy(model).requires_grad_(False)

    @contextlib.contextmanager
    def model(self) -> Iterator[Any]:
        """Lend the model that speaks as the reference."""
        if self._adapted is None:
            yield self._copy
            return
        with self._adapted.disable_adapter():
            yield self._adapted

    def state(self) -> dict[str, Any]:
        return {} if self._copy is None else self._copy.state_dict()

    def restore(self, state: dict[str, Any]) -> None:
        if self._copy is not None:
            self._copy.load_state_dict(state)


def weights_to_keep(settings: Settings, model: Any) -> dict[str, Any]:
    """Return the weights that a checkpoint must hold: all, but what a pretrained model under an adapter is loaded with."""
    state: dict[str, Any] = model.state_dict()
    if settings.model_name and settings.lora_rank:
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        return {name: value for name, value in state.items() if name in trained}
    return state


def restore_weights(settings: Settings, model: Any, weights: Mapping[str, Any]) -> None:
    """Undo `weights_to_keep`."""
    model.load_state_dict(weights, strict=not (settings.model_name and settings.lora_rank))


def save_pretrained(model: Any, chat: Chat, directory: Path) -> None:
    """Write the model as Hugging Face's and vLLM's loaders read it; an adapter is merged into a copy of its base."""
    from transformers import PreTrainedTokenizerFast

    if hasattr(model, "merge_and_unload"):
        model = copy.deepcopy(model).merge_and_unload()
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=chat.tokenizer, eos_token=END, pad_token=chat.tokenizer.id_to_token(chat.pad_id)
    ).save_pretrained(directory)


def count_parameters(model: Any) -> tuple[int, int]:
    """Return how many parameters there are, and how many of them are trained."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trained in sizes if trained)


def device_of(model: Any) -> torch.device:
    device: torch.device = next(model.parameters()).device
    return device
