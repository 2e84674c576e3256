"""Phonemes by eSpeak NG, which runs as a separate process: it is under the GPL, and its library is never loaded here."""

from __future__ import annotations

import re
import subprocess

from eardrum.errors import ModelLoadError

PROGRAM = "espeak-ng"
TIMEOUT_S = 20.0
"""Seconds for one sentence. It takes some milliseconds."""

CLAUSE_MARK = re.compile(r"([,;:.!?…]+)(?=\s|$)")
"""Punctuation that ends a clause. The voices know these marks, and eSpeak leaves them out."""
BRACKET_BEFORE_BRACKET = re.compile(r"\[(?=\[)")
LANGUAGE_FLAG = re.compile(r"\([^)]*\)")
"""A note in the phonemes that a word is of another language, as in `(en)hˈaɪ(de)`."""
VOICE_NAME = re.compile(r"[A-Za-z][\w+-]*", re.ASCII)


def phonemize(text: str, voice: str, *, tie: str = "") -> str:
    """Turn a sentence into phonemes of the International Phonetic Alphabet, with its punctuation.

    Args:
        text: a sentence.
        voice: eSpeak's name of a language, as in `de` or `en-us`.
        tie: a character to put between the letters of one sound, as in `t^ʃ`.

    Raises:
        ModelLoadError: the program is missing, has no such voice, or fails.
    """
    clauses, marks = _split_clauses(text)
    if not clauses:
        return ""
    # A line of the answer is a clause. Where eSpeak sees other clauses than we do, it gets them one by one.
    lines = _run_espeak("\n\n".join(clauses), voice, tie)
    if len(lines) != len(clauses):
        lines = [" ".join(_run_espeak(clause, voice, tie)) for clause in clauses]
    return " ".join(f"{line}{mark}" for line, mark in zip(lines, marks, strict=True) if line)


def _split_clauses(text: str) -> tuple[list[str], list[str]]:
    """Split a text into clauses with letters or digits, and the last mark behind each; empty if there is none."""
    clauses, marks = [], []
    for found in re.finditer(rf"(.*?)(?:{CLAUSE_MARK.pattern}|$)", text.replace("\n", " ")):
        if any(letter.isalnum() for letter in found[1]):
            clauses.append(found[1].strip())
            marks.append((found[2] or "")[-1:].replace("…", "."))
    return clauses, marks


def _run_espeak(text: str, voice: str, tie: str) -> list[str]:
    """Return the phonemes of each clause that eSpeak finds."""
    if not VOICE_NAME.fullmatch(voice):
        raise ModelLoadError(f"{voice!r:.80} is no name of a voice of eSpeak's.")
    command = [PROGRAM, "-q", "-b", "1", "--ipa", *([f"--tie={tie}"] if tie else []), "-v", voice, "--stdin"]
    safe = BRACKET_BEFORE_BRACKET.sub("[ ", text)  # what follows two of them would be read as phonemes
    try:
        done = subprocess.run(command, input=safe.encode(), capture_output=True, check=False, timeout=TIMEOUT_S)  # noqa: S603
    except FileNotFoundError:
        raise ModelLoadError(
            f"This voice needs the program {PROGRAM} on the server, which is not installed: `apt-get install espeak-ng` on "
            "Debian, `brew install espeak-ng` on macOS."
        ) from None
    except subprocess.TimeoutExpired:
        raise ModelLoadError(f"{PROGRAM} took more than {TIMEOUT_S:g} s for {text[:80]!r}.") from None
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip()
        raise ModelLoadError(f"{PROGRAM} failed with the voice {voice}: {reason[:200] or f'exit code {done.returncode}'}.")
    lines = (LANGUAGE_FLAG.sub("", line).strip() for line in done.stdout.decode(errors="replace").splitlines())
    return [line for line in lines if line]
