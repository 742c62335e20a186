import pytest

from parakeet_worker.engine.native.config_section import ConfigSection
from parakeet_worker.errors import WeightsUnsupported


def test_an_unread_option_is_rejected() -> None:
    options = ConfigSection("encoder", {"n_layers": 2, "conv_dilation": 3})
    assert options.get_int("n_layers") == 2
    with pytest.raises(WeightsUnsupported, match=r"encoder\.conv_dilation = 3"):
        options.reject_unread()


def test_a_null_option_is_unset() -> None:
    options = ConfigSection("encoder", {"reduction": None})
    options.reject_unread()
    assert options.get_ints("att_context_size", (-1, -1)) == (-1, -1)


def test_ignored_options_and_the_target_are_accepted() -> None:
    options = ConfigSection("encoder", {"_target_": "nemo.X", "dropout": 0.1})
    options.ignore("dropout")
    options.reject_unread()


def test_the_error_names_the_unsupported_value() -> None:
    options = ConfigSection("encoder", {"self_attention_model": "abs_pos"})
    with pytest.raises(WeightsUnsupported, match="self_attention_model = 'abs_pos'"):
        options.get_choice("self_attention_model", "rel_pos", default="rel_pos")


def test_true_is_not_equal_to_one() -> None:
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
def test_a_value_of_the_wrong_type_is_rejected(read: str, value: object) -> None:
    with pytest.raises(WeightsUnsupported, match="key"):
        getattr(ConfigSection("x", {"key": value}), read)("key")


def test_another_class_is_rejected() -> None:
    options = ConfigSection(
        "encoder", {"_target_": "nemo.collections.asr.modules.SqueezeformerEncoder"}
    )
    with pytest.raises(WeightsUnsupported, match="SqueezeformerEncoder"):
        options.expect_target("ConformerEncoder")
