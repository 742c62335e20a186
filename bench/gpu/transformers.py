"""Part `transformers`: Hugging Face's library in the same run, if it is installed."""

from bench import random_model
from bench.gpu import others
from bench.gpu.figures import Report
from bench.gpu.opening import random_nemo
from bench.gpu.parts import Setup
from bench.random_model import Files


def run(setup: Setup, report: Report) -> None:
    """In bfloat16, with fewer chunks per batch, which already take seconds."""
    others.exit_if_absent("transformers")
    folder = random_nemo(setup).parent
    if not Files(folder).transformers.exists():
        random_model.write_transformers(folder)
    engine = "transformers-bf16" if setup.cuda else "transformers-fp32"
    others.measure(setup, report, engine, "transformers", 2 if setup.small else 16)
