"""A policy that a vLLM server samples: token ids there and back, and a new LoRA adapter after each update.

    sync       adapter ─▶ a directory that both see ─▶ POST /v1/load_lora_adapter
    complete   prompts ─▶ POST /v1/completions, one for each, `concurrency` at once ─▶ ids, and their log-probs as drawn

Invariants
----------
* A completion comes from the weights that were synced last, or it has an error. Each sync has a name and a directory
  of its own: under that name no server has other weights, nor keys and values that other weights made.
* Nothing is tokenised here or there. The end token, if drawn, is the last id of a completion.
* Sampling is plain: what a model's `generation_config.json` says of top-k, penalties or end tokens is overruled.
* Log-probs are those of the distribution that was drawn from. vLLM's are by default those before the temperature, and
  no request can ask for others: a server that has only these is refused, unless the temperature is 1.
* The server draws from a generator of its own: a resumed run does not draw the same again. (A seed in each request would
  end a server on the CPU: vLLM 0.32 dies of one as soon as it reads a prompt in two parts.)
* A request takes `timeout_s` at most. A server that does not answer costs errors, never an exception; each call begins
  anew, with the adapter loaded again if the server has lost it.
* Nothing that the server answers is taken on trust: a completion has ids that the model has, no more of them than were
  asked for, and log-probs that can be. Any other answer is an error. No error repeats the API key.

A model whose weights are all trained cannot be sampled this way: vLLM swaps LoRA adapters only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import os
import shutil
import tempfile
import threading
import time
import urllib.parse
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainer.errors import SettingsError
from trainer.policy import Completion, TokenIds

# Between the tries of a request whose connection fails; so many, and one more.
RETRY_DELAYS_S = (0.1, 0.5, 2.0)
# More tokens than any model has; a sync says how many this one has.
MAX_VOCABULARY = 2**31
# A log-prob is no more than 0, but for rounding; vLLM writes -9999 where there is none.
LOGPROBS_LOWEST, LOGPROBS_HIGHEST = -1e4, 1e-3
# Answers of a server, or of a proxy before it, that has too much to do or is being restarted.
PASSING = frozenset({429, 502, 503, 504})
# The same for all: what the model's own directory says is overruled only by saying it.
PLAIN_SAMPLING = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "min_tokens": 0,
    "ignore_eos": True,
}


class VLLMEngine:
    exact = False

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        end_id: int,
        temperature: float = 1.0,
        max_length: int = 0,
        adapters: Path | None = None,
        timeout_s: float = 120.0,
        concurrency: int = 64,
    ) -> None:
        """Refuse a server that could not do what a training asks of it.

        It will be asked for sequences of `max_length` tokens, at this temperature and at 0. It must see `adapters`,
        a directory; without one, a temporary directory of this machine.
        """
        self._server = _Server(base_url, timeout_s)
        self._model = model
        self._end_id = end_id
        self._concurrency = concurrency
        self._home = None if adapters else tempfile.TemporaryDirectory(prefix="tidelog-adapters-")
        self._adapters = adapters or Path(self._home.name)  # type: ignore[union-attr]
        self._stem = f"tidelog-{uuid.uuid4().hex[:8]}"
        self._n_syncs = 0
        self._adapter = (
            ""  # the name under which the server shall have the weights; none yet: it samples the base
        )
        self._in_doubt = False  # whether it has them
        self._replaced: list[
            str
        ] = []  # adapters of the past that the server, or the directory, may still have
        self._n_vocabulary = MAX_VOCABULARY
        self._temperatures = {0.0, 1.0}  # whose log-probs are known to be right
        self._refuse_unless_it_can(max_length)
        self._refuse_unless_logprobs_are_of(temperature)

    def sync(self, model: Any, version: int) -> None:
        if not hasattr(model, "peft_config"):
            raise SettingsError(
                "the engine 'vllm' takes new weights as a LoRA adapter, and all weights of this model are trained. "
                "Give --set lora_rank=16, or another rank; or --set engine=transformers."
            )
        self._n_vocabulary = model.get_input_embeddings().num_embeddings
        is_first = not self._adapter
        self._replaced += [self._adapter] if self._adapter else []
        self._n_syncs += 1
        self._adapter, self._in_doubt = f"{self._stem}-{self._n_syncs}-v{version}", True
        try:
            self._save(model)
            self._make_sure_of_the_adapter()
        except (_Failed, OSError) as error:
            if is_first:
                raise SettingsError(
                    f"the vLLM server at {self._server.url!r} could not load a LoRA adapter ({error}). It must see "
                    f"{str(self._adapters)!r}, and be started with --enable-lora and a --max-lora-rank of at least "
                    "the setting lora_rank."
                ) from None
            # In doubt: the next call tries again, and has errors in place of completions of older weights.

    def complete(self, prompts: Sequence[TokenIds], max_new: int, temperature: float) -> list[Completion]:
        if not prompts or max_new < 1:
            return [Completion([], []) for _ in prompts]
        self._refuse_unless_logprobs_are_of(temperature)
        try:
            self._make_sure_of_the_adapter()
        except _Failed as error:
            return [Completion([], [], str(error)) for _ in prompts]
        gave_up = threading.Event()

        def ask(prompt: TokenIds) -> Completion:
            request = self._request(prompt, max_new, temperature)
            try:
                answer = self._server.ask("POST", "/v1/completions", request, gave_up)
                return _completion_of(answer, max_new, self._n_vocabulary)
            except _Failed as error:
                return Completion([], [], str(error))

        with ThreadPoolExecutor(min(self._concurrency, len(prompts))) as pool:
            completions = list(pool.map(ask, prompts))
        # It may be another server now, that knows nothing of an adapter.
        self._in_doubt = self._in_doubt or any(completion.error for completion in completions)
        return completions

    def _request(self, prompt: TokenIds, max_new: int, temperature: float) -> dict[str, Any]:
        return {
            "model": self._adapter or self._model,
            "prompt": list(prompt),
            "max_tokens": max_new,
            "temperature": temperature,
            "logprobs": 0,  # of the token that was drawn, and of no other
            "return_token_ids": True,
            "stop_token_ids": [self._end_id],
            **PLAIN_SAMPLING,
        }

    # --- the weights --------------------------------------------------------------------------------------------------

    def _save(self, model: Any) -> None:
        """Write the adapter whole, or not at all."""
        self._adapters.mkdir(parents=True, exist_ok=True)
        aside = self._adapters / f".{self._adapter}"
        model.save_pretrained(aside, save_embedding_layers=False)
        os.rename(aside, self._adapters / self._adapter)

    def _make_sure_of_the_adapter(self) -> None:
        if not self._adapter or not self._in_doubt:
            return
        if self._adapter not in self._served():
            # By a name of its own, and not `load_inplace`: with that, vLLM reads the files again at every step.
            adapter = {
                "lora_name": self._adapter,
                "lora_path": str((self._adapters / self._adapter).resolve()),
            }
            self._server.ask("POST", "/v1/load_lora_adapter", adapter)
        self._in_doubt = False
        while self._replaced:
            with contextlib.suppress(_Failed):  # it never had it, or was restarted since
                self._server.ask("POST", "/v1/unload_lora_adapter", {"lora_name": self._replaced[-1]})
            shutil.rmtree(self._adapters / self._replaced.pop(), ignore_errors=True)

    def _served(self) -> dict[str, int]:
        """Return the names that the server knows, and how many tokens each can have; adapters say nothing of that."""
        answer = self._server.ask("GET", "/v1/models")
        try:
            return {str(model["id"]): int(model.get("max_model_len") or 0) for model in answer["data"]}
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise _Failed(self._server.url, f"answered what is no list of models: {_short(answer)}") from None

    # --- refusals -----------------------------------------------------------------------------------------------------

    def _refuse_unless_it_can(self, max_length: int) -> None:
        url, model = self._server.url, self._model
        try:
            served = self._served()
        except _Failed as error:
            raise SettingsError(
                f"{error}. Start a server there, by `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve {model} "
                "--enable-lora --max-lora-rank 32`, or say with --set vllm_url=… where there is one."
            ) from None
        if model not in served:
            raise SettingsError(
                f"the vLLM server at {url!r} serves {' and '.join(map(repr, served)) or 'nothing'}, not {model!r}. "
                f"Start it with --model {model}, or give --model-name as it names it."
            )
        if served[model] and served[model] < max_length:
            raise SettingsError(
                f"the vLLM server at {url!r} takes {served[model]} tokens of {model!r}, and this run's max_length is "
                f"{max_length}. Start it with --max-model-len {max_length}, or give a smaller --max-length."
            )
        try:
            self._server.ask("POST", "/v1/load_lora_adapter", {})
        except _Failed as error:
            if error.status == http.client.NOT_FOUND:
                raise SettingsError(
                    f"the vLLM server at {url!r} takes no new weights while it runs. Start it with --enable-lora, and "
                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment."
                ) from None

    def _refuse_unless_logprobs_are_of(self, temperature: float) -> None:
        """Find out by asking: what the best token's log-prob is at temperature 1, and at 2 if that changes anything."""
        if temperature in self._temperatures:
            return
        best = []
        for probed in (1.0, 2.0):
            request = self._request([self._end_id], 1, probed) | {"logprobs": 1}
            try:
                answer = self._server.ask("POST", "/v1/completions", request)
                best.append(float(max(answer["choices"][0]["logprobs"]["top_logprobs"][0].values())))
            except _Failed:
                return  # asked again by the next call; this one will have the same error
            except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
                raise SettingsError(
                    f"the vLLM server at {self._server.url!r} answered without log-probs: {_short(answer)}. "
                    "vLLM does so from 0.10 on."
                ) from None
        if math.isclose(*best, abs_tol=1e-4):
            raise SettingsError(
                f"the vLLM server at {self._server.url!r} says log-probs before the temperature, and this run draws at "
                f"temperature {temperature}. Start it with --logprobs-mode processed_logprobs, or give --temperature 1."
            )
        self._temperatures.add(temperature)


