"""A setting's name in two spellings, and names that would leave a server open if they were passed over."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from eardrum.config import Settings, setting_names
from eardrum.config.setting_names import list_spellings
from tests.config.conftest import Reader, Refuser, list_warnings

LLAMA = "models: {a: {cmd: 's ${PORT}'}}\n"


@pytest.mark.parametrize(
    ("name", "both"),
    [
        ("apiKeys", {"apiKeys", "api_keys"}),
        ("tls_certificate", {"tls_certificate", "tlsCertificate"}),
        ("globalTTL", {"globalTTL", "global_ttl"}),
        ("setParamsByID", {"setParamsByID", "set_params_by_id"}),
        ("port", {"port"}),
    ],
)
def test_two_spellings(name: str, both: set[str]) -> None:
    assert list_spellings(name) == both


def _list_sections(kind: Any, seen: set[Any]) -> set[Any]:
    if isinstance(kind, type) and issubclass(kind, BaseModel) and kind not in seen:
        seen.add(kind)
        for field in kind.model_fields.values():
            _list_sections(field.annotation, seen)
    for inner in getattr(kind, "__args__", ()):
        _list_sections(inner, seen)
    return seen


def test_no_two_settings_of_a_section_have_a_spelling_in_common() -> None:
    for section in _list_sections(Settings, set()):
        tables = (setting_names.list_llama_swap_names(section), setting_names.list_former_names(section))
        names = [*section.model_fields, *(name for table in tables for name in table)]
        spellings = [spelling for name in names for spelling in list_spellings(name)]
        assert len(spellings) == len(set(spellings)) + ("setParamsByID" in spellings), section  # snake_case is our own name


def test_every_setting_is_read_in_either_spelling(read_config: Reader) -> None:
    settings = read_config(
        """
        api_keys: [one]
        start_port: 6000
        global_ttl: 30
        defaultLanguage: de
        pullMissing: true
        limits: {uploadBytes: 1G, stallTimeout: 9}
        hooks: {onStartup: {preload: [a]}}
        models:
          a:
            cmd: s ${PORT}
            check_endpoint: /up
            maxRequests: 3
            filters: {set_params_by_id: {a: {snake_case_stays: 1}}}
            options: {initialPrompt: stays}
        """
    ).settings
    assert ([key.key for key in settings.api_keys], settings.start_port, settings.default_ttl) == (["one"], 6000, 30)
    assert (settings.default_language, settings.pull_missing) == ("de", True)
    assert (settings.limits.upload_bytes, settings.limits.stall_timeout) == (10**9, 9)
    assert settings.hooks.on_startup.preload == ("a",)
    model = settings.models["a"]
    assert (model.check_endpoint, model.max_requests, model.proxy) == ("/up", 3, "http://localhost:6000")
    assert model.filters.set_params_by_id == {"a": {"snake_case_stays": 1}}
    assert model.options == {"initialPrompt": "stays"}


def test_names_of_models_are_no_settings(read_config: Reader) -> None:
    settings = read_config("models: {api_keys: {proxy: 'http://x'}, pullMissing: {proxy: 'http://y'}}").settings
    assert list(settings.models) == ["api_keys", "pullMissing"]


def test_the_environment_and_assignments_take_both_too(read_config: Reader) -> None:
    loaded = read_config(
        "api_keys: [file]", "limits.uploadBytes=7", EARDRUM_API_KEYS='["environment"]', EARDRUM_LIMITS__JSONBYTES="8"
    )
    assert [key.key for key in loaded.settings.api_keys] == ["environment"]
    assert (loaded.settings.limits.upload_bytes, loaded.settings.limits.json_bytes) == (7, 8)
    assert list_warnings(loaded) == []


def test_one_setting_in_both_spellings_is_an_error(get_refusal: Refuser) -> None:
    assert get_refusal("apiKeys: [a]\napi_keys: [b]").startswith("config.yaml:2: api_keys and apiKeys are the same setting")


def test_what_is_wrong_is_told_with_its_line(get_refusal: Refuser) -> None:
    assert get_refusal("port: 1\napi_keys: hush").startswith("config.yaml:2: The setting api_keys is wrong")
    assert get_refusal("port: 1\napiKeys: hush").startswith("config.yaml:2: The setting apiKeys is wrong")
    assert get_refusal("port: 1\nglobalTTL: x").startswith("config.yaml:2: The setting globalTTL is wrong")
    assert get_refusal("port: 1\nlimits:\n  uploadBytes: x").startswith("config.yaml:3: The setting limits.uploadBytes is wrong")


@pytest.mark.parametrize(
    "text",
    [
        *("apikeys: [a]", "api-keys: [a]", "apiKey: [a]", "APIKEYS: [a]", "apiKeyss: [a]", "keys: [a]", "api_key: a"),
        *("tls_cert: a.pem", "tls: {key: a}", "ssl_certificate: a", "tlsKeyFile: a"),
        *("limit: {upload_bytes: 1}", "Limits: {upload_bytes: 1}", "limits: {uplod_bytes: 1}"),
        *("origin: [x]", "allowed_origins: [x]", "cors: x", "host_names: [x]", "Hosts: [x]"),
        *("auth: {token: x}", "password: x", "server: {apiKeys: [a]}", "server: {api_keys: [a]}"),
        *("wyoming: {enable: false}", "log: {apiKeys: [a]}", "models: {a: {proxy: 'http://x', origins: [x]}}"),
    ],
)
def test_what_nearly_protects_is_refused(get_refusal: Refuser, text: str) -> None:
    message = get_refusal(f"{text}\n" if text.startswith("models") else LLAMA + text)
    assert "Unknown setting" in message
    assert "protect" in message


@pytest.mark.parametrize("text", ["globalTtl: 3", "zzzzzz: 1", "prot: 1", "live: {sesions: 1}", "x1: {ttl: 3}"])
def test_other_names_are_passed_over_as_before(read_config: Reader, text: str) -> None:
    assert len(list_warnings(read_config(LLAMA + text))) == 1


def test_no_keys_where_there_should_be_some_are_told(read_config: Reader) -> None:
    assert list_warnings(read_config("api_keys:")) == [
        "config.yaml:1: api_keys is empty: every client that can connect has all rights."
    ]
