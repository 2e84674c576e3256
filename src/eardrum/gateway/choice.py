"""What to fetch for a name: the config's word first, then what engines know, last the files themselves."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from tempfile import TemporaryDirectory

from eardrum.engines import registry
from eardrum.engines.registry import Card
from eardrum.errors import InvalidRequestError, ModelNotFoundError
from eardrum.gateway import names
from eardrum.gateway.inventory import EMBEDDED_ID, Inventory, engine_of
from eardrum.gateway.names import Match
from eardrum.gateway.pull import Listing, Puller


async def choose(name: str, inventory: Inventory, puller: Puller, engine: str = "") -> Match:
    """The engine and the repository for a name. Of an id that no engine knows, the hub is asked which files it has.

    Raises:
        ModelNotFoundError: nobody knows the name, or it could mean several things.
        InvalidRequestError: there is nothing to fetch, or no engine recognises the files.
        PullError: the hub cannot be asked.
    """
    if not engine and (model := inventory.configured(name)):
        if not model.repository:
            where = f"runs what is at {model.source}" if model.source else "calls another server"
            raise InvalidRequestError(f"There is nothing to fetch for {model.id}: it {where}.")
        return Match(model.card, model.repository)
    if name == EMBEDDED_ID and not engine:
        raise InvalidRequestError(f"There is nothing to fetch for {name}: it came with the package.")
    try:
        return names.choose(name, engine)
    except ModelNotFoundError:
        if names.matches(name, engine) or not names.is_hub_id(name):
            raise
    listing = await puller.listing(name)
    return Match(await asyncio.to_thread(_card_for, name, listing), name)


def _card_for(repository: str, listing: Listing) -> Card:
    """The engine that will recognise these files once they are here."""
    with TemporaryDirectory(prefix="eardrum-") as folder:
        for name in listing.files:
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        if (config := Path(folder, "config.json")).exists():
            config.write_text(json.dumps(listing.config), encoding="utf-8")
        if engine := engine_of(Path(folder)):
            return registry.card(engine)
    raise InvalidRequestError(
        f"No engine recognises the files of {repository}. `eardrum engines` lists which files each looks for."
    )
