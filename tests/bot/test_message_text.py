"""Markdown becomes Telegram's HTML, long texts become pieces, answers become words to speak."""

from __future__ import annotations

import pytest

from eardrum.bot import message_text
from tests.fake_telegram import check_text

RENDERED = {
    "**bold** *slanted* ~~gone~~ `code`": "<b>bold</b> <i>slanted</i> <s>gone</s> <code>code</code>",
    "# Title\ntext": "<b>Title</b>\n\ntext",
    "one\n\ntwo\nthree": "one\n\ntwo\nthree",
    "- a\n- b\n  - c\n\nend": "• a\n• b\n  • c\n\nend",
    "3. a\n4. b": "3. a\n4. b",
    "> said\n> > twice": "<blockquote>said\n\ntwice</blockquote>",
    "a < b & c": "a &lt; b &amp; c",
    "[Eardrum](https://example.com/?a=1&b=2)": '<a href="https://example.com/?a=1&amp;b=2">Eardrum</a>',
    "```python\na < b\n\n\nc\n```\nend": '<pre><code class="language-python">a &lt; b\n\n\nc</code></pre>\nend',
    "```\nplain\n```": "<pre>plain</pre>",
    "| a | b |\n|---|---|\n| 1 | 2 |\n\nend": "a | b\n1 | 2\n\nend",
    "<b>html</b>": "&lt;b&gt;html&lt;/b&gt;",
    "a\n\n---\n\nb": "a\n\n———\n\nb",
    "**unclosed": "**unclosed",
    "snake_case_name and 2*3*4": "snake_case_name and 2<i>3</i>4",
}


@pytest.mark.parametrize("markdown", RENDERED)
def test_markdown_becomes_telegrams_html(markdown: str) -> None:
    html = message_text.render_html(markdown)
    assert html == RENDERED[markdown]
    check_text({"text": html, "parse_mode": "HTML"})


@pytest.mark.parametrize(
    ("markdown", "spoken"),
    [
        ("# Sky\n\nIt is **blue**.", "Sky.\nIt is blue."),
        ("Look: https://example.com/a?b ok", "Look: example.com ok."),
        ("See [the page](https://example.com).", "See the page."),
        ("😀👍🏽", ""),
        ("```\ncode\n```", ""),
        ("Use `pip`!", "Use pip!"),
        ("- one\n- two", "one.\ntwo."),
        ("你好。", "你好。"),
        ("---", ""),
    ],
)
def test_what_is_spoken_of_an_answer(markdown: str, spoken: str) -> None:
    assert message_text.extract_spoken_text(markdown) == spoken


def test_a_long_answer_is_spoken_up_to_the_end_of_a_sentence() -> None:
    assert message_text.extract_spoken_text("One two. Three four. Five six.", 24) == "One two.\nThree four."
    assert 1700 < len(message_text.extract_spoken_text("word " * 1000)) <= 2000


@pytest.mark.parametrize("text", ["word " * 3000, "line\n" * 3000, "x" * 9000, "😀" * 5000, "p\n\n" * 4000, "A sentence. " * 900])
def test_pieces_fit_and_lose_nothing(text: str) -> None:
    pieces = message_text.split_text(text)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert all(0 < message_text.count_units(piece) <= 4096 for piece in pieces)
    assert len(pieces) <= 2 * message_text.count_units(text) / 4096 + 1


def test_code_that_is_cut_is_code_in_both_pieces() -> None:
    pieces = message_text.split_text("```python\n" + "print('hello')\n" * 500 + "```\nend")
    assert len(pieces) == 2
    assert all(piece.startswith("```python\nprint") for piece in pieces)
    assert pieces[0].endswith("print('hello')\n```")
    assert pieces[1].endswith("```\nend")


def test_a_cut_text_says_so() -> None:
    assert message_text.cut_text("abcdef", 6) == "abcdef"
    assert message_text.cut_text("abcdefg", 6) == "abcde…"
    assert message_text.cut_text("abcdefg", 6, from_end=True) == "…cdefg"
    assert message_text.cut_text("😀" * 10, 8) == "😀😀😀…"
    assert message_text.cut_text("😀" * 10, 8, from_end=True) == "…😀😀😀"


@pytest.mark.parametrize("limit", [0, -5])
def test_where_nothing_fits_nothing_is_left(limit: int) -> None:
    assert message_text.cut_text("", limit, from_end=True) == message_text.cut_text("Some text", limit) == ""


def test_thinking_is_removed_even_before_it_ends() -> None:
    assert message_text.remove_thoughts("<think>a\nb</think>\n\nYes.") == "Yes."
    assert message_text.remove_thoughts("<think>a\nb") == ""
    assert message_text.remove_thoughts("Yes.") == "Yes."
