"""What upstream keeps private: each test tells when it has changed there."""

import jsonargparse
from jsonargparse import _common

from lit_ft.compat import parsing_settings


def test_settings_of_the_parser_are_set_for_a_while():
    before = dict(_common.parsing_settings)
    with parsing_settings(instantiate_subclass_spec_in_any=True, validate_defaults=True):
        assert _common.get_parsing_setting("instantiate_subclass_spec_in_any") is True
        assert _common.get_parsing_setting("validate_defaults") is True
    assert _common.parsing_settings == before


def test_parser_has_no_public_way_to_read_settings():
    assert not hasattr(jsonargparse, "get_parsing_setting")
