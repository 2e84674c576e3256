"""Prepares text for speaking: removes markdown, addresses and emoji, and cuts it into sentences while it still arrives.

Language models write markdown, and their text comes in pieces that end anywhere. A parser of markdown needs whole documents, so
lines and sentences are cleaned here one by one.
"""

from __future__ import annotations

import html
import re
import unicodedata

MAX_SENTENCE_CHARS = 300
"""Characters that an engine gets at once. A longer sentence is cut at a clause, else between words: engines take memory for the
longest one, and no audio is sent before it is done."""

SSML = re.compile(r"\s*(<\?xml[^>]*\?>\s*)?<speak\b", re.IGNORECASE)

FENCE = re.compile(r"\s*(```|~~~)")
RULE = re.compile(r"\s*([-*_=]\s*){3,}$|(?=[^-]*-)[\s:|-]+$")
"""A line that separates, underlines a heading, or divides a table's head from its rows."""
BLOCK_START = re.compile(r"\s*(#{1,6}\s+|>\s?|[-*+•]\s+(\[[ xX]\]\s+)?|\d{1,3}[.)]\s+|\|)")
"""The beginning of a line that does not continue the paragraph before it: a heading, a quotation, an item, a table's row."""

SENTENCE_END = re.compile(r"(?<![.!?…])[.!?…]+[\"'”’»)\]*_]*\s+(?=\S)|[。！？]+[\"”’」』）]*")
CLAUSE_END = re.compile(r"[,;:–—，、；：][\"'”’»)\]]*\s*|\s[-–—]\s")

ABBREVIATIONS = frozenset(
    re.split(
        r"\s+",
        """mr mrs ms dr prof st sr jr vs etc e.g i.e no nos fig vol pp approx dept est gen col lt capt sgt rev hon inc ltd co corp
        a.m p.m u.s u.k bzw z.b d.h u.a usw ca nr str bspw evtl sog m mme mlle p.ex sig dott ecc sra dra av""",
    )
)
"""Words whose full stop rarely ends a sentence, in lower case."""

# Texts come from strangers: where a pattern could begin anywhere and run to the end, a limit keeps its time in bounds.
IMAGE_OR_LINK = re.compile(r"!?\[([^\]]{0,300})\]\([^)\s]{0,2000}(?:\s+\"[^\"]{0,300}\")?\)")
FOOTNOTE = re.compile(r"\[\^?\d{1,3}\]")
TAG = re.compile(r"</?[A-Za-z][^<>]{0,200}>|<!--.{0,1000}?-->")
ADDRESS = re.compile(r"<?(?:https?|ftp)://([^\s<>()\[\]]*[^\s<>()\[\].,;:!?…'\"])>?")
EMPHASIS = re.compile(r"\*\*+|~~+|`+|(?<!\w)\*+(?=\S)|(?<=\S)\*+(?!\w)|(?<!\w)_+(?=\S)|(?<=[^\s_])_+(?!\w)|(?<!\S)#+(?=\s)")
SPACES = re.compile(r"\s+")
LOOSE_MARK = re.compile(r"\s+([.,!?])(?!\w)")
"""A mark that something was removed in front of."""

KEPT_SYMBOLS = frozenset("°©®™№℃℉")
"""Symbols of the category of emoji that are read aloud."""
INVISIBLE = frozenset("\u200b\u200c\u200d\u2060\ufe0e\ufe0f\u20e3\ufeff\u00ad")
"""Joiners and variants of emoji, and other marks without a sound."""
SKIN_TONES = range(0x1F3FB, 0x1F400)
TAG_LETTERS = range(0xE0000, 0xE0080)


class SentenceCutter:
    """Cuts text that arrives in pieces into clean sentences. Code is left out."""

    def __init__(self) -> None:
        self._line = ""
        """The beginning of a line that is not complete."""
        self._is_continued = False
        """Whether a part of that line was cut off already, so that it begins in the middle."""
        self._paragraph = ""
        """Text of complete lines that has no end of a sentence yet."""
        self._in_code = False

    def feed(self, text: str) -> list[str]:
        """Return the sentences that `text` completes."""
        *lines, self._line = (self._line + text).replace("\r\n", "\n").split("\n")
        found = [sentence for line in lines for sentence in self._take_line(line)]
        return found + self._take_open_line()

    def finish(self) -> list[str]:
        """Return the rest of the text, which has ended."""
        found = self._take_line(self._line)
        self._line = ""
        return found + self._end_paragraph()

    def _take_line(self, line: str) -> list[str]:
        """Take a complete line."""
        is_continued, self._is_continued = self._is_continued, False
        if is_continued:
            return self._add_text(line)
        if FENCE.match(line):
            self._in_code = not self._in_code
            return self._end_paragraph()
        if self._in_code:
            return []
        if not line.strip() or RULE.match(line):
            return self._end_paragraph()
        start = BLOCK_START.match(line)
        return self._start_block(line, start[1]) if start else self._add_text(line)

    def _start_block(self, line: str, mark: str) -> list[str]:
        """Take a line that begins with a mark: it ends the paragraph before it."""
        found = self._end_paragraph()
        if mark == "|":
            cells = (cell.strip() for cell in line.strip().strip("|").split("|"))
            return found + self._add_text(", ".join(cell for cell in cells if cell)) + self._end_paragraph()
        found += self._add_text(_remove_starts(line))
        return found + (self._end_paragraph() if mark.startswith("#") else [])

    def _take_open_line(self) -> list[str]:
        """Take the sentences of a line that still continues, if it cannot turn out to be code or a table."""
        if self._in_code or self._line.lstrip().startswith(("`", "~", "|")):
            return []
        ends = _find_ends(self._line)
        if not ends and len(self._line) <= MAX_SENTENCE_CHARS:
            return []
        at = ends[-1] if ends else self._line.rfind(" ") + 1 or len(self._line)
        head, self._line = self._line[:at], self._line[at:]
        found = self._take_line(head) if head.strip() else []
        if ends:
            found += self._end_paragraph()
        self._is_continued = True
        return found

    def _add_text(self, text: str) -> list[str]:
        """Add text to the paragraph, and take the sentences that are complete."""
        self._paragraph = f"{self._paragraph} {text.strip()}" if self._paragraph else text.strip()
        ends = _find_ends(self._paragraph)
        if not ends:
            return self._cut_long_rest()
        *sentences, self._paragraph = _split_at(self._paragraph, ends)
        return [piece for sentence in sentences for piece in _clean_and_fit(sentence)] + self._cut_long_rest()

    def _cut_long_rest(self) -> list[str]:
        """Cut off what is longer than a sentence may be, so that a text without full stops is spoken as well."""
        found = []
        while len(self._paragraph) > MAX_SENTENCE_CHARS:
            at = _find_cut(self._paragraph)
            found += _clean_and_fit(self._paragraph[:at])
            self._paragraph = self._paragraph[at:].lstrip()
        return found

    def _end_paragraph(self) -> list[str]:
        rest, self._paragraph = self._paragraph, ""
        return [piece for sentence in _split_at(rest, _find_ends(rest)) for piece in _clean_and_fit(sentence)]


