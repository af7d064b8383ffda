"""The page of all settings is that of the settings' class."""

from pathlib import Path

from service.settings import Settings, to_markdown

ROOT = Path(__file__).parent.parent.parent


def test_the_page_of_settings_is_up_to_date():
    written = (ROOT / "docs" / "configuration.md").read_text()
    assert written == to_markdown(), "run: python -m service.settings > docs/configuration.md"
    for name in Settings.model_fields:
        assert f"`FOKKER_{name.upper()}`" in written
