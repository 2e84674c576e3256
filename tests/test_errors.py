"""Errors cross the wall between runner and gateway as what they are."""

from __future__ import annotations

import json

import pytest

from eardrum import errors
from eardrum.errors import AudioError, EardrumError, ModelNotFoundError, error_from_json

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, EardrumError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_survives_the_wire(cls: type[EardrumError]) -> None:
    for error in (cls("What to do."), cls("Wäs…", param="language", retry_after=2.5), cls("", param=None)):
        again = error_from_json(json.loads(json.dumps(error.to_json())))
        assert type(again) is cls
        assert (again.message, again.param, again.retry_after) == (error.message, error.param, error.retry_after)
        assert str(again) == error.message


@pytest.mark.parametrize("cls", CLASSES)
def test_every_error_has_a_status_a_code_and_a_meaning(cls: type[EardrumError]) -> None:
    assert 400 <= cls.status < 600
    assert cls.code.replace("_", "").islower()
    assert cls.__doc__


def test_what_an_error_is_about_by_default() -> None:
    assert AudioError("x").param == "file"
    assert ModelNotFoundError("x").param == "model"
    assert EardrumError("x").param is None


@pytest.mark.parametrize("data", [{"error": "FromTheFutureError", "message": "New."}, {"error": "Exception", "message": "New."}])
def test_an_error_of_a_newer_runner_is_still_one(data: dict[str, str]) -> None:
    error = error_from_json(data)
    assert type(error) is EardrumError
    assert error.message == "New."
    assert error.status == 500


def test_an_error_that_says_nothing() -> None:
    assert error_from_json({}).message == ""
