import pytest

from parakeet_worker.engine.native.config_section import ConfigSection
from parakeet_worker.errors import WeightsUnsupported


def test_an_option_that_nobody_read_is_refused_at_close() -> None:
    options = ConfigSection("encoder", {"n_layers": 2, "conv_dilation": 3})
    assert options.get_int("n_layers") == 2
    with pytest.raises(WeightsUnsupported, match=r"encoder\.conv_dilation = 3"):
        options.reject_unread()


def test_an_option_that_is_null_is_not_used_and_passes() -> None:
    options = ConfigSection("encoder", {"reduction": None})
    options.reject_unread()
    assert options.get_ints("att_context_size", (-1, -1)) == (-1, -1)


def test_skipped_options_and_the_target_pass() -> None:
    options = ConfigSection("encoder", {"_target_": "nemo.X", "dropout": 0.1})
    options.ignore("dropout")
    options.reject_unread()


def test_a_value_that_is_not_implemented_is_refused_by_name() -> None:
    options = ConfigSection("encoder", {"self_attention_model": "abs_pos"})
    with pytest.raises(WeightsUnsupported, match="self_attention_model = 'abs_pos'"):
        options.get_choice("self_attention_model", "rel_pos", default="rel_pos")


def test_true_is_not_taken_for_one() -> None:
    with pytest.raises(WeightsUnsupported):
        ConfigSection("x", {"frame_splicing": True}).get_choice("frame_splicing", 1, default=1)


@pytest.mark.parametrize(
    ("read", "value"),
    [
        ("get_int", "2"),
        ("get_int", True),
        ("get_float", "0.1"),
        ("get_bool", 1),
        ("get_ints", [1, "2"]),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(read: str, value: object) -> None:
    with pytest.raises(WeightsUnsupported, match="key"):
        getattr(ConfigSection("x", {"key": value}), read)("key")


def test_another_class_is_refused() -> None:
    options = ConfigSection(
        "encoder", {"_target_": "nemo.collections.asr.modules.SqueezeformerEncoder"}
    )
    with pytest.raises(WeightsUnsupported, match="SqueezeformerEncoder"):
        options.expect_target("ConformerEncoder")
