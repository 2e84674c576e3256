"""HTTP as uvicorn parses it, with a limit on the head of a request and refusals that speak the API's language."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from eardrum.api.openai import answers
from eardrum.errors import EardrumError, HeadTooLargeError, InvalidRequestError

HEAD_BYTES = 64 << 10
"""Request line and headers; the parser itself would take any number of bytes into memory."""


class Http(HttpToolsProtocol):
    """One connection. An application may end it in the middle of an answer: the extension `eardrum.hang_up` does."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__(*arguments, **named)
        self._in_head = False
        self._head_bytes = 0

    def data_received(self, data: bytes) -> None:
        """Parse the next bytes; a head that does not end in time is refused."""
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES and not self.transport.is_closing():
                self._refuse(HeadTooLargeError(f"The request's headers are longer than {HEAD_BYTES} bytes."))

    def on_message_begin(self) -> None:
        """A request begins."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head has ended."""
        self._in_head = False
        super().on_headers_complete()
        self.scope["extensions"] = {"eardrum.hang_up": {"call": self.transport.close}}

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in the shape in which everything else is refused."""
        self._refuse(InvalidRequestError(f"This is not valid HTTP: check the request line, the headers and the lengths. ({msg})"))

    def _refuse(self, error: EardrumError) -> None:
        response = answers.refusal(error)
        lines = [name + b": " + value for name, value in response.raw_headers] + [b"connection: close", b""]
        self.transport.write(STATUS_LINE[error.status] + b"\r\n".join([*lines, bytes(response.body)]))
        self.transport.close()
