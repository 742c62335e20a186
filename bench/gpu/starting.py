"""The process whose cold start is measured by `cold_start`."""

# Only cheap imports: the others are imported and measured below.
import json
import sys
import time

_STARTED = time.time()


def main() -> None:
    """Print the seconds of each stage as JSON."""
    request = json.loads(sys.argv[1])
    seconds = {"start": _STARTED - request["requested_at"]}
    before = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal before
        now = time.perf_counter()
        seconds[stage], before = now - before, now

    from pathlib import Path

    from bench.gpu import stubs

    stubs.install()
    from bench.gpu import opening, sounds
    from bench.gpu.parts import Setup
    from bench.gpu.timing import hypothesis_of
    from parakeet_worker.engine import device

    device.disable_tf32()
    setup = Setup.read(request["setup"])
    kernels = request["kernels"] and Path(request["kernels"])
    lap("imports")
    engine = opening.opened(setup, opening.random_nemo(setup), "bf16", kernels=kernels)
    opening.settle(setup)
    lap("weights")
    opening.warm(setup, engine)
    lap("warm")
    (outcome,) = engine.transcribe(sounds.chunks(0.5 if setup.small else 8.0, 1))
    tuple(hypothesis_of(outcome).tokens)
    lap("transcript")
    print(json.dumps(seconds))
    engine.close()


if __name__ == "__main__":
    main()
