"""Many bootstraps on one volume, killed at random moments."""

import json
import random
import subprocess
import time
from pathlib import Path

import pytest

from wheelhouse import Site

_AT_ONCE = 8
_SURVIVORS = 3


@pytest.mark.parametrize("seed", range(20))
def test_of_eight_at_once_killed_at_random_the_rest_run_one_good_environment(
    seed: int, tmp_path: Path
) -> None:
    chance = random.Random(seed)  # noqa: S311  # the same each time
    site = Site.at(tmp_path)
    environment = {**site.environment, "PARAKEET_LEASE_SECONDS": "20"}
    started = [
        subprocess.Popen(
            site.command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(_AT_ONCE)
    ]
    doomed = started[_SURVIVORS:]
    for victim in chance.sample(doomed, len(doomed)):
        time.sleep(chance.uniform(0, 0.25))
        victim.kill()
    ended = [(each, *each.communicate(timeout=300)) for each in started]
    said = []
    for each, output, told in ended[:_SURVIVORS]:
        assert each.returncode == 0, told
        said.append(json.loads(output))
    (environment_of_all,) = site.environments()
    assert {each["python"] for each in said} == {str(environment_of_all / "bin" / "python")}
    assert {each["ear"] for each in said} == {"1.0"}

    later = subprocess.run(
        site.command, env=environment, capture_output=True, text=True, timeout=300, check=True
    )
    assert json.loads(later.stdout)["python"] == said[0]["python"]
    assert later.stderr == ""
    assert (site.volume / "venv").resolve() == environment_of_all
    assert site.marker()["environment"] == environment_of_all.name
