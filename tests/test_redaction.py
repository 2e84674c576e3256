"""What is covered of commands, addresses and lines, and what stays readable."""

from __future__ import annotations

import pytest

from eardrum import redaction
from eardrum.config import Settings
from eardrum.config.settings import find_secrets
from eardrum.errors import UpstreamError


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("llama-server --api-key s3cret-9 -m a.gguf", "llama-server --api-key *** -m a.gguf"),
        ("llama-server --api-key=s3cret-9 -c 4096", "llama-server --api-key=*** -c 4096"),
        ("llama-server --api-key 'two words' -c 1", "llama-server --api-key '***' -c 1"),
        ("docker run -e HF_TOKEN=hf_abc --env=API_KEY=x image", "docker run -e HF_TOKEN=*** --env=API_KEY=*** image"),
        ("sh -c 'OPENAI_API_KEY=abc exec prog --password p'", "sh -c 'OPENAI_API_KEY=*** exec prog --password ***'"),
        ("curl -H 'Authorization: Bearer abcdefgh' http://x", "curl -H 'Authorization: Bearer ***' http://x"),
        ("curl -H 'x-api-key: abc' x", "curl -H 'x-api-key: ***' x"),
        ("""prog '{"api_key": "abc", "n": 1}'""", """prog '{"api_key": "***", "n": 1}'"""),
        ("prog --api_key abc --clientSecret=def", "prog --api_key *** --clientSecret=***"),
        ("prog --at http://user:pw@host:1/v1", "prog --at http://***@host:1/v1"),
        ("https://key-alone@host/v1", "https://***@host/v1"),
        ("prog\n  --api-key abc\n  -m x", "prog\n  --api-key ***\n  -m x"),
    ],
)
def test_secrets_in_commands_are_covered(command: str, shown: str) -> None:
    assert redaction.redact_command(command) == shown


@pytest.mark.parametrize(
    "command",
    [
        "llama-server --max-tokens 100 --tokenizer x -m /m/key.gguf --cache-type-k q8_0",
        "prog --api-key-file /run/keys/a --ssl-key-file /k.pem",
        "prog --api-key --verbose",
        "prog user@host http://host/a@b mailto:a@b.c",
        "vllm serve author/monkey --port 5800",
    ],
)
def test_what_is_no_secret_stays(command: str) -> None:
    assert redaction.redact_command(command) == command


def test_secrets_of_a_config_are_covered_wherever_they_stand() -> None:
    settings = Settings.model_validate(
        {
            "api_keys": ["client-key-1"],
            "peers": {"p": {"proxy": "http://u:peer-pass@h", "api_key": "peer-key-1", "models": ["m"]}},
            "models": {
                "a": {
                    "cmd": "prog --api-key cmd-key-1",
                    "env": ["MY_TOKEN=env-token-1", "LANG=plain-value"],
                    "proxy": "http://h:1",
                },
                "b": {"options": {"api_key": "option-key-1", "headers": {"x-api-key": "header-key-1", "accept": "text/plain"}}},
            },
        }
    )
    found = {"client-key-1", "peer-pass", "peer-key-1", "cmd-key-1", "env-token-1", "option-key-1", "header-key-1"}
    assert {value for value in find_secrets(settings) if value} == found
    redaction.add_secrets(find_secrets(settings))
    for secret in found:
        assert redaction.redact(f"starting with [{secret}], and xx{secret}xx") == f"starting with [***], and xx{secret}xx"
    assert redaction.redact("LANG=plain-value text/plain") == "LANG=plain-value text/plain"


def test_errors_do_not_tell_logins() -> None:
    assert UpstreamError("http://u:pw@host:1 cannot be reached.").message == "http://***@host:1 cannot be reached."
