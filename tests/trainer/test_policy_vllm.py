"""A server samples the policy: a scripted one that misbehaves, and a real vLLM on the CPU."""

import json
import math
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.trainer.doubles import learned_chat, logprobs_of
from tests.trainer.vllm_server import VLLMServer, needs_vllm
from trainer.errors import SettingsError
from trainer.models import save_pretrained
from trainer.policy import Completion
from trainer.policy.transformers import TransformersEngine, pretrained, tiny_qwen3
from trainer.policy.vllm import VLLMEngine

END = 2  # as in `SPECIAL_TOKENS`


# --- a server that does as it is told ---------------------------------------------------------------------------------


def answered(token_ids, logprobs=None, finish_reason="stop"):
    logprobs = [-0.5] * len(token_ids) if logprobs is None else logprobs
    choice = {
        "token_ids": token_ids,
        "logprobs": {"token_logprobs": logprobs},
        "finish_reason": finish_reason,
    }
    return 200, {"choices": [choice]}


class ScriptedServer:
    """Speaks HTTP as vLLM does. `complete` answers a request: with (status, body), or by raising what is below."""

    class Hang(Exception):
        """No answer, until the server is closed."""

    class Drip(Exception):
        """An answer that never comes to its end."""

    class Drop(Exception):
        """The connection ends without an answer."""

    def __init__(self, complete=lambda request: answered([7, END])):
        self.complete = complete
        self.models = {"tiny": 512}
        self.adapters = {}  # by name, the path that it was loaded from
        self.load = self._load
        self.requests = []  # (path, body)
        self.headers = []
        self.closing = threading.Event()
        self.port = 0
        self.open()

    def open(self):
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                scripted._answer(self, None)

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                scripted._answer(self, json.loads(body))

            def log_message(self, *args):
                pass

        ThreadingHTTPServer.allow_reuse_address = True
        self._http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._http.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self):
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(timeout=60)

    def asked(self, path):
        return [body for asked, body in self.requests if asked == path]

    def _answer(self, handler, body):
        self.requests.append((handler.path, body))
        self.headers.append(dict(handler.headers))
        try:
            status, answer = self._of(handler.path, body)
        except self.Hang:
            self.closing.wait(60)
            return
        except self.Drip:
            handler.send_response(200)
            handler.end_headers()
            while not self.closing.wait(0.05):
                handler.wfile.write(b"{")
            return
        except self.Drop:
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def _of(self, path, body):
        if path == "/v1/models":
            adapters = [{"id": name, "max_model_len": None} for name in self.adapters]
            return 200, {"data": [{"id": k, "max_model_len": v} for k, v in self.models.items()] + adapters}
        if path == "/v1/load_lora_adapter":
            return self.load(body)
        if path == "/v1/unload_lora_adapter":
            self.adapters.pop(body["lora_name"])
            return 200, b"Success: removed."
        assert path == "/v1/completions"
        return self.complete(body)

    def _load(self, body):
        if "lora_name" not in body:
            return 400, {"error": {"message": "Field required"}}
        self.adapters[body["lora_name"]] = body["lora_path"]
        return 200, b"Success: added."


@pytest.fixture
def server():
    server = ScriptedServer()
    yield server
    server.close()


def engine_of(server, **options):
    return VLLMEngine(server.url, "tiny", end_id=END, **options)


def tiny_lora(seed=0):
    torch.manual_seed(seed)
    model = tiny_qwen3(400, hidden=32, layers=1, max_tokens=64)
    return get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))


# --- what is asked for, and what comes back ---------------------------------------------------------------------------


def test_ids_go_out_and_come_back_in_the_order_of_the_prompts(server):
    server.complete = lambda request: answered([request["prompt"][0] + 100, END], [-0.25, -0.5])

    completions = engine_of(server).complete([[5], [6, 7], [8]], max_new=4, temperature=1.0)

    assert completions == [Completion([first + 100, END], [-0.25, -0.5]) for first in (5, 6, 8)]
    assert sorted(request["prompt"] for request in server.asked("/v1/completions")) == [[5], [6, 7], [8]]


