"""Jobs while servers and models' processes are killed at seeded moments. A scripted engine tells which windows it decoded."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import wait_for
from tests.jobs.job_servers import (
    WAIT_S,
    JobServer,
    Undisturbed,
    check_outcome,
    create_clips,
    join_announcements,
    run_job_server,
    transcribe_undisturbed,
)

pytestmark = [pytest.mark.slow, pytest.mark.jobs, pytest.mark.timeout(900)]

KILLS = int(os.environ.get("EARDRUM_KILLS", "5"))
"""Of each kind. Twenty take some minutes, with a recording of half an hour."""
CLIP_S = 0.15 * max(1.0, KILLS / 10)
"""Time to decode a window of the clips: long enough that the hundred last until the last kill."""
CONCURRENCY = 2
LOST_WINDOWS = 11
"""Most windows of a recording that a kill lets be decoded again: a lot that is not saved, and the one in hand."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    long = join_announcements(max(3, KILLS * 13 // 20))
    return transcribe_undisturbed(tmp_path_factory.mktemp("undisturbed") / "server", long, 20)


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """A batch of a hundred clips, and no long recording."""
    return transcribe_undisturbed(tmp_path_factory.mktemp("hundred") / "server", b"", 100)


def kill_at_seeded_moments(
    server: JobServer,
    undisturbed: Undisturbed,
    seed: int,
    kill: Callable[[], bool],
    count_progress: Callable[[], int],
) -> int:
    """Kill something again and again, each time after some progress; returns the number of kills.

    On a machine that does much else, all windows may be decoded before the last kill.
    """
    moments = random.Random(seed)
    kills = 0

    def is_decoded() -> bool:
        return set(server.decoded) == set(undisturbed.windows)

    def goes_on(before: int) -> bool:
        return count_progress() > before or is_decoded()

    while kills < KILLS:
        wait_for(partial(goes_on, count_progress()), WAIT_S)
        if is_decoded():
            break
        time.sleep(moments.uniform(0.0, 1.5))
        kills += kill()
    assert kills > KILLS // 2
    return kills


def test_a_killed_server_goes_on_behind_the_last_saved_windows(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with run_job_server(tmp_path / "server", seconds=0.15) as server:
        ids = undisturbed.add_all(server)

        def restart() -> bool:
            server.kill()
            server.start()
            return True

        kills = kill_at_seeded_moments(server, undisturbed, 19, restart, server.count_windows)
        again = check_outcome(server, ids, undisturbed)
        print(f"{kills} kills of the server: {again} of {sum(undisturbed.windows.values())} windows were decoded again")
        assert again <= kills * CONCURRENCY * LOST_WINDOWS


def test_a_killed_runner_costs_the_windows_in_hand_only(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with run_job_server(tmp_path / "server", seconds=0.15) as server:
        ids = undisturbed.add_all(server)
        kills = kill_at_seeded_moments(server, undisturbed, 20, server.kill_runner, server.count_windows)
        again = check_outcome(server, ids, undisturbed)
        print(f"{kills} kills of the runner: {again} of {sum(undisturbed.windows.values())} windows were decoded again")
        assert again <= kills * CONCURRENCY * 2, "one decoded, and one on its way to the gateway"


@pytest.mark.parametrize(("victim", "seed"), [("server", 21), ("runner", 22)])
def test_a_batch_of_a_hundred_clips_ends_once(hundred: Undisturbed, tmp_path: Path, victim: str, seed: int) -> None:
    with run_job_server(tmp_path / "server", seconds=CLIP_S) as server:
        ids = hundred.add_all(server)

        def restart() -> bool:
            server.kill()
            server.start()
            return True

        # A clip that was alone at three deaths in a row would be taken for their cause: the end of one comes in between.
        kill = restart if victim == "server" else server.kill_runner
        kills = kill_at_seeded_moments(server, hundred, seed, kill, lambda: server.count_done(ids[0]))
        again = check_outcome(server, ids, hundred)
        print(f"{kills} kills of the {victim}: {again} of {sum(hundred.windows.values())} windows were decoded again")
        assert again <= kills * CONCURRENCY * max(len(text.split()) for text in hundred.texts.values()), "the clips in hand"


def test_a_stopped_server_gives_everything_back(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with run_job_server(tmp_path / "server", seconds=0.08) as server:
        ids = undisturbed.add_all(server)
        for _ in range(2):
            server.wait_for_progress(ids[0])
            server.stop()
            assert server.decoded.total() < sum(undisturbed.windows.values()), "the server waited for the recordings"
            server.start()
        assert check_outcome(server, ids, undisturbed) <= 2 * CONCURRENCY * 2


def test_a_recording_that_kills_every_process_takes_no_other_with_it(undisturbed: Undisturbed, tmp_path: Path) -> None:
    poison = undisturbed.texts["7"].split()[0]
    with run_job_server(tmp_path / "server", seconds=0.0, poison=poison) as server:
        (batch,) = server.wait_for_end([server.add_batch(undisturbed.clips)])
        assert batch["status"] == "completed"
        (failed,) = server.read_lines(batch["error_file_id"])
        assert (failed["custom_id"], failed["response"]["body"]["error"]["code"]) == ("7", "model_crashed")
        done = {line["custom_id"]: line["response"]["body"]["text"] for line in server.read_lines(batch["output_file_id"])}
        assert done == {key: text for key, text in undisturbed.texts.items() if key != "7"}


def test_recordings_that_were_in_hand_together_are_not_blamed_for_chance(tmp_path: Path) -> None:
    clips = create_clips(2)
    begun, hurry = tmp_path / "begun", tmp_path / "hurry"
    with run_job_server(tmp_path / "server", seconds=600.0, begun=str(begun), hurry=str(hurry)) as server:
        id = server.add_batch(clips)
        wait_for(lambda: 'state="running"} 2.0' in server.read_metrics(), WAIT_S)
        # One death with both in hand, and then of one, of the other and of the first again, each alone.
        for _ in range(4):
            wait_for(begun.exists, WAIT_S)
            begun.unlink()
            server.kill_runner()
        hurry.touch()
        (batch,) = server.wait_for_end([id])
        assert batch["request_counts"] == {"total": 2, "completed": 2, "failed": 0}, server.read_log()


def test_a_model_that_changed_begins_the_recording_again(undisturbed: Undisturbed, tmp_path: Path) -> None:
    with run_job_server(tmp_path / "server", seconds=0.08) as server:
        id = server.add_recording(undisturbed.long)
        server.wait_for_progress(id, 11)
        server.stop()
        server.options["seconds"] = 0.001
        server.start()
        (job,) = server.wait_for_end([id])
        assert job["status"] == "completed"
        result = server.get(f"/api/jobs/{id}/result?response_format=verbose_json")
        assert "transcribed again from the start" in " ".join(result["warnings"])
        assert result["text"] == undisturbed.text
