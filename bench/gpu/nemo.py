"""Part `nemo`: NVIDIA's toolkit in the same run, if it is installed."""

from bench.gpu import others
from bench.gpu.figures import Report
from bench.gpu.parts import Setup


def run(setup: Setup, report: Report) -> None:
    """In bfloat16 by autocast, as in service; on a CPU in float32."""
    others.exit_if_absent("nemo")
    engine = "nemo-bf16" if setup.cuda else "nemo-fp32"
    others.measure(setup, report, engine, "NeMo", 2 if setup.small else 128)
