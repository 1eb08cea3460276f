from pathlib import Path

import pytest

from ecanet.errors import UserError
from ecanet.yaml_file import MOST_VALUES, load_yaml, read_yaml


def test_what_people_write_is_read() -> None:
    text = """
    # a comment
    defaults: &defaults {epochs: 3, lr: 0.1}
    mine: {<<: *defaults, lr: 0.2, name: "x"}
    list: [1, .5, 1e-4, true, null, .nan, 2024-01-31, !!float 1e-4, !!str 3]
    """
    content = load_yaml(text)
    assert content["mine"] == {"epochs": 3, "lr": 0.2, "name": "x"}
    assert content["list"][:5] == [1, 0.5, "1e-4", True, None]
    # A date would be no JSON.
    assert content["list"][6:] == ["2024-01-31", 1e-4, "3"]
    assert load_yaml("") is None
    assert len(load_yaml(str(list(range(MOST_VALUES - 1))))) == MOST_VALUES - 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: &a [*a]", "holds *a, which contains itself"),
        ("a: &a {b: [*a]}", "contains itself"),
        ("[" * 51 + "]" * 51, "nested more than 50 deep"),
        ("x: [&a [1, 2, 3], " + "*a, " * MOST_VALUES + "]", f"more than {MOST_VALUES} values"),
        ("a: 1\nb: 2\na: 3", "'a' stands twice, line 3"),
        ("a: {b: 1, b: 2}", "'b' stands twice"),
        ("a: " + "1" * 41, "a number of 41 digits"),
        ("a: !!python/name:os.system", "holds the tag tag:yaml.org,2002:python/name:os.system"),
        ("a: !!binary eA==", "leave it out"),
        ("a: !!int x", "is no YAML"),
        ("a: !!bool maybe", "is no YAML"),
        ("a: !!int ''", "is no YAML"),
        ("a: =", "is no YAML"),
        ("[1]: 2\n? [1]\n: 3", "is no YAML: found unhashable key"),
        ('a: "\\0"', "NUL"),
        ("a: *b", "is no YAML: found undefined alias"),
        ("a: 1\n---\nb: 2", "is no YAML"),
        ("a: \x07", "is no YAML"),
        ("#" * (2**20 + 1), "over 1 MB"),
    ],
)
def test_what_no_file_of_settings_holds_is_refused(text: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        load_yaml(text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_none_is_refused_with_its_name(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "latin").write_bytes(b"a: caf\xe9")
    for path, says in (
        ("/dev/zero", "is no file that YAML can be read from"),
        (tmp_path / "fifo", "is no file that YAML can be read from"),
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
        (tmp_path / "latin" / "below", "Not a directory"),
        (tmp_path / ("x" * 5000), "File name too long"),
        (tmp_path / "latin", "no text in UTF-8"),
    ):
        with pytest.raises(UserError) as refused:
            read_yaml(path)
        assert str(refused.value).startswith(str(path))
        assert says in str(refused.value)
