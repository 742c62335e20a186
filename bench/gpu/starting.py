"""The process whose start the part `cold_start` measures."""

# Only what costs nothing: the rest is imported where it is measured.
import json
import sys
import time

_STARTED = time.time()


def main() -> None:
    """Print the seconds of each stage as JSON."""
    asked = json.loads(sys.argv[1])
    seconds = {"start": _STARTED - asked["asked_at"]}
    before = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal before
        now = time.perf_counter()
        seconds[stage], before = now - before, now

    from pathlib import Path

    from bench.gpu import stand_ins

    stand_ins.install()
    from bench.gpu import opening, sounds
    from bench.gpu.parts import Setup
    from bench.gpu.timing import heard
    from parakeet_worker.engine import device

    device.disable_tf32()
    setup = Setup.read(asked["setup"])
    kernels = asked["kernels"] and Path(asked["kernels"])
    lap("imports")
    engine = opening.opened(setup, opening.random_nemo(setup), "bf16", kernels=kernels)
    opening.settle(setup)
    lap("weights")
    opening.warm(setup, engine)
    lap("warm")
    (outcome,) = engine.transcribe(sounds.chunks(0.5 if setup.small else 8.0, 1))
    tuple(heard(outcome).tokens)
    lap("transcript")
    print(json.dumps(seconds))
    engine.close()


if __name__ == "__main__":
    main()
