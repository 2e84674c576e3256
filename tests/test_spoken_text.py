"""Text is cleaned and cut into sentences, however it arrives."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eardrum.spoken_text import MAX_SENTENCE_CHARS, SentenceCutter, clean_sentence, cut_text, is_ssml

DOCUMENT = """# Weather report

Hello **World**! This is `code` and a [link](https://x.org/a?b=1). See https://user:pw@www.example.com:8080/path?q=1.
Dr. Smith paid 3.5 euros on the 3. of May, i.e. yesterday.
A wrapped
line goes on 😀👍🏽.

```python
print("Not this. Nor this.")
```
- item one
- [ ] item two
1. First
2. Second

| City | Degrees |
|------|---------|
| Rome | 30 °C   |

> Quoted words.
你好。我是中国人。
"""

SENTENCES = [
    "Weather report",
    "Hello World!",
    "This is code and a link.",
    "See example.com.",
    "Dr. Smith paid 3.5 euros on the 3. of May, i.e. yesterday.",
    "A wrapped line goes on.",
    "item one",
    "item two",
    "First",
    "Second",
    "City, Degrees",
    "Rome, 30 °C",
    "Quoted words.",
    "你好。",
    "我是中国人。",
]


def feed_in_pieces(text: str, size: int) -> list[str]:
    cutter = SentenceCutter()
    found = [sentence for at in range(0, len(text), size) for sentence in cutter.feed(text[at : at + size])]
    return found + cutter.finish()


def test_markdown_becomes_sentences() -> None:
    assert cut_text(DOCUMENT) == SENTENCES


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_pieces_of_any_size_make_the_same_sentences(size: int) -> None:
    assert feed_in_pieces(DOCUMENT, size) == SENTENCES


def test_a_sentence_is_there_before_the_text_ends() -> None:
    cutter = SentenceCutter()
    assert cutter.feed("The first sentence is comp") == []
    assert cutter.feed("lete. T") == ["The first sentence is complete."]
    assert cutter.feed("he second one") == []
    assert cutter.finish() == ["The second one"]


def test_code_that_still_arrives_is_not_spoken() -> None:
    cutter = SentenceCutter()
    assert cutter.feed("Look:\n``") + cutter.feed('`\nprint("One. Two. Three.") ') == ["Look:"]
    assert cutter.feed("\n```\nDone.\n") + cutter.finish() == ["Done."]


@pytest.mark.parametrize(
    ("written", "spoken"),
    [
        ("**bold**, *emph*, __strong__, _under_, ~~gone~~", "bold, emph, strong, under, gone"),
        ("2*3*4 is 24 and snake_case_name stays", "2*3*4 is 24 and snake_case_name stays"),
        ("<b>bold</b> &amp; <br/>more", "bold & more"),
        ('![a cat](cat.png) and [text](http://x.org "title")', "a cat and text"),
        ("As shown before [3], and [^4].", "As shown before, and."),
        ("go to (https://www.example.com/a_b?c#d)!", "go to (example.com)!"),
        ("3 < 4 and 5 > 2", "3 < 4 and 5 > 2"),
        ("Fine 👍🏽 🇩🇪 © 2026 ™", "Fine © 2026 ™"),
        ("👍", ""),
        ("... — !", ""),
        ("", ""),
    ],
)
def test_marks_are_removed_and_text_stays(written: str, spoken: str) -> None:
    assert clean_sentence(written) == spoken


@pytest.mark.parametrize(
    "text", ["At 5 p.m. she met J. Smith vs. Dr. No.", "z.B. am 24. Dezember.", "It costs $3.50 at 10.30 a.m. sharp."]
)
def test_full_stops_inside_a_sentence(text: str) -> None:
    assert cut_text(text) == [text]


def test_a_long_text_without_full_stops_is_cut_between_words() -> None:
    text = "word " * 600
    for found in (cut_text(text), feed_in_pieces(text, 4)):
        assert " ".join(found) == text.strip()
        assert all(len(sentence) <= MAX_SENTENCE_CHARS for sentence in found)


def test_a_long_sentence_is_cut_at_a_clause() -> None:
    first = "He said that this would go on for a while " * 5
    found = cut_text(f"{first.strip()}, and it did go on " + "and on " * 30)
    assert found[0] == f"{first.strip()},"
    assert all(len(sentence) <= MAX_SENTENCE_CHARS for sentence in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("<speak>Hi</speak>", True), ('<?xml version="1.0"?>\n<SPEAK v="1">', True), ("speak <b>up</b>", False)],
)
def test_ssml_is_recognised(text: str, expected: bool) -> None:
    assert is_ssml(text) is expected


@given(st.text(alphabet=st.sampled_from("ab. \n*_`#|-<>[]()!:/1😀你。ß"), max_size=400), st.integers(1, 9))
def test_any_text_gives_bounded_sentences_with_words(text: str, size: int) -> None:
    for sentence in feed_in_pieces(text, size):
        assert 0 < len(sentence) <= MAX_SENTENCE_CHARS
        assert any(letter.isalnum() for letter in sentence)


HOSTILE = {
    part: part * (20_000 // len(part)) for part in ("*", "<a", "[", "![](", "http://", ". ", "| ", "- ", "<!--", "`", "a,", "1. ")
}
HOSTILE |= {
    "full stops": "." * 20_000 + "a",
    "brackets": "[" * 19_000 + ". A",
    "comments": "<!--" * 4_900 + "a. A",
    "links": "[](" * 6_600 + "a. A",
    "underscores": "a" + "_" * 19_000 + "b. A",
    "rules": "-" * 20_000 + "a",
    "rules of tables": "|-:" * 6_600 + "a",
    "addresses": "http://" + "." * 19_000 + "a. A",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_texts_take_no_time(text: str) -> None:
    """It is the event loop that cuts them."""
    began = time.thread_time()
    cut_text(text)
    assert time.thread_time() - began < 1.5
