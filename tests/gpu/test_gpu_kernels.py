"""On the device, every kernel equals its reference, and the packed chain equals the padded one."""

import pytest
import torch

from bench.gpu import chain, kernels
from bench.gpu.comparing import relative
from bench.gpu.kernels import PRECISIONS, chunks_of
from bench.gpu.opening import DEMO, Loaded, loaded
from bench.gpu.parts import Setup

pytestmark = pytest.mark.gpu

LENGTHS = (128_000, 16_000, 0, 12_345, 1, 1280, 160, 159)
SHORT = LENGTHS[3:]


@pytest.fixture(params=PRECISIONS)
def model(request: pytest.FixtureRequest, setup: Setup) -> Loaded:
    return loaded(setup, DEMO, request.param)


def test_each_kernel_of_the_encoder_equals_its_reference(model: Loaded, setup: Setup) -> None:
    reports = kernels.encoder_reports(model, small=setup.small)
    assert len(reports) == 11
    assert [str(report) for report in reports if report.replaced] == []


@pytest.mark.parametrize("precision", PRECISIONS)
def test_each_reproducible_product_equals_its_reference(precision: str, setup: Setup) -> None:
    model = loaded(setup, DEMO, precision, reproducible=True)
    reports = kernels.encoder_reports(model, small=setup.small)
    assert "product" in {report.name for report in reports}
    assert [str(report) for report in reports if report.replaced] == []


def test_each_kernel_of_the_search_equals_its_reference(model: Loaded) -> None:
    reports = kernels.search_reports(model)
    assert {report.name for report in reports} >= {"lstm", "joint_hidden", "joint_scores"}
    assert [str(report) for report in reports if report.replaced] == []


@torch.inference_mode()
def test_packed_rows_are_as_exact_as_padded_rows(model: Loaded, setup: Setup) -> None:
    """With single launches and in CUDA graphs, compared with float32."""
    batch = chunks_of(SHORT if setup.small else LENGTHS)
    long_enough = [chunk for chunk in batch if len(chunk) >= 160]
    exact = chain.padded_states(loaded(setup, DEMO, "fp32"), long_enough)
    plain = relative(chain.padded_states(model, long_enough), exact)
    assert relative(chain.packed_states(model, batch), exact) <= 1.5 * plain
    assert relative(chain.graph_states(model, batch), exact) <= 1.5 * plain


@torch.inference_mode()
def test_reproducible_rows_are_independent_of_the_batch(setup: Setup) -> None:
    """Bitwise: alone, packed in two orders, and in a graph's bucket."""
    model = loaded(setup, DEMO, "bf16", reproducible=True)
    batch = chunks_of(SHORT if setup.small else LENGTHS)
    together = chain.packed_states(model, batch)
    alone = [chain.packed_states(model, [chunk]) for chunk in batch]
    assert torch.equal(torch.cat(alone), together)
    assert torch.equal(chain.packed_states(model, batch[::-1]), torch.cat(alone[::-1]))
    assert torch.equal(chain.graph_states(model, batch), together)
