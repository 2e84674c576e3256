"""The languages speech models know: ISO 639 codes and English names, and how clients spell them."""

from __future__ import annotations

import re

from eardrum.errors import InvalidRequestError

_TABLE = """
af afrikaans|am amharic|ar arabic|as assamese|az azerbaijani|ba bashkir|be belarusian|bg bulgarian|bn bengali|
bo tibetan|br breton|bs bosnian|ca catalan|cs czech|cy welsh|da danish|de german|el greek|en english|es spanish|
et estonian|eu basque|fa persian|fi finnish|fo faroese|fr french|gl galician|gu gujarati|ha hausa|haw hawaiian|
he hebrew|hi hindi|hr croatian|ht haitian creole|hu hungarian|hy armenian|id indonesian|is icelandic|it italian|
ja japanese|jw javanese|ka georgian|kk kazakh|km khmer|kn kannada|ko korean|la latin|lb luxembourgish|ln lingala|
lo lao|lt lithuanian|lv latvian|mg malagasy|mi maori|mk macedonian|ml malayalam|mn mongolian|mr marathi|ms malay|
mt maltese|my myanmar|ne nepali|nl dutch|nn nynorsk|no norwegian|oc occitan|pa punjabi|pl polish|ps pashto|
pt portuguese|ro romanian|ru russian|sa sanskrit|sd sindhi|si sinhala|sk slovak|sl slovenian|sn shona|so somali|
sq albanian|sr serbian|su sundanese|sv swedish|sw swahili|ta tamil|te telugu|tg tajik|th thai|tk turkmen|
tl tagalog|tr turkish|tt tatar|uk ukrainian|ur urdu|uz uzbek|vi vietnamese|yi yiddish|yo yoruba|yue cantonese|
zh chinese
"""

NAMES: dict[str, str] = dict(entry.strip().split(" ", 1) for entry in _TABLE.split("|"))
"""ISO 639 code to lower-case English name, in Whisper's spelling."""

_CODES = {name: code for code, name in NAMES.items()} | {
    "burmese": "my",
    "castilian": "es",
    "flemish": "nl",
    "farsi": "fa",
    "mandarin": "zh",
    "javanese": "jw",
    "jv": "jw",
    "nb": "no",
    "iw": "he",
    "fil": "tl",
}


def language_code(spelled: str | None, *, param: str = "language") -> str | None:
    """The ISO 639 code of a language as clients spell it: "de", "de-AT", "pt_BR", "German"; empty means None.

    Raises:
        InvalidRequestError: nothing the table knows; it names the field `param`.
    """
    wanted = (spelled or "").strip().lower()
    if wanted in ("", "auto", "null", "none", "multi"):
        return None
    for candidate in (wanted, re.split(r"[-_]", wanted)[0]):
        if candidate in NAMES:
            return candidate
        if candidate in _CODES:
            return _CODES[candidate]
    raise InvalidRequestError(
        f"Unknown language {spelled!r}: send an ISO 639 code such as 'en' or 'de', or leave it out.", param=param
    )


def language_name(code: str) -> str:
    """The English name of a code, as OpenAI's verbose_json spells it; the code itself when it is unknown."""
    return NAMES.get(code, code)


def language_in_name(name: str) -> str | None:
    """The language a model's name ends with ("tiny-en", "base.en", "base-ja"), if it does."""
    last = re.split(r"[-._/]", name.lower())[-1]
    return last if last in NAMES else None
