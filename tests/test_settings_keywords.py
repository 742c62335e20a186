"""The keywords of `open_model` are the fields of the settings, with the same types."""

from typing import get_type_hints

from parakeet_worker.settings import Settings
from parakeet_worker.settings_keywords import SettingsKeywords


def test_every_field_of_the_settings_is_a_keyword_of_the_same_type() -> None:
    fields = {name: kind for name, kind in get_type_hints(Settings).items()
              if name in Settings.model_fields}  # fmt: skip
    assert get_type_hints(SettingsKeywords) == {
        name: kind for name, kind in fields.items() if name != "model"
    }