def test_sampling_is_plain_whatever_the_model_directory_suggests(server):
    engine_of(server).complete([[5]], max_new=4, temperature=1.0)

    [request] = server.asked("/v1/completions")
    # And no seed: see the real server that reads prompts in parts.
    assert request == {
        "model": "tiny",
        "prompt": [5],
        "max_tokens": 4,
        "temperature": 1.0,
        "logprobs": 0,
        "return_token_ids": True,
        "stop_token_ids": [END],
        "ignore_eos": True,
        "min_tokens": 0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def test_no_more_requests_than_allowed_are_under_way_at_once(server):
    under_way, most, lock = 0, 0, threading.Lock()
    too_many = threading.Event()

    def complete(request):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
            if under_way > 3:
                too_many.set()
        too_many.wait(1.0)  # a fourth has time to come
        with lock:
            under_way -= 1
        return answered([7, END])

    server.complete = complete

    completions = engine_of(server, concurrency=3).complete([[5]] * 6, max_new=4, temperature=1.0)

    assert 1 < most <= 3
    assert [c.error for c in completions] == [None] * 6


def test_no_prompts_and_no_room_ask_for_nothing(server):
    engine = engine_of(server)

    assert engine.complete([], max_new=4, temperature=1.0) == []
    assert engine.complete([[5]], max_new=0, temperature=1.0) == [Completion([], [])]
    assert server.asked("/v1/completions") == []


def test_the_servers_api_key_is_sent_where_there_is_one(server, monkeypatch):
    monkeypatch.setenv("VLLM_API_KEY", "secret")

    engine_of(server)

    assert {headers.get("Authorization") for headers in server.headers} == {"Bearer secret"}


# --- a server that misbehaves -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [ScriptedServer.Hang, ScriptedServer.Drip])
def test_a_request_that_takes_too_long_is_an_error_and_the_others_are_not(server, how):
    def complete(request):
        if request["prompt"] == [6]:
            raise how
        return answered([7, END])

    server.complete = complete

    slow, quick = engine_of(server, timeout_s=1.0).complete([[6], [5]], max_new=4, temperature=1.0)

    assert slow == Completion([], [], f"the vLLM server at '{server.url}' did not answer within 1 s")
    assert quick.token_ids == [7, END]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            (500, {"error": {"message": "EngineCore encountered an issue."}}),
            "answered 500: EngineCore encountered",
        ),
        (
            (400, {"error": {"message": "max_tokens=600 is too much"}}),
            "answered 400: max_tokens=600 is too much",
        ),
        ((500, b"<html>oh no</html>"), "answered 500: <html>oh no</html>"),
        ((200, b"<html>log in here</html>"), "answered what is no completion: <html>log in here</html>"),
        ((200, b'{"choices": [{"tok'), "answered what is no JSON"),
        ((200, {"choices": []}), "answered what is no completion"),
        ((200, {"choices": [{"text": "7"}]}), "answered what is no completion"),
        (answered([7, END], [-0.5]), "answered what is no completion"),
        (answered([7, END], [None, -0.5]), "answered what is no completion"),
        (answered([7, END], [math.nan, -0.5]), "answered what is no completion"),
        (answered([]), "answered what is no completion"),
        (answered([7], finish_reason="abort"), "answered what is no completion"),
        (answered([-1, END]), "answered what is no completion"),
        (answered([400, END]), "answered what is no completion"),  # the model has 400 tokens
        (answered([10**12, END]), "answered what is no completion"),
        (answered([True, END]), "answered what is no completion"),
        (answered([7, 7, 7, 7, END]), "answered what is no completion"),  # it was asked for 4
        (answered([7, END], [-(10**400), -0.5]), "answered what is no completion"),
        (answered([7, END], [10**400, -0.5]), "answered what is no completion"),
        (answered([7, END], [1e300, -0.5]), "answered what is no completion"),
        (answered([7, END], [True, -0.5]), "answered what is no completion"),
        ((200, b'{"choices": ' + b"[" * 100_000), "answered what is no JSON"),
        ((200, b'{"choices": ' + b"[" * 900 + b"]" * 900 + b"}"), "answered what is no completion"),
        ((500, b'{"error": ' + b"[" * 100_000), "answered 500"),
        ((200, b'{"choices": ' + b"1" * 5000 + b"}"), "answered what is no JSON"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_answer_that_is_no_completion_is_an_error_that_says_what_came(server, answer, error):
    server.complete = lambda request: answer
    engine = engine_of(server)
    engine.sync(tiny_lora(), 0)

    [completion] = engine.complete([[5]], max_new=4, temperature=1.0)

    assert (completion.token_ids, completion.logprobs) == ([], [])
    assert error in completion.error
    assert len(server.asked("/v1/completions")) == 1, "an answer, even a bad one, is not asked for again"


def test_ids_that_no_model_has_are_refused_before_the_first_sync_too(server):
    server.complete = lambda request: answered([10**12, END])

    [completion] = engine_of(server).complete([[5]], max_new=4, temperature=1.0)

    assert "answered what is no completion" in completion.error


@pytest.mark.parametrize(
    "answer",
    [
        (401, {"error": {"message": "Bearer se-cret is no key"}}),
        (401, b"Bearer se-cret"),
        answered("se-cret"),
    ],
)
def test_the_api_key_is_in_no_error_whatever_the_server_echoes(server, monkeypatch, answer):
    monkeypatch.setenv("VLLM_API_KEY", "se-cret")
    server.complete = lambda request: answer

    [completion] = engine_of(server).complete([[5]], max_new=4, temperature=1.0)

    assert completion.error
    assert "se-cret" not in completion.error


@pytest.mark.parametrize("trouble", ["dropped", "busy"])
def test_a_request_is_tried_again_where_the_connection_fails_or_the_server_is_busy(server, trouble):
    def complete(request):
        if len(server.asked("/v1/completions")) > 2:
            return answered([7, END])
        if trouble == "busy":
            return 503, {"error": {"message": "later"}}
        raise ScriptedServer.Drop

    server.complete = complete

    [completion] = engine_of(server).complete([[5]], max_new=4, temperature=1.0)

    assert completion.token_ids == [7, END]
    assert len(server.asked("/v1/completions")) == 3


def test_a_dead_server_costs_errors_and_the_next_call_tries_again(server):
    engine = engine_of(server)
    server.close()

    dead = engine.complete([[5]] * 40, max_new=4, temperature=1.0)
    server.open()
    alive = engine.complete([[5]] * 2, max_new=4, temperature=1.0)

    assert {c.error is not None and "cannot be reached" in c.error for c in dead} == {True}
    assert [c.token_ids for c in alive] == [[7, END]] * 2


# --- the weights ------------------------------------------------------------------------------------------------------


def test_each_sync_loads_whole_files_under_a_new_name_and_clears_the_last_away(server, tmp_path):
    model, engine = tiny_lora(), engine_of(server, adapters=tmp_path)
    seen = []

    def load(body):
        seen.append((body["lora_name"], sorted(p.name for p in Path(body["lora_path"]).iterdir())))
        return server._load(body)

    server.load = load

    for version in (0, 1, 1):
        engine.sync(model, version)
        engine.complete([[5]], max_new=4, temperature=1.0)

    names = [name for name, _ in seen]
    assert len(set(names)) == 3
    assert all({"adapter_config.json", "adapter_model.safetensors"} <= set(files) for _, files in seen)
    assert [request["model"] for request in server.asked("/v1/completions")] == names
    assert list(server.adapters) == names[-1:]
    assert [p.name for p in tmp_path.iterdir()] == names[-1:]


def test_before_the_first_sync_the_base_model_is_sampled(server):
    engine_of(server).complete([[5]], max_new=4, temperature=1.0)

    assert [request["model"] for request in server.asked("/v1/completions")] == ["tiny"]


def test_weights_that_could_not_be_loaded_are_never_replaced_by_older_ones(server):
    model, engine = tiny_lora(), engine_of(server)
    engine.sync(model, 0)
    server.load = lambda body: (500, {"error": {"message": "out of slots"}})

    engine.sync(model, 1)
    [refused] = engine.complete([[5]], max_new=4, temperature=1.0)
    server.load = server._load
    [loaded] = engine.complete([[5]], max_new=4, temperature=1.0)

    assert refused.error.endswith("answered 500: out of slots")
    assert loaded.token_ids == [7, END]
    [request] = server.asked("/v1/completions")
    assert request["model"].endswith("-v1")


def test_a_server_that_was_restarted_gets_the_adapter_again(server):
    model, engine = tiny_lora(), engine_of(server)
    engine.sync(model, 0)
    [adapter] = server.adapters
    server.close()
    server.adapters.clear()
    engine.complete([[5]], max_new=4, temperature=1.0)
    server.open()

    [completion] = engine.complete([[5]], max_new=4, temperature=1.0)

    assert completion.error is None
    assert list(server.adapters) == [adapter]


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_server_that_is_not_there_is_refused_with_the_line_that_starts_one(server):
    server.close()

    with pytest.raises(SettingsError, match=r"cannot be reached.*vllm serve tiny --enable-lora"):
        engine_of(server)


def test_a_model_that_is_not_served_is_refused_with_what_is(server):
    server.models = {"Qwen/Qwen3-4B": 512}

    with pytest.raises(
        SettingsError, match=r"serves 'Qwen/Qwen3-4B', not 'tiny'. Start it with --model tiny"
    ):
        engine_of(server)


def test_a_server_of_shorter_sequences_is_refused(server):
    with pytest.raises(SettingsError, match=r"takes 512 tokens.*max_length is 600.*--max-model-len 600"):
        engine_of(server, max_length=600)


def test_a_server_that_takes_no_new_weights_is_refused(server):
    server.load = lambda body: (404, {"detail": "Not Found"})

    with pytest.raises(SettingsError, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"):
        engine_of(server)


def test_a_model_without_a_lora_is_refused_with_the_way_out(server):
    engine = engine_of(server)

    with pytest.raises(SettingsError, match="--set lora_rank=16"):
        engine.sync(tiny_qwen3(400, hidden=32, layers=1, max_tokens=64), 0)


def test_an_adapter_that_does_not_load_at_the_start_is_refused_in_the_servers_words(server):
    engine = engine_of(server)
    server.load = lambda body: (500, {"error": {"message": "LoRA rank 4 is greater than max_lora_rank 2."}})

    with pytest.raises(SettingsError, match=r"LoRA rank 4 is greater.*--max-lora-rank"):
        engine.sync(tiny_lora(), 0)


def test_a_host_that_no_name_server_can_be_asked_for_is_refused():
    with pytest.raises(SettingsError, match="cannot be reached"):
        VLLMEngine("http://a..b:1", "tiny", end_id=END)


@pytest.mark.parametrize("length", [math.inf, "many", [1]])
def test_a_list_of_models_that_says_no_sensible_length_is_refused(server, length):
    server.models = {"tiny": length}

    with pytest.raises(SettingsError, match="no list of models"):
        engine_of(server, max_length=16)


@pytest.mark.parametrize("logprobs", [{"a": "x"}, {"a": 10**400}, {"a": [1]}])
def test_a_server_whose_logprobs_are_no_numbers_is_refused(server, logprobs):
    server.complete = lambda request: (200, {"choices": [{"logprobs": {"top_logprobs": [logprobs]}}]})

    with pytest.raises(SettingsError, match="without log-probs"):
        engine_of(server, temperature=0.7)


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://here", "", "http://here:abc", "http://here:99999", "http://[here"],
)
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(SettingsError, match=r"it is like 'http://127.0.0.1:8000'"):
        VLLMEngine(url, "tiny", end_id=END)


@pytest.mark.parametrize("is_raw", [True, False])
def test_logprobs_before_the_temperature_are_refused_where_there_is_one(server, is_raw):
    def complete(request):
        best = -1.0 if is_raw or request["temperature"] == 1.0 else -1.5
        return 200, {"choices": [{"logprobs": {"top_logprobs": [{"token 7": best, "token 8": -4.0}]}}]}

    server.complete = complete

    if is_raw:
        with pytest.raises(
            SettingsError, match="--logprobs-mode processed_logprobs, or give --temperature 1"
        ):
            engine_of(server, temperature=0.7)
        engine_of(server, temperature=1.0)
    else:
        engine_of(server, temperature=0.7)


def test_a_call_at_another_temperature_is_refused_before_anything_is_sampled(server):
    server.complete = lambda request: (
        200,
        {"choices": [{"logprobs": {"top_logprobs": [{"token 7": -1.0}]}}]},
    )
    engine = engine_of(server)

    with pytest.raises(SettingsError, match=r"temperature 0.7"):
        engine.complete([[5]], max_new=4, temperature=0.7)

    assert [request["max_tokens"] for request in server.asked("/v1/completions")] == [1, 1], (
        "it only found out"
    )


# --- a real vLLM ------------------------------------------------------------------------------------------------------

# A server starts in a minute, or in many where the machine is busy.
real = [needs_vllm, pytest.mark.slow, pytest.mark.timeout(1800)]
PROMPTS = [[5, 6, 7, 8, 9], [300], [40, 41, 40, 41], [100, 3, 200, 4, 1, 2, 250]]


@pytest.fixture(scope="module")
def real_server(tmp_path_factory):
    home = tmp_path_factory.mktemp("vllm")
    torch.manual_seed(0)
    chat = learned_chat()
    # Channels of 32 a head: vLLM's attention on the CPU has no kernel for fewer.
    model = tiny_qwen3(chat.vocab_size, hidden=128, layers=2, max_tokens=256)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    save_pretrained(model, chat, home / "model")
    server = VLLMServer(home / "model", home / "server")
    server.start()
    yield server
    server.close()


def base_of(server):
    return pretrained(server.model, "float32")


def lora_of(server, seed):
    torch.manual_seed(seed)
    model = get_peft_model(base_of(server), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    return model


def drift(model, prompts, completions, temperature):
    """Return the greatest difference between a server's log-probs and those of a model in this process."""
    recomputed_BT, recorded_BT = logprobs_of(model, prompts, completions, temperature, pad_id=0)
    return float((recomputed_BT - recorded_BT).abs().max())


class TestRealVLLM:
    pytestmark = real

    def test_greedy_completions_are_those_of_transformers(self, real_server):
        engine = VLLMEngine(real_server.url, real_server.model, end_id=END)
        model = base_of(real_server)

        completions = engine.complete(PROMPTS, max_new=24, temperature=0.0)

        ours = TransformersEngine(model, end_id=END, pad_id=0).complete(PROMPTS, 24, 0.0)
        assert [c.error for c in completions] == [None] * 4
        assert [c.token_ids for c in completions] == [c.token_ids for c in ours]
        assert drift(model, PROMPTS, completions, 1.0) < 1e-4

    @pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
    def test_logprobs_are_those_of_the_distribution_that_was_drawn_from(self, real_server, temperature):
        engine = VLLMEngine(real_server.url, real_server.model, end_id=END, temperature=temperature)
        prompts = PROMPTS * 4

        completions = engine.complete(prompts, max_new=24, temperature=temperature)

        assert [c.error for c in completions] == [None] * 16
        assert drift(base_of(real_server), prompts, completions, temperature) < 1e-4

    def test_the_end_token_is_kept_and_stops_and_no_other_does(self, real_server):
        model = base_of(real_server)
        ours = TransformersEngine(model, end_id=END, pad_id=0).complete(PROMPTS, 24, 0.0)
        # A token that greedy decoding meets on its way, so that there is a stop.
        end_id = ours[0].token_ids[5]
        engine = VLLMEngine(real_server.url, real_server.model, end_id=end_id)

        completions = engine.complete(PROMPTS, max_new=24, temperature=0.0)

        ours = TransformersEngine(model, end_id=end_id, pad_id=0).complete(PROMPTS, 24, 0.0)
        assert [c.token_ids for c in completions] == [c.token_ids for c in ours]
        assert completions[0].token_ids[-1] == end_id
        assert len(completions[0].token_ids) <= 6

    def test_more_prompts_than_it_can_read_at_once_are_all_answered(self, real_server):
        engine = VLLMEngine(real_server.url, real_server.model, end_id=END)
        # More than the server's --max-num-batched-tokens: some are read in parts.
        prompts = [[5 + (i + j) % 300 for j in range(190)] for i in range(64)]

        completions = engine.complete(prompts, max_new=8, temperature=1.0)

        assert [c.error for c in completions] == [None] * 64
        assert drift(base_of(real_server), prompts, completions, 1.0) < 1e-4

    def test_after_a_sync_the_server_speaks_as_the_model_with_its_new_lora(self, real_server):
        engine = VLLMEngine(real_server.url, real_server.model, end_id=END)
        base = base_of(real_server)

        for version in range(3):
            model = lora_of(real_server, seed=version)
            engine.sync(model, version)
            completions = engine.complete(PROMPTS, max_new=16, temperature=1.0)

            assert [c.error for c in completions] == [None] * 4
            assert drift(model, PROMPTS, completions, 1.0) < 1e-3
            assert drift(base, PROMPTS, completions, 1.0) > 0.1, "the adapter changes something"

    def test_a_lora_of_too_high_a_rank_is_refused(self, real_server):
        model = get_peft_model(base_of(real_server), LoraConfig(r=64, target_modules="all-linear"))
        engine = VLLMEngine(real_server.url, real_server.model, end_id=END)

        with pytest.raises(SettingsError, match="rank"):
            engine.sync(model, 0)

    def test_killed_in_mid_call_it_costs_errors_and_restarted_it_has_the_weights_again(self, real_server):
        model = lora_of(real_server, seed=9)
        engine = VLLMEngine(real_server.url, real_server.model, end_id=END)
        engine.sync(model, 5)

        with ThreadPoolExecutor(1) as pool:
            call = pool.submit(engine.complete, PROMPTS * 32, 200, 1.0)
            wait_until_it_samples(real_server)
            real_server.kill()
            killed = call.result()
        while_dead = engine.complete(PROMPTS, max_new=4, temperature=1.0)
        real_server.start()
        after = engine.complete(PROMPTS, max_new=16, temperature=1.0)

        assert any(c.error for c in killed)
        assert all(bool(c.error) != bool(c.token_ids) for c in killed)
        assert all("cannot be reached" in c.error for c in while_dead)
        assert [c.error for c in after] == [None] * 4
        assert drift(model, PROMPTS, after, 1.0) < 1e-3


def wait_until_it_samples(server):
    deadline_s = time.monotonic() + 300
    while time.monotonic() < deadline_s:
        with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as response:
            for line in response.read().decode().splitlines():
                if line.startswith("vllm:num_requests_running{") and float(line.split()[-1]) > 0:
                    return
    raise AssertionError("the server never began")
