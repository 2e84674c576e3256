"""aiohttp's own TLS contexts stay empty, and nobody else's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.certificates import create_certificate

PROGRAM = """
import json, ssl, threading
from eardrum import aiohttp_import

def count_certificates():
    return ssl.create_default_context().cert_store_stats()["x509"]

counts = {"before": count_certificates()}
with aiohttp_import._skip_default_certificates():
    counts["inside"] = count_certificates()
    thread = threading.Thread(target=lambda: counts.update(thread=count_certificates()))
    thread.start()
    thread.join()
aiohttp_import.aiohttp.ClientTimeout()
counts["aiohttp"] = aiohttp_import.aiohttp.connector._SSL_CONTEXT_VERIFIED.cert_store_stats()["x509"]
counts["after"] = count_certificates()
print(json.dumps(counts))
"""


def test_only_contexts_of_aiohttp_lack_the_authorities_of_the_system(tmp_path: Path) -> None:
    authority, _ = create_certificate(tmp_path)
    environment = {**os.environ, "SSL_CERT_FILE": str(authority), "SSL_CERT_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == {"before": 1, "inside": 0, "thread": 1, "aiohttp": 0, "after": 1}
