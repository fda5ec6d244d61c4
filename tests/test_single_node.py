"""The processes of a run on one machine: those that do its work, and none of a cluster's."""

from pathlib import Path

import pytest
from commands import start_locray
from faults.images import check_whole, fill_folder
from processes import descendants_of, title_of

NUM_IMAGES = 40
HELPERS = ("_StatsActor", "_AutoscalingCoordinatorActor", "ActorLocationTracker")
"""Ray Data's, as processes are titled."""


@pytest.mark.ray
def test_a_run_on_one_machine_starts_no_helpers_of_a_cluster(
    tmp_path: Path, artifact: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    images, table = tmp_path / "images", str(tmp_path / "table")
    versions = fill_folder(images, NUM_IMAGES)
    options = ("--images", str(images), "--model", artifact, "--table", table, "--unit-size", "2")
    pids: set[int] = set()
    titles: set[str] = set()
    with start_locray("label", *options) as driver:
        while driver.poll() is None:
            pids |= (now := descendants_of(driver.pid))
            titles |= set(map(title_of, now))
        assert driver.returncode == 0, driver.communicate()
    check_whole(table, versions)
    actors = {title.split(".")[0] for title in titles if title.startswith("ray::")}
    assert any("_PredictStage" in actor for actor in actors)
    assert not [actor for actor in actors if actor.endswith(HELPERS)]
    assert any("/log_monitor.py" in title for title in titles)
    assert not [title for title in titles if "/monitor.py" in title]
    # Ray's own are gone when the command is; its workers find out within moments.
    assert not [title for pid in pids if "raylet" in (title := title_of(pid)) or "gcs_server" in title]