def _completion_of(answer: Any, max_new: int, n_vocabulary: int) -> Completion:
    try:
        choice = answer["choices"][0]
        token_ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        why = choice["finish_reason"]
        is_whole = (
            why in ("stop", "length")
            and 0 < len(token_ids) == len(logprobs) <= max_new
            and all(type(i) is int and 0 <= i < n_vocabulary for i in token_ids)
            and all(type(p) in (int, float) and LOGPROBS_LOWEST <= p <= LOGPROBS_HIGHEST for p in logprobs)
        )
    except (KeyError, IndexError, TypeError):
        is_whole = False
    if not is_whole:
        raise _Failed("vLLM", f"answered what is no completion: {_short(answer)}")
    return Completion(token_ids, [float(p) for p in logprobs])


# --- HTTP -------------------------------------------------------------------------------------------------------------


class _Failed(Exception):
    """A request without the answer that was asked for; its text says to whom, and why."""

    def __init__(self, whom: str, why: str, *, status: int = 0, is_passing: bool = False) -> None:
        super().__init__(f"{whom} {why}")
        self.status = status
        self.is_passing = is_passing


class _Server:
    """Asks one server for JSON. The standard library's client does: a request is one exchange, without a proxy."""

    def __init__(self, base_url: str, timeout_s: float) -> None:
        self.url = base_url.rstrip("/").removesuffix("/v1")
        try:
            parts = urllib.parse.urlsplit(self.url)
            self._port = parts.port
            is_usable = parts.scheme in ("http", "https") and bool(parts.hostname)
        except ValueError:
            is_usable = False
        if not is_usable:
            raise SettingsError(f"setting 'vllm_url' is {base_url!r}; it is like 'http://127.0.0.1:8000'.")
        self._parts = parts
        self._timeout_s = timeout_s

    def ask(self, method: str, path: str, body: Any = None, gave_up: threading.Event | None = None) -> Any:
        """Return what the server answers, after some tries if its connection fails.

        `gave_up` is shared by requests that go together: where one has tried to the end, the others try no more.
        """
        gave_up = gave_up or threading.Event()
        for delay_s in RETRY_DELAYS_S:
            try:
                return self._ask_once(method, path, body)
            except _Failed as error:
                if not error.is_passing or gave_up.wait(delay_s):
                    raise
        try:
            return self._ask_once(method, path, body)
        except _Failed:
            gave_up.set()
            raise

    def _ask_once(self, method: str, path: str, body: Any) -> Any:
        deadline_s = time.monotonic() + self._timeout_s
        secure = self._parts.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._parts.hostname or "", self._port, timeout=self._timeout_s)
        try:
            connection.connect()
            socket = connection.sock
            headers = {"Content-Type": "application/json", "Connection": "close"}
            if key := os.environ.get("VLLM_API_KEY"):
                headers["Authorization"] = f"Bearer {key}"
            data = None if body is None else json.dumps(body)
            connection.request(method, self._parts.path + path, data, headers)
            response = connection.getresponse()
            chunks = []
            # Piece by piece: a server that drips must not take longer than one that is silent.
            while True:
                socket.settimeout(max(deadline_s - time.monotonic(), 0.001))
                chunk = response.read1(1 << 16)
                if not chunk:
                    break
                chunks.append(chunk)
        except TimeoutError:
            raise _Failed(self._name, f"did not answer within {self._timeout_s:g} s") from None
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            why = _short(error) or type(error).__name__
            raise _Failed(self._name, f"cannot be reached ({why})", is_passing=True) from None
        finally:
            connection.close()
        return self._json_of(response.status, b"".join(chunks))

    def _json_of(self, status: int, data: bytes) -> Any:
        text = data.decode(errors="replace")
        if status != http.client.OK:
            raise _Failed(
                self._name,
                f"answered {status}: {_message_of(text)}",
                status=status,
                is_passing=status in PASSING,
            )
        try:
            return json.loads(text) if text.startswith("{") else text
        except (ValueError, RecursionError):
            raise _Failed(self._name, f"answered what is no JSON: {_short(text)}") from None

    @property
    def _name(self) -> str:
        return f"the vLLM server at {self.url!r}"


def _message_of(text: str) -> str:
    """Return what vLLM says in the JSON of an error, or else all of it."""
    try:
        return _short(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return _short(text)


def _short(value: Any) -> str:
    """Return what a server sent as an error may show it: on one line, not the whole of it, and never the API key."""
    text = " ".join(str(value).split())
    if key := os.environ.get("VLLM_API_KEY"):
        text = text.replace(key, "[the key]")
    return text if len(text) <= 300 else text[:299] + "…"
