"""A certificate authority of one's own, and the loopback's certificate from it: made by `openssl`, for minutes.

made = make_certificates(tmp_path)
with WandbServer(tls=made) as server:
    …a client that trusts made.ca, and one that does not…
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NAMES = "subjectAltName=IP:127.0.0.1,DNS:localhost"


@dataclass(frozen=True)
class Certificates:
    """Files in PEM: what a client must trust, and what the server shows."""

    ca: Path
    certificate: Path
    key: Path


def make_certificates(directory: Path) -> Certificates:
    """Make both in `directory`; they hold for a day."""
    made = Certificates(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    ca_key, names = directory / "ca.key", directory / "names"
    names.write_text(_NAMES)
    new_key = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    ca_extensions = ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    request = directory / "server.csr"
    _openssl(
        *new_key,
        "-x509",
        "-days",
        "1",
        "-subj",
        "/CN=a CA for tests",
        *ca_extensions,
        "-keyout",
        ca_key,
        "-out",
        made.ca,
    )
    _openssl(*new_key, "-subj", "/CN=localhost", "-keyout", made.key, "-out", request)
    signing = ["-CA", made.ca, "-CAkey", ca_key, "-CAcreateserial", "-days", "1", "-extfile", names]
    _openssl("x509", "-req", "-in", request, *signing, "-out", made.certificate)
    return made


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)
