"""Which certificates the server takes, and what it says about the others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from eardrum import tls
from eardrum.errors import ConfigError
from tests.certificates import create_certificate


def test_a_certificate_with_its_key_beside_it_or_in_it(tmp_path: Path) -> None:
    made, key = create_certificate(tmp_path)
    both = tmp_path / "both.pem"
    both.write_bytes(made.read_bytes() + key.read_bytes())
    assert tls.create_server_context(made, key)
    assert tls.create_server_context(both, None)
    assert tls.create_server_context(None, None) is None


CASES: dict[str, tuple[Callable[[Path], tuple[Path | None, Path | None]], str]] = {
    "a key alone": (lambda folder: (None, folder / "server.key"), "tls_key is set but tls_certificate is not"),
    "no such certificate": (lambda folder: (folder / "none", None), "tls_certificate .*none cannot be read: No such file"),
    "a folder": (lambda folder: (folder, None), "tls_certificate .* cannot be read: Is a directory"),
    "no certificate in it": (lambda folder: (folder / "server.key", None), "tls_certificate .*server.key has no certificate"),
    "no such key": (lambda folder: (folder / "server.crt", folder / "none"), "tls_key .*none cannot be read: No such file"),
    "no key in it": (lambda folder: (folder / "server.crt", folder / "server.crt"), "tls_key .*server.crt has no private key"),
    "no key beside it": (lambda folder: (folder / "server.crt", None), "as there is no tls_key, has no private key"),
    "somebody else's key": (
        lambda folder: (folder / "server.crt", folder / "other.key"),
        "tls_key .*other.key is not the key of",
    ),
    "a key with a password": (lambda folder: (folder / "locked.crt", folder / "locked.key"), "tls_key .*locked.key is encrypted"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_used_is_said_with_its_setting_and_file(tmp_path: Path, case: str) -> None:
    create_certificate(tmp_path)
    create_certificate(tmp_path, "other")
    create_certificate(tmp_path, "locked", password="secret")
    files, said = CASES[case]
    with pytest.raises(ConfigError, match=said):
        tls.create_server_context(*files(tmp_path))


def test_what_a_client_is_to_trust_must_be_a_certificate(tmp_path: Path) -> None:
    made, key = create_certificate(tmp_path)
    assert tls.create_client_context(made).check_hostname
    assert not tls.create_client_context(made, by_any_name=True).check_hostname
    with pytest.raises(ConfigError, match="has no certificate"):
        tls.create_client_context(key)
