"""The fields of TingWu's forms."""

from __future__ import annotations

import pytest

from eardrum.api.tingwu.params import AsrCompatibleForm, BatchForm, TingWuForm, TingWuParams, UrlForm, parse_form
from eardrum.errors import InvalidRequestError
from eardrum.transcription import Capabilities

ABLE = Capabilities(hotwords=True)


def parse(**sent: str) -> TingWuParams:
    return parse_form(TingWuForm, {name: [value] for name, value in sent.items()})


def test_what_tingwus_page_sends() -> None:
    params = parse(
        with_speaker="true",
        apply_hotword="true",
        apply_llm="false",
        llm_role="default",
        hotwords="人工智能 机器学习",
        asr_options='{"speaker": {"label_style": "zh"}}',
    )
    assert params.request.hotwords == ("人工智能", "机器学习")
    assert params.list_ignored(ABLE) == ["with_speaker", "asr_options"]
    assert params.list_ignored(Capabilities()) == ["hotwords", "with_speaker", "asr_options"]


def test_a_term_may_be_a_line() -> None:
    assert parse(hotwords="Mr. Dashwood\nNorland # a house\n\n").request.hotwords == ("Mr. Dashwood", "Norland")
    assert parse(hotwords="Dashwood, Norland Park").request.hotwords == ("Dashwood", "Norland Park")
    off = parse(hotwords="Dashwood", apply_hotword="false")
    assert (off.request.hotwords, off.list_ignored(ABLE)) == ((), ["hotwords"])


def test_nothing_sent() -> None:
    for params in (parse(), parse(**dict.fromkeys(TingWuForm.model_fields, ""))):
        assert (params.model, params.request.language, params.list_ignored(ABLE)) == ("", None, [])
    assert parse_form(AsrCompatibleForm, {}).list_ignored(ABLE) == []
    assert parse(other="1", model="whisper-1", language="zh").list_ignored(ABLE) == ["other"]


@pytest.mark.parametrize(
    ("form", "name", "value", "message"),
    [
        (TingWuForm, "with_speaker", "perhaps", "with_speaker must be true or false"),
        (TingWuForm, "apply_hotword", "2", "apply_hotword must be true or false"),
        (TingWuForm, "apply_llm", "gpt", "apply_llm must be true or false"),
        (TingWuForm, "language", "klingon", "Unknown language"),
        (TingWuForm, "asr_options", "{", "asr_options must be a JSON object with keys of preprocess, chunking"),
        (TingWuForm, "asr_options", "[]", "asr_options must be a JSON object"),
        (TingWuForm, "asr_options", '{"other": {}}', "asr_options must be a JSON object"),
        (AsrCompatibleForm, "file_type", "text", "file_type must be audio or video"),
        (BatchForm, "max_concurrent", "0", "max_concurrent must be a whole number from 1 to 20"),
        (UrlForm, "audio_url", "", "audio_url is required"),
    ],
)
def test_a_wrong_value_is_refused_by_name(form: type[TingWuForm], name: str, value: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        parse_form(form, {name: [value]})
    assert caught.value.param == name
