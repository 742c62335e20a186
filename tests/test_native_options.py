import pytest

from parakeet_worker.engine.native.options import Options
from parakeet_worker.errors import WeightsUnsupported


def test_an_option_that_nobody_read_is_refused_at_close() -> None:
    options = Options("encoder", {"n_layers": 2, "conv_dilation": 3})
    assert options.integer("n_layers") == 2
    with pytest.raises(WeightsUnsupported, match=r"encoder\.conv_dilation = 3"):
        options.close()


def test_an_option_that_is_null_is_not_used_and_passes() -> None:
    options = Options("encoder", {"reduction": None})
    options.close()
    assert options.integers("att_context_size", (-1, -1)) == (-1, -1)


def test_skipped_options_and_the_target_pass() -> None:
    options = Options("encoder", {"_target_": "nemo.X", "dropout": 0.1})
    options.skip("dropout")
    options.close()


def test_a_value_that_is_not_implemented_is_refused_by_name() -> None:
    options = Options("encoder", {"self_attention_model": "abs_pos"})
    with pytest.raises(WeightsUnsupported, match="self_attention_model = 'abs_pos'"):
        options.one_of("self_attention_model", "rel_pos", default="rel_pos")


def test_true_is_not_taken_for_one() -> None:
    with pytest.raises(WeightsUnsupported):
        Options("x", {"frame_splicing": True}).one_of("frame_splicing", 1, default=1)


@pytest.mark.parametrize(
    ("read", "value"),
    [("integer", "2"), ("integer", True), ("number", "0.1"), ("flag", 1), ("integers", [1, "2"])],
)
def test_a_value_of_the_wrong_type_is_refused(read: str, value: object) -> None:
    with pytest.raises(WeightsUnsupported, match="key"):
        getattr(Options("x", {"key": value}), read)("key")


def test_another_class_is_refused() -> None:
    options = Options("encoder", {"_target_": "nemo.collections.asr.modules.SqueezeformerEncoder"})
    with pytest.raises(WeightsUnsupported, match="SqueezeformerEncoder"):
        options.target("ConformerEncoder")
