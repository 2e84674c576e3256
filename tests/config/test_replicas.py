"""Runners on other machines, in the config."""

from __future__ import annotations

import pytest

from tests.config.conftest import Reader, Refuser, list_warnings

TOKEN = "0123456789abcdef0123"


def write_replicas(replicas: str, more: str = "") -> str:
    return f"models:\n  m:\n    engine: moonshine\n{more}    replicas: {replicas}\n"


def test_addresses_and_token(read_config: Reader) -> None:
    text = write_replicas('{addresses: ["http://gpu1:8101", "https://gpu2/"], token: "${env.RUNNER_TOKEN}"}')
    loaded = read_config(text, RUNNER_TOKEN=TOKEN)
    replicas = loaded.settings.models["m"].replicas
    assert (replicas.addresses, replicas.token) == (("http://gpu1:8101", "https://gpu2/"), TOKEN)
    assert list_warnings(loaded) == []


@pytest.mark.parametrize(
    ("replicas", "says"),
    [
        ('{addresses: ["gpu1:8101"]}', "models.m.replicas.addresses.0 must be an address such as http://"),
        ('{addresses: ["ftp://gpu1"]}', "models.m.replicas.addresses.0 must be an address such as http://"),
        ('{addresses: ["http://localhost:1", "http://localhost:1/"]}', "http://localhost:1/ is there twice"),
        ('{addresses: ["http://me:secret@localhost:1"]}', "must be an address alone: the token stands in `token`"),
        ('{addresses: ["http://localhost:1"], token: "short"}', "has fewer than 16 characters"),
        ('{addresses: ["http://localhost:1"], token: "twenty letters and a space"}', "characters that no header can hold"),
    ],
)
def test_what_is_wrong_with_them(get_refusal: Refuser, replicas: str, says: str) -> None:
    message = get_refusal(write_replicas(replicas))
    assert says in message
    assert "secret" not in message


def test_a_runner_serves_one_model(get_refusal: Refuser) -> None:
    text = write_replicas('{addresses: ["http://localhost:1"]}') + (
        '  n:\n    engine: moonshine\n    replicas: {addresses: ["http://localhost:1"]}\n'
    )
    assert "http://localhost:1 is a replica of m already, and a runner serves one model" in get_refusal(text)


def test_a_process_of_its_own_and_replicas_exclude_each_other(get_refusal: Refuser) -> None:
    text = write_replicas('{addresses: ["http://localhost:1"]}', "    cmd: serve\n    proxy: http://localhost:2\n")
    message = get_refusal(text)
    assert "models.m has both `cmd` and `replicas`" in message
    assert "models.m has both `proxy` and `replicas`" in message


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            write_replicas('{addresses: ["http://gpu1:8101"]}'),
            "models.m.replicas.token is empty, but http://gpu1:8101 is another",
        ),
        (write_replicas(f"{{token: {TOKEN}}}"), "models.m.replicas.token has no effect"),
        (
            write_replicas('{addresses: ["http://localhost:1"]}', "    batch_size: 4\n"),
            "models.m.batch_size has no effect with `replicas`: set it for the runners",
        ),
    ],
)
def test_what_is_odd_about_them(read_config: Reader, text: str, says: str) -> None:
    (warning,) = list_warnings(read_config(text))
    assert says in warning


def test_on_this_machine_no_token_is_needed(read_config: Reader) -> None:
    text = write_replicas('{addresses: ["http://localhost:1", "http://127.0.0.1:2", "http://[::1]:3"]}')
    assert list_warnings(read_config(text)) == []
