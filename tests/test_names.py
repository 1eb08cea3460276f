"""The names that are known without torch are those of the registries."""

import timm

import ecanet
from ecanet import names


def test_they_are_those_of_the_registries() -> None:
    assert list(names.built_in_attention()) == ecanet.list_attention()
    assert set(names.our_models()) == set(ecanet.list_models())
    assert set(timm.list_models()) - set(names.our_models()) <= set(names._timm_models())


def test_every_module_has_a_line_and_its_paper() -> None:
    for name, text in names.built_in_attention().items():
        assert text.strip(), name
