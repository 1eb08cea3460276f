"""The names that are known without torch are those of the registries."""

import pytest
import timm

import ecanet
from ecanet import names
from ecanet.errors import UserError, did_you_mean


def test_they_are_those_of_the_registries() -> None:
    assert list(names.built_in_attention()) == ecanet.list_attention()
    assert set(names.our_models()) == set(ecanet.list_models())
    assert set(timm.list_models()) - set(names.our_models()) <= set(names._timm_models())


def test_every_module_has_a_line_and_its_paper() -> None:
    for name, text in names.built_in_attention().items():
        assert text.strip(), name


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ec", "Did you mean eca?"),
        ("bam", "Did you mean cbam?"),
        ("gtc", "Did you mean gc, gct?"),
        ("foo", "Known: cbam, coord, eca,"),
        ("xyz", "Known: cbam, coord, eca,"),
    ],
)
def test_only_names_nearby_are_suggested(name: str, says: str) -> None:
    with pytest.raises(UserError) as error:
        names.check_names(attention=name)
    assert str(error.value).startswith(f"unknown attention module '{name}'. {says}")


def test_one_line_lists_no_more_names_than_can_be_read() -> None:
    line = did_you_mean("zz", [f"model{number:04d}" for number in range(1300)])
    assert line.endswith(", model0199 and 1100 more.")
