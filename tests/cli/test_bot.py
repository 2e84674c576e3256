"""The command `bot telegram` reads its token and its allow-list, and says what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from eardrum import config
from eardrum.cli import bot, main
from eardrum.errors import ConfigError
from tests.fake_telegram import TOKEN


def test_the_token_comes_from_the_environment_or_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EARDRUM_TELEGRAM_TOKEN", TOKEN)
    assert bot.read_token(None) == TOKEN
    file = tmp_path / "token"
    file.write_text(f"{TOKEN[:-1]}9\n")
    assert bot.read_token(file) == f"{TOKEN[:-1]}9"


@pytest.mark.parametrize(
    ("token", "message"), [("", "needs a token: get one from @BotFather"), ("abc", "no token of a Telegram bot")]
)
def test_a_missing_or_wrong_token_is_named(token: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARDRUM_TELEGRAM_TOKEN", token)
    with pytest.raises(ConfigError, match=message):
        bot.read_token(None)


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        bot.read_token(tmp_path / "nothing")


def test_a_server_with_the_same_environment_does_not_mind() -> None:
    names = ("EARDRUM_TELEGRAM_TOKEN", "EARDRUM_TELEGRAM_ALLOW", "EARDRUM_TELEGRAM_API")
    assert config.load_settings(environment=dict.fromkeys(names, "5")) == config.load_settings(environment={})


@pytest.mark.parametrize(
    ("option", "message"),
    [("--language=klingonese", "--language: Unknown language"), ("--telegram-api=localhost:8081", "begins with http://")],
)
def test_options_that_are_wrong_are_named(option: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARDRUM_TELEGRAM_TOKEN", TOKEN)
    with pytest.raises(ConfigError, match=message):
        main.app(["bot", "telegram", "--allow=5", option], standalone_mode=False)


def test_help_explains_commands_of_two_words(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main.app(["help", "bot", "telegram"])
    assert "--chat-model" in capsys.readouterr().out


@pytest.mark.parametrize(("given", "ids"), [(["1", "-2"], {1, -2}), (["1, 2 -1003"], {1, 2, -1003})])
def test_ids_are_separated_as_one_likes(given: list[str], ids: set[int]) -> None:
    assert bot.parse_ids(given) == ids


@pytest.mark.parametrize(
    ("given", "message"), [([], "answers only users and groups that you allow"), (["@ann"], "'@ann' is none")]
)
def test_without_ids_the_bot_does_not_start(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bot.parse_ids(given)
