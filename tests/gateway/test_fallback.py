"""Which model serves a request next, after each kind of failure."""

from __future__ import annotations

import pytest

from eardrum.errors import BusyError, EardrumError, InvalidRequestError, RunnerCrashedError, ShuttingDownError
from eardrum.gateway.fallback import FallbackPlan
from eardrum.gateway.models.inventory import Model
from eardrum.transcription import Capabilities


def create_plan(*ids: str) -> FallbackPlan:
    return FallbackPlan([Model(id, "moonshine", None, Capabilities(), "config") for id in ids])


def test_a_failed_model_is_followed_by_the_next_one() -> None:
    plan = create_plan("a", "b")
    plan.handle_failure(BusyError("a is busy"), repeatable=True)
    assert plan.model.id == "b"
    with pytest.raises(BusyError, match="b is busy"):
        plan.handle_failure(BusyError("b is busy"), repeatable=True)


def test_a_crash_is_followed_by_the_same_model_until_the_request_is_proven_to_cause_it() -> None:
    plan = create_plan("a", "b")
    for alone in (False, True):
        assert plan.model.id == "a"
        plan.suspicion.record_crash(alone=alone, within_s=1.0)
        plan.handle_failure(RunnerCrashedError("a died"), repeatable=True)
    assert plan.model.id == "b"
    assert not plan.suspicion.crashes, "the next model starts without a suspicion"


@pytest.mark.parametrize("error", [InvalidRequestError("wrong"), ShuttingDownError("over")])
def test_an_error_that_no_other_model_can_mend_ends_the_request(error: EardrumError) -> None:
    with pytest.raises(type(error)):
        create_plan("a", "b").handle_failure(error, repeatable=True)


def test_text_that_was_sent_ends_the_request_at_its_first_failure() -> None:
    with pytest.raises(RunnerCrashedError):
        create_plan("a", "b").handle_failure(RunnerCrashedError("a died"), repeatable=False)
