"""Texts as Telegram takes them: Markdown as Telegram's HTML, pieces within the limit of a message, and text to be spoken.

Language models write Markdown. Telegram knows a few tags, no headings, lists or tables, and refuses a message with a mistake in
it. markdown-it-py, which rich depends on, parses what no regular expression does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from markdown_it import MarkdownIt
from markdown_it.token import Token

from eardrum import spoken_text

MAX_MESSAGE_LENGTH = 4096
"""Longest message, in units of UTF-16."""

MAX_PIECES = 4
"""Messages that an answer is split into; a longer one is a document."""

MAX_SPOKEN_LENGTH = 2000
"""Characters of an answer that are spoken, about two minutes; the text has all of it."""

INLINE_TAGS = {
    "strong_open": "<b>",
    "strong_close": "</b>",
    "em_open": "<i>",
    "em_close": "</i>",
    "s_open": "<s>",
    "s_close": "</s>",
    "link_close": "</a>",
}
CELL_END = " | "
BLOCK_MARKS = {
    "heading_open": ("<b>", 0),
    "heading_close": ("</b>", 2),
    "hr": ("———", 2),
    "th_close": (CELL_END, 0),
    "td_close": (CELL_END, 0),
    "tr_close": ("", 1),
    "table_close": ("", 2),
}
"""Marks of blocks that Telegram has no tag for, and the line breaks behind each."""

SENTENCE_ENDS = tuple(".!?…:。！？")  # noqa: RUF001
THOUGHTS = re.compile(r"<think>.*?(?:</think>|\Z)\s*", re.DOTALL)
"""The thinking of models whose server leaves it in the answer."""


def count_units(text: str) -> int:
    """Count the units of UTF-16, in which Telegram measures messages: most emoji are two."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def cut_text(text: str, limit: int, *, from_end: bool = False) -> str:
    """Return the beginning of a text, or its end, within so many units of UTF-16; an ellipsis stands for the rest.

    Empty if the limit is no more than 0.
    """
    if limit <= 0:
        return ""
    if count_units(text) <= limit:
        return text
    kept = text[-limit:] if from_end else text[:limit]
    while (excess := count_units(kept) - limit + 1) > 0:
        fewer = (excess + 1) // 2  # no letter has more than two
        kept = kept[fewer:] if from_end else kept[:-fewer]
    return f"…{kept}" if from_end else f"{kept}…"


def split_text(text: str, limit: int = MAX_MESSAGE_LENGTH) -> list[str]:
    """Split a text into pieces within the limit: at paragraphs, else lines, else sentences, else anywhere.

    A fenced block of code that is cut in two is closed in the first piece and opened again in the second.
    """
    pieces: list[str] = []
    rest = text.strip()
    while count_units(rest) > limit:
        fence = ""
        at = _find_cut(rest, limit - 16)
        head = rest[:at]
        fences = re.findall(r"^```.*$", head, re.MULTILINE)
        if len(fences) % 2:
            fence = f"{fences[-1][:40]}\n"
            head = head.rstrip() + "\n```"
        pieces.append(head.strip())
        rest = fence + rest[at:].strip("\n" if fence else None)
    return [*pieces, rest] if rest else pieces


def _find_cut(text: str, limit: int) -> int:
    """Return the position of the last good place to cut within `limit`, in the second half of what fits if there is one."""
    most = len(text[:limit])
    while (excess := count_units(text[:most]) - limit) > 0:
        most -= (excess + 1) // 2
    for mark in ("\n\n", "\n", ". ", " "):
        at = text.rfind(mark, most // 2, most)
        if at > 0:
            return at + len(mark)
    return most


def remove_thoughts(text: str) -> str:
    """Remove a model's thinking from its answer."""
    return THOUGHTS.sub("", text) if "<think>" in text else text


def render_html(markdown: str) -> str:
    """Render Markdown as Telegram's HTML."""
    return _HtmlWriter().render(_get_parser().parse(markdown))


def extract_spoken_text(markdown: str, limit: int = MAX_SPOKEN_LENGTH) -> str:
    """Return the sentences of an answer that can be spoken, at most `limit` characters; empty if there are none.

    Eardrum's own speech route does the same; other servers read code and emoji aloud.
    """
    text = ""
    for sentence in spoken_text.cut_text(markdown):
        longer = f"{text}\n{sentence if sentence.endswith(SENTENCE_ENDS) else f'{sentence}.'}".lstrip()
        if len(longer) > limit:
            break
        text = longer
    return text


def _get_parser() -> MarkdownIt:
    return MarkdownIt("commonmark").enable(["strikethrough", "table"])


class _HtmlWriter:
    """Writes the tokens of a Markdown text as Telegram's HTML."""

    def __init__(self) -> None:
        self._text = ""
        self._lists: list[int] = []
        """The number of the next item of each open list, 0 for lists without numbers."""

    def render(self, tokens: Sequence[Token]) -> str:
        """Return the whole text."""
        for token in tokens:
            self._write_block(token)
        return self._text.strip()

    def _write_block(self, token: Token) -> None:
        if token.type in BLOCK_MARKS:
            mark, breaks = BLOCK_MARKS[token.type]
            self._text = self._text.removesuffix(CELL_END) if token.type == "tr_close" else self._text
            self._text += mark
            self._end_line(breaks)
            return
        match token.type:
            case "inline":
                self._text += "".join(map(_render_inline, token.children or ()))
            case "paragraph_close":
                self._end_line(1 if token.hidden or self._lists else 2)
            case "fence" | "code_block":
                self._write_code(token)
            case "html_block":
                self._text += escape(token.content, quote=False)
                self._end_line(2)
            case "blockquote_open" | "blockquote_close":
                self._write_quote(token)
            case _:
                self._write_list(token)

    def _write_list(self, token: Token) -> None:
        match token.type:
            case "bullet_list_open":
                self._lists.append(0)
            case "ordered_list_open":
                self._lists.append(int(token.attrs.get("start", 1)))
            case "bullet_list_close" | "ordered_list_close":
                self._lists.pop()
                self._end_line(1 if self._lists else 2)
            case "list_item_open":
                number = self._lists[-1]
                self._text += "  " * (len(self._lists) - 1) + (f"{number}. " if number else "• ")
                self._lists[-1] += bool(number)

    def _write_code(self, token: Token) -> None:
        language = re.match(r"[\w+#-]*", token.info.strip())
        name = language[0] if language else ""
        code = escape(token.content.rstrip("\n"), quote=False)
        self._text += f'<pre><code class="language-{name}">{code}</code></pre>' if name else f"<pre>{code}</pre>"
        self._end_line(1)

    def _write_quote(self, token: Token) -> None:
        """Write a quotation. Telegram refuses one inside another: only the outermost is marked."""
        if token.level:
            return
        if token.type == "blockquote_open":
            self._text += "<blockquote>"
        else:
            self._text = self._text.rstrip("\n") + "</blockquote>"
            self._end_line(2)

    def _end_line(self, breaks: int) -> None:
        """End the line, and with two breaks the paragraph; with none it continues."""
        if breaks:
            self._text = self._text.rstrip("\n") + "\n" * breaks


def _render_inline(token: Token) -> str:
    match token.type:
        case "code_inline":
            return f"<code>{escape(token.content, quote=False)}</code>"
        case "softbreak" | "hardbreak":
            return "\n"
        case "link_open":
            return f'<a href="{escape(str(token.attrs.get("href", "")))}">'
        case "text" | "html_inline" | "image":
            return escape(token.content, quote=False)
    return INLINE_TAGS.get(token.type, "")
