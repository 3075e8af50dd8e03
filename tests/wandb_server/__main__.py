"""Run the server as a process: `python -m tests.wandb_server --port 0 --port-file FILE`.

The port file appears, whole, only once the server answers. Stop it with SIGTERM or Ctrl-C.
Steer it over HTTP: see `steering`.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from pathlib import Path

from tests.wandb_server.certificates import make_certificates
from tests.wandb_server.server import API_KEY, WandbServer
from tests.wandb_server.store import CRASHED_AFTER_S


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.wandb_server", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port-file", help="where to write the port")
    parser.add_argument("--api-key", default=API_KEY, help="40 characters, or the SDK refuses it")
    parser.add_argument("--entity", default="ent")
    parser.add_argument("--lenient", action="store_true", help="check nothing: faster")
    parser.add_argument("--append", action="store_true", help="be wrong on purpose: ignore offsets")
    parser.add_argument("--forget-requests", action="store_true", help="record no requests: bounded memory")
    parser.add_argument("--crashed-after-s", type=float, default=CRASHED_AFTER_S)
    parser.add_argument("--tls-dir", type=Path, help="speak TLS; the CA to trust is put there, as ca.pem")
    options = parser.parse_args()

    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with WandbServer(
        api_key=options.api_key,
        entity=options.entity,
        strict=not options.lenient,
        append=options.append,
        port=options.port,
        keep_requests=not options.forget_requests,
        tls=make_certificates(options.tls_dir) if options.tls_dir else None,
        crashed_after_s=options.crashed_after_s,
    ) as server:
        print(f"W&B server for tests at {server.base_url}, entity {options.entity!r}", flush=True)
        if options.port_file:
            _publish(options.port_file, str(server.port))
        stopping.wait()


def _publish(path: str, text: str) -> None:
    with open(f"{path}.new", "w") as file:
        file.write(text)
    os.rename(f"{path}.new", path)


if __name__ == "__main__":
    main()
