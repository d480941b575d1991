# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates for TLS, in files as QEMU and libvirt want them."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

LOCALLY = "IP:127.0.0.1,DNS:localhost"


def make_keys(directory: Path, names: str = LOCALLY,
              roles: Sequence[str] = ("server", "client")) -> Path:
    """An authority, and what it has signed for either side. Returns where it is."""
    directory.mkdir()

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)

    def path(name: str) -> str:
        return str(directory / name)

    # Or QEMU makes some for each server, which takes it between 0.1 and 3 seconds.
    openssl("genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:ffdhe2048",
            "-out", path("dh-params.pem"))
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-days", "2", "-subj", "/CN=authority",
            "-addext", "keyUsage=critical,keyCertSign",
            "-keyout", path("ca-key.pem"), "-out", path("ca-cert.pem"))
    for role in roles:
        (directory / "extensions").write_text(
            "basicConstraints=critical,CA:FALSE\nkeyUsage=critical,digitalSignature\n"
            f"extendedKeyUsage={role}Auth\nsubjectAltName={names}\n")
        openssl("req", *key, "-subj", f"/CN={role}",
                "-keyout", path(f"{role}-key.pem"), "-out", path("request"))
        openssl("x509", "-req", "-in", path("request"), "-days", "2", "-CAcreateserial",
                "-CA", path("ca-cert.pem"), "-CAkey", path("ca-key.pem"),
                "-extfile", path("extensions"), "-out", path(f"{role}-cert.pem"))
    return directory
