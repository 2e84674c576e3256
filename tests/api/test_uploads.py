"""A form as it arrives, in chunks of any size, with anything wrong with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eardrum.api.asgi import ClientGoneError, Message, Scope
from eardrum.api.request_body import RequestBody
from eardrum.api.uploads import FormFields, MultipartForm
from eardrum.config import LimitSettings
from eardrum.errors import ClientStalledError, EardrumError, InvalidRequestError, TooLargeError
from eardrum.gateway.spool import Spool
from tests.generated_cases import count_cases

BOUNDARY = "----boundary7"
AUDIO = b"RIFF\r\n\r\n--\r\n----boundary\x00\xff audio \r\n------boundary\r\n"
"""Bytes with everything in them that looks like the end of a part and is not."""

Receive = Callable[[], Awaitable[Message]]


def build_part(name: str, value: bytes | str, filename: str | None = None, content_type: str = "") -> bytes:
    lines = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
    lines += f'; filename="{filename}"' if filename is not None else ""
    lines += f"\r\nContent-Type: {content_type}" if content_type else ""
    return lines.encode() + b"\r\n\r\n" + (value.encode() if isinstance(value, str) else value) + b"\r\n"


def build_form(*parts: bytes) -> bytes:
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


FILE = build_part("file", AUDIO, "a.wav", "audio/wav")
WHOLE = build_form(
    build_part("model", "whisper-1"),
    build_part("include[]", "a"),
    FILE,
    build_part("language", "dé"),
    build_part("include[]", "b"),
)


def build_scope(content_type: str = f"multipart/form-data; boundary={BOUNDARY}", **headers: str) -> Scope:
    named = {"content-type": content_type} | {name.replace("_", "-"): value for name, value in headers.items()}
    return {"type": "http", "headers": [(name.encode(), value.encode("latin-1")) for name, value in named.items()]}


def create_sender(chunks: Iterable[bytes], *, then: str = "end") -> Receive:
    """A client that sends these chunks and then ends, hangs up or falls silent."""
    waiting = iter(chunks)

    async def receive() -> Message:
        if (chunk := next(waiting, None)) is not None:
            return {"type": "http.request", "body": chunk, "more_body": True}
        if then == "end":
            return {"type": "http.request", "body": b"", "more_body": False}
        if then == "hang up":
            return {"type": "http.disconnect"}
        await asyncio.Event().wait()
        raise AssertionError

    return receive


async def parse_form(
    chunks: Sequence[bytes], folder: Path, limits: LimitSettings | None = None, then: str = "end", head: Scope | None = None
) -> tuple[FormFields, bytes | None, str]:
    """The fields, the file and its type, as an edge reads them."""
    async with asyncio.timeout(60):
        return await _parse_form(chunks, folder, limits, then, head)


async def _parse_form(
    chunks: Sequence[bytes], folder: Path, limits: LimitSettings | None, then: str, head: Scope | None
) -> tuple[FormFields, bytes | None, str]:
    head, limits = head or build_scope(), limits or LimitSettings()
    read = MultipartForm(head, RequestBody(head, create_sender(chunks, then=then), limits), limits)
    if not await read.read_until_file():
        return read.fields, None, ""
    with Spool(folder) as spool:
        await read.read_file(spool)
        return read.fields, await _read_all(spool), read.files[0].content_type


async def get_refusal(kind: type[EardrumError], chunks: Sequence[bytes], folder: Path, **how: object) -> EardrumError:
    with pytest.raises(kind) as caught:
        await parse_form(chunks, folder, **how)
    return caught.value


EXPECTED = ({"model": ["whisper-1"], "include[]": ["a", "b"], "language": ["dé"]}, AUDIO, "audio/wav")


async def test_a_form_at_once(tmp_path: Path) -> None:
    assert await parse_form([WHOLE], tmp_path) == EXPECTED


@pytest.mark.parametrize("start", range(0, len(WHOLE), 60))
async def test_a_form_split_in_two_anywhere(start: int, tmp_path: Path) -> None:
    for at in range(start, min(start + 60, len(WHOLE))):
        assert await parse_form([WHOLE[:at], WHOLE[at:]], tmp_path) == EXPECTED, at


async def test_a_form_byte_by_byte(tmp_path: Path) -> None:
    assert await parse_form([WHOLE[i : i + 1] for i in range(len(WHOLE))], tmp_path) == EXPECTED


@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=count_cases(60))
@given(st.binary(max_size=200), st.lists(st.integers(1, 40), min_size=1))
async def test_any_bytes_in_any_chunks(tmp_path: Path, audio: bytes, sizes: list[int]) -> None:
    data, chunks = build_form(build_part("file", audio, "x")), []
    while data:
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(data[:size])
        data = data[size:]
    assert (await parse_form(chunks, tmp_path))[1] == audio


HEAD = f"--{BOUNDARY}\r\n".encode()
BOUNDED = {
    "a long header": HEAD + b"X: " + b"a" * 1_000_000,
    "a long name of one": HEAD + b"X" * 1_000_000,
    "many headers": HEAD + b"X: a\r\n" * 200_000,
    "many headers in many parts": (HEAD + b"X: a\r\n" * 10 + b"\r\n\r\n") * 20_000,
    "many parts": (HEAD + b"\r\n\r\n") * 20_000,
    "many fields": build_part("a", "b") * 20_000,
    "a long name": build_part("a" * 100_000, "b"),
    "many files": FILE * 20_000,
}


@pytest.mark.parametrize("sent", BOUNDED.values(), ids=BOUNDED)
async def test_the_heads_of_parts_and_their_number_are_bounded(sent: bytes, tmp_path: Path) -> None:
    taken = 0

    def pieces() -> Iterator[bytes]:
        nonlocal taken
        for at in range(0, len(sent), 1000):
            taken += 1000
            yield sent[at : at + 1000]

    head, limits = build_scope(), LimitSettings()
    read = MultipartForm(head, RequestBody(head, create_sender(pieces()), limits), limits)

    async def all_of_it() -> None:
        with Spool(tmp_path) as spool:
            await read.read_until_file()
            await read.read_file(spool)

    with pytest.raises(InvalidRequestError):
        await all_of_it()
    assert taken <= 40_000, "it is refused as soon as it is too much"


async def test_a_long_name_of_a_file_and_many_headers_are_fine(tmp_path: Path) -> None:
    more = b"".join(b"X-%d: a\r\n" % number for number in range(12))
    name = "ä" * 2000
    file = build_part("file", AUDIO, name, "audio/wav").replace(b"\r\n\r\n", b"\r\n" + more + b"\r\n", 1)
    assert (await parse_form([build_form(file)], tmp_path))[1] == AUDIO


async def test_fields_before_the_file_are_known_when_it_begins(tmp_path: Path) -> None:
    limits = LimitSettings()
    sent: list[int] = []

    def chunks() -> Iterable[bytes]:
        begun = FILE.index(AUDIO) + 3
        for number, piece in enumerate(
            [build_part("model", "m"), FILE[:begun], FILE[begun:], build_form(build_part("language", "en"))]
        ):
            sent.append(number)
            yield piece

    read = MultipartForm(build_scope(), RequestBody(build_scope(), create_sender(chunks()), limits), limits)
    assert await read.read_until_file()
    assert (read.fields, read.files[0].content_type, sent) == ({"model": ["m"]}, "audio/wav", [0, 1])
    with Spool(tmp_path) as spool:
        await read.read_file(spool)
        assert spool.size == len(AUDIO)
    assert read.fields == {"model": ["m"], "language": ["en"]}


async def test_the_file_is_done_before_the_fields_after_it(tmp_path: Path) -> None:
    """A runner need not wait for a client that dawdles over the last field."""
    limits = LimitSettings()
    read = MultipartForm(
        build_scope(),
        RequestBody(build_scope(), create_sender([FILE, build_part("model", "m")[:20]], then="fall silent"), limits),
        limits,
    )
    assert await read.read_until_file()
    with Spool(tmp_path) as spool:
        pouring = asyncio.ensure_future(read.read_file(spool))
        try:
            assert await asyncio.wait_for(_read_all(spool), 60) == AUDIO
            assert not pouring.done()
        finally:
            pouring.cancel()
            await asyncio.wait([pouring])


async def _read_all(spool: Spool) -> bytes:
    return b"".join([chunk async for chunk in spool.read()])


async def test_a_file_is_one_by_its_field_name_or_a_filename(tmp_path: Path) -> None:
    assert (await parse_form([build_form(build_part("file", AUDIO))], tmp_path))[1] == AUDIO
    assert (await parse_form([build_form(build_part("file", AUDIO, ""))], tmp_path))[1] == AUDIO
    assert (await parse_form([build_form(build_part("file", b"", "empty.wav"))], tmp_path))[1] == b""


async def test_no_file(tmp_path: Path) -> None:
    assert await parse_form([build_form(build_part("model", "m"))], tmp_path) == ({"model": ["m"]}, None, "")
    assert await parse_form([build_form()], tmp_path) == ({}, None, "")
    assert await parse_form([], tmp_path) == ({}, None, "")


async def test_a_file_in_the_wrong_field(tmp_path: Path) -> None:
    error = await get_refusal(InvalidRequestError, [build_form(build_part("audio_file", AUDIO, "a.wav"))], tmp_path)
    assert error.param == "file"
    assert "'audio_file'" in error.message


async def test_two_files(tmp_path: Path) -> None:
    for second in (FILE, build_part("file", "text"), build_part("other", AUDIO, "b.wav")):
        assert (await get_refusal(InvalidRequestError, [build_form(FILE, second)], tmp_path)).param == "file"


async def test_ten_thousand_fields(tmp_path: Path) -> None:
    many = build_form(*(build_part(f"f{number}", "x") for number in range(10_000)), FILE)
    assert "100" in (await get_refusal(InvalidRequestError, [many], tmp_path)).message
    same = build_form(FILE, *(build_part("include[]", "x") for _ in range(10_000)))
    assert "100" in (await get_refusal(InvalidRequestError, [same], tmp_path)).message
    enough = build_form(*(build_part(f"f{number}", "x") for number in range(100)), FILE)
    assert (await parse_form([enough], tmp_path))[1] == AUDIO


async def test_an_overlong_field(tmp_path: Path) -> None:
    limits = LimitSettings(field_bytes=1000)
    fits = build_form(build_part("prompt", "x" * 1000), FILE)
    assert (await parse_form([fits], tmp_path, limits))[0]["prompt"] == ["x" * 1000]
    data = build_form(build_part("prompt", "x" * 1001), FILE)
    for chunks in ([data], [data[i : i + 100] for i in range(0, len(data), 100)]):
        error = await get_refusal(InvalidRequestError, chunks, tmp_path, limits=limits)
        assert error.param == "prompt"
        assert "1000" in error.message


async def test_endless_headers(tmp_path: Path) -> None:
    endless = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="'.encode() + b"x" * 100_000
    await get_refusal(InvalidRequestError, [endless], tmp_path)
    many = f"--{BOUNDARY}\r\n".encode() + b"X-Header: 1\r\n" * 10_000
    await get_refusal(InvalidRequestError, [many], tmp_path)


async def test_bytes_are_counted_as_they_come(tmp_path: Path) -> None:
    limits = LimitSettings(upload_bytes=len(WHOLE))
    assert await parse_form([WHOLE], tmp_path, limits) == EXPECTED
    error = await get_refusal(TooLargeError, [WHOLE[:50], WHOLE[50:], b"x"], tmp_path, limits=limits)
    assert (error.status, error.param) == (413, "file")


async def test_an_announced_size_is_refused_before_a_byte_is_read() -> None:
    asked = 0

    async def receive() -> Message:
        nonlocal asked
        asked += 1
        raise AssertionError

    with pytest.raises(TooLargeError, match="100 bytes"):
        RequestBody(build_scope(content_length="101"), receive, LimitSettings(upload_bytes=100))
    RequestBody(build_scope(content_length="100"), receive, LimitSettings(upload_bytes=100))
    RequestBody(build_scope(content_length="odd"), receive, LimitSettings(upload_bytes=100))
    assert asked == 0


async def test_a_small_announcement_does_not_excuse_a_large_body(tmp_path: Path) -> None:
    head = build_scope(content_length="10")
    await get_refusal(TooLargeError, [WHOLE], tmp_path, limits=LimitSettings(upload_bytes=100), head=head)


@pytest.mark.parametrize(
    "content_type",
    ["multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary=""', "", "multipart/form-data; x"],
)
async def test_no_boundary(content_type: str, tmp_path: Path) -> None:
    error = await get_refusal(InvalidRequestError, [WHOLE], tmp_path, head=build_scope(content_type))
    assert "boundary" in error.message


@pytest.mark.parametrize(
    "boundary",
    [
        "other",
        BOUNDARY + "x",
        "é",
        pytest.param("x" * 300),
    ],
)
async def test_another_boundary(boundary: str, tmp_path: Path) -> None:
    head = build_scope(f"multipart/form-data; boundary={boundary}")
    await get_refusal(InvalidRequestError, [WHOLE], tmp_path, head=head)


@pytest.mark.parametrize("junk", [b"no form", b"\x00" * 100, b"--\r\n" * 10, b"{}", f"--{BOUNDARY}junk".encode()])
async def test_junk(junk: bytes, tmp_path: Path) -> None:
    await get_refusal(InvalidRequestError, [junk], tmp_path)


@pytest.mark.parametrize("cut", [30, len(FILE) - 2, len(FILE), len(FILE) + 4, -3])
async def test_a_form_that_ends_in_the_middle(cut: int, tmp_path: Path) -> None:
    data = build_form(FILE, build_part("model", "m"))[:cut]
    if cut == 30:
        assert (await parse_form([data], tmp_path))[1] is None
    else:
        assert "closing boundary" in (await get_refusal(InvalidRequestError, [data], tmp_path)).message


@pytest.mark.parametrize("sent", [b"", WHOLE[:30], WHOLE[:250]])
async def test_a_client_that_falls_silent(sent: bytes, tmp_path: Path) -> None:
    chunks, limits = [sent] if sent else [], LimitSettings(stall_timeout=0.02)
    error = await get_refusal(ClientStalledError, chunks, tmp_path, limits=limits, then="fall silent")
    assert (error.status, error.retry_after) == (408, None)


@pytest.mark.parametrize("sent", [b"", WHOLE[:30], WHOLE[:250], WHOLE])
async def test_a_client_that_hangs_up(sent: bytes, tmp_path: Path) -> None:
    with pytest.raises(ClientGoneError):
        await parse_form([sent], tmp_path, then="hang up")


async def test_slow_is_not_silent(tmp_path: Path) -> None:
    async def receive() -> Message:
        await asyncio.sleep(0.05)
        return next(messages)

    pieces = [WHOLE[i : i + 60] for i in range(0, len(WHOLE), 60)]
    messages = iter([{"type": "http.request", "body": piece, "more_body": i < len(pieces) - 1} for i, piece in enumerate(pieces)])
    limits = LimitSettings(stall_timeout=0.05 * len(pieces) * 0.9)
    read = MultipartForm(build_scope(), RequestBody(build_scope(), receive, limits), limits)
    assert await read.read_until_file()
    with Spool(tmp_path) as spool:
        await read.read_file(spool)
        assert spool.size == len(AUDIO)


async def test_nothing_is_read_past_the_end() -> None:
    body = RequestBody(build_scope(), create_sender([b"a"], then="end"), LimitSettings())
    assert [await body.read() for _ in range(4)] == [b"a", b"", None, None]


async def test_quotes_line_ends_and_letters_in_names(tmp_path: Path) -> None:
    fields, data, _ = await parse_form(
        [build_form(build_part("naïve ü", "x"), build_part("file", AUDIO, "Überlänge “1”.wav"))], tmp_path
    )
    assert (fields, data) == ({"naïve ü": ["x"]}, AUDIO)
    fields, _, _ = await parse_form([build_form(build_part("prompt", b"\xff\xfe"), FILE)], tmp_path)
    assert fields["prompt"] == ["\ufffd\ufffd"]
