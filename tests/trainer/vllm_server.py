"""A real vLLM on the CPU, from an environment of its own: it wants another transformers than this project does.

`make vllm` makes that environment. Elsewhere it is found by $TIDELOG_VLLM_PYTHON. Without one, `needs_vllm` skips.

The server's processes are one group, and end together: at `close`, at `kill`, and when a start takes too long.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

MADE = Path(__file__).resolve().parents[2] / ".venv-vllm"
# Read on import: the tests themselves run without any of our variables.
GIVEN = os.environ.get("TIDELOG_VLLM_PYTHON")
PYTHON = Path(GIVEN or MADE / "bin" / "python")

needs_vllm = pytest.mark.skipif(
    # An installation that was broken off has a Python too.
    not (PYTHON if GIVEN else MADE / ".ready").exists(),
    reason="there is no vLLM here: `make vllm` installs one in .venv-vllm, or $TIDELOG_VLLM_PYTHON names its Python",
)

# It imports for half a minute where nothing else runs.
START_TIMEOUT_S = 600.0
_ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
_ARGUMENTS = (
    *("--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "64"),
    # Few, so that prompts are read in parts, as they are where there are many of them.
    *("--max-num-batched-tokens", "256"),
    *("--enable-lora", "--max-lora-rank", "32", "--max-loras", "1"),
    *("--logprobs-mode", "processed_logprobs"),
)


class VLLMServer:
    """Serves the model of a directory, which is also its name, on a port of its own, until it is closed."""

    def __init__(self, model: Path, home: Path) -> None:
        self.model = str(model)
        self._home = home
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"
        self._log = home / "vllm.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, on the same port as before; return when it answers."""
        self._home.mkdir(parents=True, exist_ok=True)
        where = ("--host", "127.0.0.1", "--port", str(self._port))
        caches = {name: str(self._home / name) for name in ("HOME", "VLLM_CACHE_ROOT", "VLLM_CONFIG_ROOT")}
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    PYTHON,
                    "-m",
                    "vllm.entrypoints.openai.api_server",
                    "--model",
                    self.model,
                    *where,
                    *_ARGUMENTS,
                ],
                cwd=self._home,
                env={**os.environ, **_ENVIRONMENT, **caches},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.kill()
                raise RuntimeError(f"vLLM did not start:\n{self._log.read_text(errors='replace')[-4000:]}")
            time.sleep(0.5)

    def close(self) -> None:
        """End it in its own way, which frees its shared memory; or, where that takes too long, by `kill`."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=60)
            self.kill()

    def kill(self) -> None:
        """End it and all its processes at once, in the middle of whatever they do."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(timeout=60)
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except OSError:
            return False
