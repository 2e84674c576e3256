"""The languages of speech models: ISO 639 codes, English names, and the spellings that clients use."""

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

LANGUAGE_NAMES: dict[str, str] = dict(entry.strip().split(" ", 1) for entry in _TABLE.split("|"))
"""ISO 639 code to lower-case English name, in Whisper's spelling."""

_CODES = {name: code for code, name in LANGUAGE_NAMES.items()} | {
    "burmese": "my",
    "castilian": "es",
    "flemish": "nl",
    "farsi": "fa",
    "mandarin": "zh",
    "javanese": "jw",
    "jv": "jw",
    "nb": "no",
    "iw": "he",
    "in": "id",
    "ji": "yi",
    "mo": "ro",
}

_LONG_TABLE = """
af afr|am amh|ar ara arb|as asm|az aze azj|ba bak|be bel|bg bul|bn ben|bo bod tib|br bre|bs bos|ca cat|cs ces cze|
cy cym wel|da dan|de deu ger|el ell gre|en eng|es spa|et est ekk|eu eus baq|fa fas per pes|fi fin|fo fao|fr fra fre|
gl glg|gu guj|ha hau|haw haw|he heb|hi hin|hr hrv|ht hat|hu hun|hy hye arm|id ind|is isl ice|it ita|ja jpn|jw jav|
ka kat geo|kk kaz|km khm|kn kan|ko kor|la lat|lb ltz|ln lin|lo lao|lt lit|lv lav lvs|mg mlg plt|mi mri mao|mk mkd mac|
ml mal|mn mon khk|mr mar|ms msa may zsm|mt mlt|my mya bur|ne nep npi|nl nld dut|nn nno|no nor nob|oc oci|pa pan|
pl pol|ps pus pbt|pt por|ro ron rum mol|ru rus|sa san|sd snd|si sin|sk slk slo|sl slv|sn sna|so som|sq sqi alb als|
sr srp|su sun|sv swe|sw swa swh|ta tam|te tel|tg tgk|th tha|tk tuk|tl tgl fil|tr tur|tt tat|uk ukr|ur urd|uz uzb uzn|
vi vie|yi yid ydd|yo yor|yue yue|zh zho chi cmn
"""

_LONG_CODES = {long: entry.split()[0] for entry in _LONG_TABLE.split("|") for long in entry.split()[1:]}
"""ISO 639-2 (both codes, if there are two) and 639-3 codes, which media files and servers use, to the codes here."""

UNSPECIFIED = ("", "auto", "null", "none", "multi", "und", "mul", "mis", "zxx")
"""Values that name no language: empty, several languages (`mul`) or an unknown one (`und`), as in media files."""

LOCAL_USE_CODE = re.compile("q[a-t][a-z]")
"""ISO 639-2 codes for local use: television uses `qaa` for the original language, whichever that is."""


def parse_language(spelled: str | None, *, param: str = "language") -> str | None:
    """Parse a language as clients spell it ("de", "de-AT", "pt_BR", "deu", "ger", "German") to its ISO 639 code; empty is None.

    Raises:
        InvalidRequestError: the language is unknown; the error names the field `param`.
    """
    wanted = (spelled or "").strip().lower()
    first = re.split(r"[-_]", wanted)[0]
    if wanted in UNSPECIFIED or (first and first in UNSPECIFIED) or LOCAL_USE_CODE.fullmatch(first):
        return None
    for candidate in (wanted, first):
        if candidate in LANGUAGE_NAMES:
            return candidate
        if candidate in _CODES:
            return _CODES[candidate]
        if candidate in _LONG_CODES:
            return _LONG_CODES[candidate]
    raise InvalidRequestError(
        f"Unknown language {(spelled or '')[:80]!r}: send an ISO 639 code such as 'en' or 'deu', or leave it out.", param=param
    )


def get_language_name(code: str) -> str:
    """Return the English name of a code, in the spelling of OpenAI's verbose_json; an unknown code is returned as it is."""
    return LANGUAGE_NAMES.get(code, code)


def find_language_in_name(name: str) -> str | None:
    """Return the language at the end of a model's name ("tiny-en", "base.en", "base-ja"), if any."""
    last = re.split(r"[-._/]", name.lower())[-1]
    return last if last in LANGUAGE_NAMES else None
