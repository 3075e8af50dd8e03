"""A judge's server on loopback that answers as OpenAI's API does, or misbehaves as it is told."""

import json
import socket
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text, prompt_tokens=100, completion_tokens=10):
    """What a well-behaved server sends back."""
    return {
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens},
    }


@dataclass
class JudgeServer:
    url: str
    answer: object = None
    """Request → what to send: text (the judge's reply), a dict (the JSON), bytes (as they are), an int (the status),
    a tuple of status and bytes, "hang", "drip", "hang up", or "hang up with …" (a line that is no HTTP)."""
    requests: list = field(default_factory=list)  # (path, headers, JSON)
    over: threading.Event = field(default_factory=threading.Event)


@contextmanager
def judge_server(answer="Verdict: correct"):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.requests.append((self.path, dict(self.headers), request))
            chosen = server.answer(request) if callable(server.answer) else server.answer
            self.close_connection = True
            if chosen == "hang":
                server.over.wait()
            elif chosen == "hang up":
                self.connection.shutdown(socket.SHUT_RDWR)
            elif isinstance(chosen, str) and chosen.startswith("hang up with "):
                self.wfile.write(chosen.encode() + b"\r\n")
            elif chosen == "drip":
                self._drip()
            elif isinstance(chosen, int):
                self._send(chosen, b'{"error": {"message": "out of order"}}')
            elif isinstance(chosen, tuple):
                self._send(*chosen)
            elif isinstance(chosen, bytes):
                self._send(200, chosen)
            else:
                self._send(
                    200, json.dumps(chosen if isinstance(chosen, dict) else completion(chosen)).encode()
                )

        def _send(self, status, body):
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _drip(self):
            """Send a byte again and again, so that no socket ever times out, and never come to an end."""
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            while not server.over.wait(0.02):
                self.wfile.write(b" ")

        def handle(self):
            # A client that leaves in the middle of an answer: some of the tests are about that.
            with suppress(OSError):
                super().handle()

        def log_message(self, *args):
            pass

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listener.daemon_threads = True
    server = JudgeServer(f"http://127.0.0.1:{listener.server_port}/v1", answer)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        listener.shutdown()
        listener.server_close()
        thread.join()