def cut_text(text: str) -> list[str]:
    """Cut a whole text into clean sentences. Empty if it holds nothing that can be spoken."""
    cutter = SentenceCutter()
    return cutter.feed(text) + cutter.finish()


def is_ssml(text: str) -> bool:
    """Whether the text is a document in the Speech Synthesis Markup Language."""
    return SSML.match(text) is not None


def clean_sentence(text: str) -> str:
    """Remove markup, addresses and emoji from a sentence; empty if nothing is left that can be spoken."""
    text = IMAGE_OR_LINK.sub(r"\1", text)
    text = ADDRESS.sub(_name_host, text)
    text = html.unescape(TAG.sub(" ", FOOTNOTE.sub("", text)))
    text = EMPHASIS.sub("", text)
    if not text.isascii():
        text = "".join(letter for letter in text if not _is_silent(letter))
    text = LOOSE_MARK.sub(r"\1", SPACES.sub(" ", text)).strip()
    return text if any(letter.isalnum() for letter in text) else ""


def _name_host(address: re.Match[str]) -> str:
    """Return the host of an address, which is all that people say of it."""
    host = re.split(r"[/?#]", address[1], maxsplit=1)[0].rpartition("@")[2]
    return host.removeprefix("www.").partition(":")[0]


def _is_silent(letter: str) -> bool:
    code = ord(letter)
    if letter in INVISIBLE or code in SKIN_TONES or code in TAG_LETTERS:
        return True
    return unicodedata.category(letter) == "So" and letter not in KEPT_SYMBOLS


def _remove_starts(line: str) -> str:
    """Remove the marks at the beginning of a line, such as those of an item in a quotation."""
    while start := BLOCK_START.match(line):
        line = line[start.end() :]
    return line


def _find_ends(text: str) -> list[int]:
    """Find the positions behind the ends of sentences, but not the end of the text."""
    return [found.end() for found in SENTENCE_END.finditer(text) if _ends_sentence(text, found)]


def _ends_sentence(text: str, end: re.Match[str]) -> bool:
    """Whether a match is the end of a sentence: not after an abbreviation, an initial or a number that counts."""
    if text[end.start()] != ".":
        return True
    if text[end.end() : end.end() + 1].islower():
        return False
    word = text[: end.start()].rpartition(" ")[2].lstrip("(\"'“‘")
    if word.isdigit() and len(word) <= 2:  # "on the 3. of May", "2. Second"
        return False
    return not (word.lower() in ABBREVIATIONS or (len(word) == 1 and word.isupper() and word != "I"))


def _split_at(text: str, ends: list[int]) -> list[str]:
    """Split a text at the positions; the last part is the rest."""
    starts = [0, *ends]
    return [text[start:end].strip() for start, end in zip(starts, [*ends, len(text)], strict=True)]


def _clean_and_fit(sentence: str) -> list[str]:
    """Clean a sentence and cut it if it is too long; nothing if it cannot be spoken."""
    rest, found = clean_sentence(sentence), []
    while len(rest) > MAX_SENTENCE_CHARS:
        at = _find_cut(rest)
        found.append(rest[:at].strip())
        rest = rest[at:].lstrip()
    return [piece for piece in (*found, rest) if any(letter.isalnum() for letter in piece)]


def _find_cut(text: str) -> int:
    """Find where to cut a text that is too long: behind the last clause, else the last word, that fits."""
    fitting = text[:MAX_SENTENCE_CHARS]
    clauses = [found.end() for found in CLAUSE_END.finditer(fitting) if found.end() > MAX_SENTENCE_CHARS // 3]
    space = fitting.rfind(" ")
    return clauses[-1] if clauses else space + 1 if space > 0 else MAX_SENTENCE_CHARS
