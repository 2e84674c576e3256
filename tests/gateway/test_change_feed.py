"""Followers of changes: none is missed, none piles up."""

from __future__ import annotations

import asyncio

from eardrum.gateway.change_feed import ChangeFeed, ChangeTopic


async def test_a_follower_hears_what_changed_since_it_last_asked() -> None:
    events = ChangeFeed()
    with events.subscribe(*ChangeTopic) as changes:
        for _ in range(1000):
            events.publish(ChangeTopic.MODELS)
        events.publish(ChangeTopic.PROFILE)
        assert await anext(changes) == {ChangeTopic.MODELS, ChangeTopic.PROFILE}
        waiting = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        assert not waiting.done()
        events.publish(ChangeTopic.MODELS)
        assert await waiting == {ChangeTopic.MODELS}


async def test_what_changed_before_the_end_is_still_told() -> None:
    events = ChangeFeed()
    with events.subscribe(*ChangeTopic) as changes:
        events.publish(ChangeTopic.REQUESTS)
        events.close()
        assert [topics async for topics in changes] == [{ChangeTopic.REQUESTS}]


async def test_a_waiting_follower_ends_with_the_server_and_a_late_one_at_once() -> None:
    events = ChangeFeed()
    with events.subscribe(*ChangeTopic) as changes:
        waiting = asyncio.ensure_future(anext(changes, None))
        await asyncio.sleep(0)
        events.close()
        assert await waiting is None
    with events.subscribe(*ChangeTopic) as changes:
        assert await anext(changes, None) is None


async def test_who_left_is_forgotten() -> None:
    events = ChangeFeed()
    with events.subscribe(*ChangeTopic) as changes:
        pass
    events.publish(ChangeTopic.MODELS)
    events.close()
    asking = asyncio.ensure_future(anext(changes, None))
    await asyncio.sleep(0)
    assert not asking.done()
    asking.cancel()


async def test_a_follower_hears_only_of_its_topics() -> None:
    events = ChangeFeed()
    with events.subscribe(ChangeTopic.MODELS) as changes:
        events.publish(ChangeTopic.REQUESTS)
        asking = asyncio.ensure_future(anext(changes))
        await asyncio.sleep(0)
        assert not asking.done()
        events.publish(ChangeTopic.MODELS)
        assert await asking == {ChangeTopic.MODELS}
