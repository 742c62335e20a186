"""Runs tests/fuzz with new inputs for a given time, and reports the most expensive ones."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def run(seed: int, scale: int, report: Path) -> int:
    """Run one round; return pytest's exit status."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/fuzz/test_fuzz.py"]
    environment = {"FUZZ_SEED": str(seed), "FUZZ_SCALE": str(scale), "FUZZ_REPORT": str(report)}
    return subprocess.run(
        [*command, f"--hypothesis-seed={seed}"], cwd=ROOT, env={**os.environ, **environment},
        check=False,
    ).returncode  # fmt: skip


def summary(rounds: list[dict[str, Any]]) -> str:
    """Summarise the maxima of all rounds."""

    def worst(name: str) -> float:
        return max((entry[name] for entry in rounds), default=0.0)

    codes = sorted({code for entry in rounds for code in entry["codes"]})
    return "\n".join(
        [
            f"inputs               {sum(entry['inputs'] for entry in rounds)}",
            f"processor time       {worst('cpu_seconds'):.2f} s at most",
            f"memory               {worst('memory_bytes') / 2**20:.0f} MiB more at most",
            f"the loop was blocked {1000 * worst('blocked_seconds'):.0f} ms at most",
            f"codes                {', '.join(codes)}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=None, help="of the first round")
    parser.add_argument("--scale", type=int, default=3, help="times as many inputs as in the tests")
    parser.add_argument("--limits", action="store_true", help="costs under the system's limits")
    options = parser.parse_args()
    if options.limits:
        os.environ["PYTHONPATH"] = os.pathsep.join(("tests", "tests/fuzz"))
        sys.exit(subprocess.run([sys.executable, "tests/fuzz/limited.py"], check=False).returncode)
    seed = options.seed if options.seed is not None else time.time_ns() % 1_000_000 + 1
    ends = time.monotonic() + 60 * options.minutes
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        while status == 0 and time.monotonic() < ends:
            print(f"seed {seed}", flush=True)
            status = run(seed, options.scale, report)
            seed += 1
        lines = report.read_text().splitlines() if report.exists() else []
    print(summary([json.loads(line) for line in lines]))
    if status:
        sys.exit(f"failed; again with: scripts/fuzz --seed {seed - 1} --scale {options.scale}")


if __name__ == "__main__":
    main()
