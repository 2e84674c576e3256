"""Scripts of languages, and the records that cross the process boundary."""

from __future__ import annotations

import pytest

from eardrum.errors import UnspeakableTextError
from eardrum.speech import SpeechFormat, SpeechRequest, check_script
from eardrum.transcription import Capabilities


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Plain words.", "en-US"),
        ("Café, naïve, Zoë and Łódź.", "en-US"),
        ("The word 你好 means hello.", "en-US"),
        ("12 + 3 = 15", "en-US"),
        ("你好，世界 and Python", "zh-CN"),
        ("こんにちは、カタカナ、漢字", "ja"),
        ("Привет мир", "ru-RU"),
        ("Ћирилица или latinica", "sr"),
        ("Ｆｕｌｌ ｗｉｄｔｈ", "en-US"),
        ("anything 你好世界", ""),
    ],
)
def test_text_in_the_voices_script_passes(text: str, language: str) -> None:
    check_script(text, language, "heart")


@pytest.mark.parametrize(
    ("text", "language"),
    [("你好，世界。", "en-US"), ("Привет, мир", "de-DE"), ("שלום", "en"), ("Καλημέρα", "ru"), ("हिन्दी में", "en-GB")],
)
def test_text_in_another_script_is_refused_by_name(text: str, language: str) -> None:
    with pytest.raises(UnspeakableTextError, match="The voice heart speaks") as refused:
        check_script(text, language, "heart")
    assert (refused.value.status, refused.value.param, refused.value.code) == (400, "input", "unspeakable_text")


def test_records_cross_the_boundary() -> None:
    request = SpeechRequest("heart", 1.5, SpeechFormat.FLAC, 48_000, streamed=False)
    assert SpeechRequest.from_json(request.to_json()) == request
    assert request.is_whole
    assert not SpeechRequest(format=SpeechFormat.WAV).is_whole
    can = Capabilities(speak=True, languages=("en",), voices=(("heart", "en-US"),))
    assert Capabilities.from_json(can.to_json()) == can
