"""`/api/version`: one object for the clients of Ollama, for those of llama-swap, and for ours."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from eardrum import __version__

OLLAMA = "0.13.5"
"""The Ollama whose API this is: its clients compare it with what they need, number by number."""


async def version(_: Request) -> Response:
    """Ollama's `version`, llama-swap's `commit` and `build_date`, which a package has none of, and our own version."""
    return JSONResponse({"version": OLLAMA, "commit": "", "build_date": "", "eardrum": __version__})
