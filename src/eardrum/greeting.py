"""What a server says of itself once it is up."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from eardrum import tls
from eardrum.api.wyoming.server import WyomingServer
from eardrum.client import Client
from eardrum.gateway.service import Service


def welcome(service: Service, address: str, recording: Path, wyoming: WyomingServer | None) -> str:
    """Where it is, which models it has, and what to try."""
    catalog = service.catalog
    lines = ["", f"Eardrum listens on {address}  (API: {address}/docs)"]
    if wyoming:
        lines.append(f"Home Assistant: {wyoming.host} port {wyoming.port}  (Wyoming)")
    lines += ["", "Models"]
    for model in catalog:
        languages = ", ".join(model.capabilities.languages) or "many languages"
        facts = [model.engine, languages, model.origin] if model.hears else [model.engine, model.origin]
        if model.absent:
            facts.append(f"not on this machine: `{model.pull_command()}`")
        elif not model.runnable:
            facts.append(f"cannot run yet: {model.card.install_here}")
        lines.append(f"  {model.id}  ({', '.join(facts)})")
    lines += ["", f"The default is {catalog.default.id}: {catalog.why_default}."]
    if catalog.default.origin == "embedded":
        lines.append(
            "For other languages, or better text: `eardrum pull small`, or large-v3-turbo with a GPU; `eardrum engines` has more."
        )
    lines += ["", "Try it:", f"  {_request(service, address, recording)}", ""]
    return "\n".join(lines)


def _request(service: Service, address: str, recording: Path) -> str:
    """A command for a shell that has the recording transcribed."""
    curl = ["curl"]
    if address.startswith("https"):
        curl.append("-k")  # the certificate may be for another name than the machine has for itself
    if key := next(iter(service.settings.apiKeys), ""):
        # Whoever started the server on a terminal may see its key; in a log it would be there for others.
        header = f"Authorization: Bearer {key}"
        curl += ["-H", shlex.quote(header) if sys.stdout.isatty() else '"Authorization: Bearer $EARDRUM_KEY"']
    curl += [f"{address}/v1/audio/transcriptions", "-F", shlex.quote(f"file=@{recording}")]
    return " ".join(curl)


async def transcribed(service: Service, address: str, recording: Path) -> str:
    """The text of a recording, by way of the port, as any client gets it."""
    certificate = service.settings.tls_certificate
    trust = tls.trusting(certificate, by_any_name=True) if certificate else None
    async with Client(address, next(iter(service.settings.apiKeys), ""), trust) as client:
        return (await client.transcribe(recording, {"response_format": ["text"]})).body.strip()
