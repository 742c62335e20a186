"""Concurrent bootstraps on one volume, of which some are killed at random moments."""

import json
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from wheelhouse import Site

_SURVIVORS = 3
_KILLED = 5

# Which process is killed next, and how many seconds after the one before.
_KILLS = st.tuples(
    st.permutations(range(_KILLED)),
    st.lists(st.floats(0, 0.25), min_size=_KILLED, max_size=_KILLED),
)


# Without shrinking: the result also depends on the scheduler, so a smaller example proves nothing.
@settings(max_examples=8, phases=(Phase.generate,))
@given(kills=_KILLS)
def test_processes_that_are_not_killed_run_the_same_complete_environment(
    kills: tuple[Sequence[int], Sequence[float]],
) -> None:
    with TemporaryDirectory() as folder:
        site = Site.at(Path(folder))
        environment = {**site.environment, "PARAKEET_LEASE_SECONDS": "20"}
        processes = [
            subprocess.Popen(
                site.command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(_SURVIVORS + _KILLED)
        ]
        for index, delay_seconds in zip(*kills, strict=True):
            time.sleep(delay_seconds)
            processes[_SURVIVORS + index].kill()
        ended = [(process, *process.communicate(timeout=300)) for process in processes]
        reports = []
        for process, output, log in ended[:_SURVIVORS]:
            assert process.returncode == 0, log
            reports.append(json.loads(output))
        (installed,) = site.environments()
        assert {report["python"] for report in reports} == {str(installed / "bin" / "python")}
        assert {report["ear"] for report in reports} == {"1.0"}

        later = subprocess.run(
            site.command, env=environment, capture_output=True, text=True, timeout=300, check=True
        )
        assert json.loads(later.stdout)["python"] == reports[0]["python"]
        assert later.stderr == ""
        assert (site.volume / "venv").resolve() == installed
        assert site.marker()["environment"] == installed.name
