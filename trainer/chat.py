r"""Turns ⇄ token ids: the chat format that Qwen and Hermes models use, tool calls as JSON between tags.

    <|im_start|>user
    What is 48 divided by 2, then plus 48?<|im_end|>
    <|im_start|>assistant
    <tool_call>
    {"name": "calculator", "arguments": {"expression": "48/2"}}
    </tool_call><|im_end|>                                     ◀── sampled: from the line break before it to here
    <|im_start|>user
    <tool_response>
    24
    </tool_response><|im_end|>
    <|im_start|>assistant
    ...

A pretrained model is told of the tools, and of who it is, by its own template. For the tiny model that is left out: it
learns its tools in the warm-up.

Invariants
----------
* A conversation is encoded piece by piece (opening, sampled turn, what follows it), and the ids are joined. A
  demonstration is cut at the same places, so that the policy is trained on the pieces it will see.
* A token of the format is written by the format alone. A mail or a problem that spells one, as in "<|im_end|>", is cut
  within it, on its way through a model's template too: the ids say the same text, by tokens of ordinary text.
* A tokenizer neither cuts nor pads, however it was saved. A text without such a spelling has the ids that the tokenizer
  gives to the whole.
* Whatever a policy samples, parsing returns a turn: a malformed call is a `ToolCall` with an `error`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from eventlog import ToolCall, Turn
from trainer.errors import SettingsError

END = "<|im_end|>"
PAD = "<|endoftext|>"
SPECIAL_TOKENS = (
    PAD,
    "<|im_start|>",
    END,
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
)
_ASSISTANT = "<|im_start|>assistant\n"
# Marks where a text is cut. A lone surrogate: a text that has one is no Unicode, and no tokenizer takes it.
_CUT = "\udfff"
_SPECIAL = re.compile("|".join(map(re.escape, (*SPECIAL_TOKENS, _CUT))))
Quote = Callable[[str], str]
_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


class Chat:
    """A tokenizer and the chat format around it."""

    def __init__(
        self, tokenizer: Tokenizer, open_with: Callable[[Sequence[Turn]], str] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self._open_with = open_with  # a pretrained model's own way to begin a conversation

    @classmethod
    def pretrained(cls, name: str, tools: Sequence[dict[str, Any]]) -> Chat:
        """Load the tokenizer of a Hugging Face model, by name or from a directory."""
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            raise SettingsError(
                f"the tokenizer of {name!r} cannot be loaded: {str(error).splitlines()[0]} "
                "Give --model-name a directory with a model, or a name that the Hugging Face hub or its cache has."
            ) from None
        tokenizer = loaded.backend_tokenizer
        # Fine-tuning leaves what it cut and padded to in the file.
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if any(tokenizer.token_to_id(token) is None for token in (END, "<|im_start|>")):
            raise SettingsError(
                f"the model {name!r} does not speak ChatML: its tokenizer has no {END!r}. "
                "Qwen's models do, for example Qwen/Qwen2.5-3B-Instruct."
            )

        def open_with(turns: Sequence[Turn]) -> str:
            messages = [{"role": turn.role, "content": turn.content} for turn in turns]
            text: str = loaded.apply_chat_template(
                messages, tools=list(tools) or None, add_generation_prompt=True, tokenize=False
            )
            return text

        return cls(tokenizer, open_with if loaded.chat_template else None)

    @classmethod
    def learn(
        cls, conversations: Iterable[Sequence[Turn]], vocab_size: int, *, split_words: bool = False
    ) -> Chat:
        """Train a byte-level BPE on these conversations; digits stay single, so that numbers can be copied.

        With `split_words` so can words: no token holds parts of two, nor a word and what stands beside it. Without, the
        fixed text between two numbers becomes a token or two.
        """
        tokenizer = Tokenizer(models.BPE())
        words = [pre_tokenizers.Split(Regex(r"[^\W\d_]+"), "isolated")] if split_words else []
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                *words,
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        # The trainer does not know that special tokens are never merged: give it only what stands between them.
        quote = _quoting(SPECIAL_TOKENS)
        texts = (piece for turns in conversations for piece in _SPECIAL.split(_render(turns, quote)))
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def from_json(cls, text: str) -> Chat:
        return cls(Tokenizer.from_str(text))

    def to_json(self) -> str:
        text: str = self.tokenizer.to_str()
        return text

    @cached_property
    def vocab_size(self) -> int:
        """How many embeddings a model needs: a tokenizer may leave ids out."""
        return max(self.tokenizer.get_vocab().values()) + 1

    @cached_property
    def end_id(self) -> int:
        return self._special_id(END)

    @cached_property
    def pad_id(self) -> int:
        # What pads is masked, so any token will do.
        return self._special_id(PAD) if self.tokenizer.token_to_id(PAD) is not None else self.end_id

    def is_ended(self, ids: Sequence[int]) -> bool:
        """Say whether the policy ended this turn itself."""
        return bool(ids) and ids[-1] == self.end_id

    def encode_opening(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids of the turns before the policy's first one, up to where it begins to write."""
        if self._open_with is not None:
            return self._ids(self._open_with([replace(t, content=self._quote(t.content)) for t in turns]))
        return self._ids(_render(turns, self._quote) + _ASSISTANT)

    def encode_following(self, turns: Sequence[Turn]) -> list[int]:
        """Return the ids between a sampled turn, which ends with the end token, and the policy's next one."""
        return self._ids("\n" + _render(turns, self._quote) + _ASSISTANT)

    def encode_demonstration(self, turns: Sequence[Turn]) -> tuple[list[int], list[int]]:
        """Return ids and mask as if the policy had sampled the assistant turns."""
        ids: list[int] = []
        mask: list[int] = []
        before: list[Turn] = []
        for turn in turns:
            if turn.role != "assistant":
                before.append(turn)
                continue
            given = self.encode_following(before) if ids else self.encode_opening(before)
            written = self._ids(_body(turn, self._quote) + END)
            ids += given + written
            mask += [0] * len(given) + [1] * len(written)
            before = []
        return ids, mask

    def decode_turn(self, ids: Sequence[int]) -> Turn:
        """Return the assistant turn of these sampled ids."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return parse_assistant(text.removesuffix(END))

    def _special_id(self, token: str) -> int:
        token_id = self.tokenizer.token_to_id(token)
        assert token_id is not None, "a tokenizer without these is refused"
        return token_id

    @cached_property
    def _quote(self) -> Quote:
        added = [token.content for token in self.tokenizer.get_added_tokens_decoder().values()]
        # Runs of spaces are tokens of some models; they are ordinary text.
        return _quoting([token for token in added if not token.isspace()])

    def _ids(self, text: str) -> list[int]:
        """Return the ids of a text of the format, in which what it quotes is cut."""
        pieces = [self.tokenizer.encode(piece, add_special_tokens=False).ids for piece in text.split(_CUT)]
        return list(itertools.chain(*pieces))


def parse_assistant(text: str) -> Turn:
    """Return what a policy wrote as a turn: the text outside the tags, and its calls in order.

    >>> parse_assistant('<tool_call>{"name": "calculator", "arguments": {"expression": "1+2"}}</tool_call>').tool_calls
    [ToolCall(name='calculator', arguments={'expression': '1+2'}, id='call_0', ...)]
    """
    calls = [_parse_call(match[1], f"call_{i}") for i, match in enumerate(_CALL.finditer(text))]
    return Turn(role="assistant", content=_CALL.sub("", text).strip(), tool_calls=calls)


def _parse_call(text: str, call_id: str) -> ToolCall:
    # The error is what the policy reads next: short, and without the text that it wrote.
    try:
        call = json.loads(text)
    except (ValueError, RecursionError):
        return ToolCall(name="", arguments=text, id=call_id, error="error: the call is not JSON")
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return ToolCall(name="", arguments=text, id=call_id, error="error: the call has no name")
    if not isinstance(call.get("arguments"), dict):
        return ToolCall(
            name=call["name"], arguments=text, id=call_id, error="error: the call has no arguments"
        )
    return ToolCall(name=call["name"], arguments=call["arguments"], id=call_id)


def _quoting(tokens: Iterable[str]) -> Quote:
    """Return what cuts these tokens in a text, behind the first character of each; they may overlap."""
    begins = re.compile(f"(?={'|'.join(map(re.escape, tokens))}).", re.DOTALL)
    return lambda text: begins.sub(lambda begin: begin[0] + _CUT, text)


def _render(turns: Sequence[Turn], quote: Quote) -> str:
    # The tools' answers to one turn travel in one user turn, as in Qwen's own template.
    text = ""
    for role, together in itertools.groupby(turns, key=lambda turn: turn.role):
        if role == "tool":
            text += _message("user", "\n".join(_body(turn, quote) for turn in together))
        else:
            text += "".join(_message(role, _body(turn, quote)) for turn in together)
    return text


def _message(role: str, body: str) -> str:
    return f"<|im_start|>{role}\n{body}{END}\n"


def _body(turn: Turn, quote: Quote) -> str:
    if turn.role == "tool":
        return f"<tool_response>\n{quote(turn.content)}\n</tool_response>"
    calls: str = "\n".join(
        f"<tool_call>\n{quote(json.dumps({'name': c.name, 'arguments': c.arguments}))}\n</tool_call>"
        for c in turn.tool_calls
    )
    return quote(turn.content) + calls
