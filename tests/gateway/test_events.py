"""Followers of changes: none is missed, none piles up."""

from __future__ import annotations

import asyncio

from eardrum.gateway.events import Events, Topic


async def test_a_follower_hears_what_changed_since_it_last_asked() -> None:
    events = Events()
    with events.follow(*Topic) as changes:
        for _ in range(1000):
            events.changed(Topic.MODELS)
        events.changed(Topic.PROFILE)
        assert await anext(changes) == {Topic.MODELS, Topic.PROFILE}
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        assert not waiting.done()
        events.changed(Topic.MODELS)
        assert await waiting == {Topic.MODELS}


async def test_what_changed_before_the_end_is_still_told() -> None:
    events = Events()
    with events.follow(*Topic) as changes:
        events.changed(Topic.REQUESTS)
        events.close()
        assert [topics async for topics in changes] == [{Topic.REQUESTS}]


async def test_a_waiting_follower_ends_with_the_server_and_a_late_one_at_once() -> None:
    events = Events()
    with events.follow(*Topic) as changes:
        waiting = asyncio.ensure_future(anext(changes, None))
        await asyncio.sleep(0)
        events.close()
        assert await waiting is None
    with events.follow(*Topic) as changes:
        assert await anext(changes, None) is None


async def test_who_left_is_forgotten() -> None:
    events = Events()
    with events.follow(*Topic) as changes:
        pass
    events.changed(Topic.MODELS)
    events.close()
    asking = asyncio.ensure_future(anext(changes, None))
    await asyncio.sleep(0)
    assert not asking.done()
    asking.cancel()


async def test_a_follower_hears_only_of_its_topics() -> None:
    events = Events()
    with events.follow(Topic.MODELS) as changes:
        events.changed(Topic.REQUESTS)
        asking = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        assert not asking.done()
        events.changed(Topic.MODELS)
        assert await asking == {Topic.MODELS}
