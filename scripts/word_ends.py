"""Finds where each word of the phone recordings begins and ends, and writes `tests/data/phone/words.tsv`.

The texts are known, so that only the times are sought: forced alignment with the English acoustic model that the package
`pocketsphinx` carries (`pip install pocketsphinx`; nothing else here needs it). Its steps are 10 ms.
"""

from __future__ import annotations

import csv
import re

import numpy as np
from pocketsphinx import Decoder

from bench.recordings import PHONE, decode_file

NAMES = {
    "asterisk": "AE S T ER IH S K",
    "pbx": "P IY B IY EH K S",
    "blacklist": "B L AE K L IH S T",
    "mailbox": "M EY L B AA K S",
}
"""Words that the package's dictionary may lack, in its phones."""

PAUSES = {"<s>", "</s>", "<sil>", "[NOISE]", "[SPEECH]"}


def main() -> None:
    decoder = Decoder(loglevel="FATAL")
    for word, phones in NAMES.items():
        if decoder.lookup_word(word) is None:
            decoder.add_word(word, phones, True)
    rows = []
    with (PHONE / "references.tsv").open(encoding="utf-8") as table:
        for row in csv.DictReader(table, delimiter="\t"):
            rows += [(row["name"], *word) for word in align_words(decoder, row["name"], row["text"])]
    with (PHONE / "words.tsv").open("w", encoding="utf-8", newline="") as table:
        writer = csv.writer(table, delimiter="\t", lineterminator="\n")
        writer.writerow(("name", "word", "start", "end"))
        writer.writerows((name, word, f"{start:.2f}", f"{end:.2f}") for name, word, start, end in rows)


def align_words(decoder: Decoder, name: str, text: str) -> list[tuple[str, float, float]]:
    """The words of a recording with the seconds at which they begin and end."""
    words = re.findall(r"[a-z']+", text.lower())
    decoder.set_align_text(" ".join(words))
    decoder.start_utt()
    decoder.process_raw((decode_file(PHONE / f"{name}.flac") * 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    found = [s for s in decoder.seg() if s.word not in PAUSES]
    spoken = [re.sub(r"\(\d+\)$", "", segment.word) for segment in found]
    if spoken != words:
        raise RuntimeError(f"{name}: {words} was aligned as {spoken}")
    return [(w, s.start_frame / 100, (s.end_frame + 1) / 100) for w, s in zip(words, found, strict=True)]


main()
