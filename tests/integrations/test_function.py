"""Functions that are named FILE:FUNCTION."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecanet.errors import UserError
from ecanet.integrations.function import file_of, load_function

pytestmark = pytest.mark.usefixtures("own_registry")


def test_a_function_is_found_with_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "my_own_helpers.py").write_text("FACTOR = 3\n")
    # Not in place of the standard library's.
    (tmp_path / "json.py").write_text("raise RuntimeError\n")
    (tmp_path / "mine.py").write_text(
        "import json\nfrom my_own_helpers import FACTOR\n\n"
        "def train(attention, seed, more=1):\n    return json.dumps(FACTOR * seed)\n"
    )
    train = load_function(f"{tmp_path}/mine.py:train", ("attention", "seed"))
    assert train(attention="eca", seed=2) == "6"
    assert file_of(f"{tmp_path}/mine.py:train") == tmp_path / "mine.py"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def trian(seed): ...", r"has no function train\. Did you mean trian\?"),
        ("train = 3", "has no function train"),
        ("def train(epoch): ...", r"write def train\(seed\), as"),
        ("def train(seed, other): ...", r"write def train\(seed\), as"),
        ("1 / 0", "line 1: ZeroDivisionError"),
    ],
)
def test_what_is_none_is_refused(tmp_path: Path, code: str, says: str) -> None:
    (tmp_path / "mine.py").write_text(code + "\n")
    with pytest.raises(UserError, match=says):
        load_function(f"{tmp_path}/mine.py:train", ("seed",))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*nothing\.py"):
        load_function(f"{tmp_path}/nothing.py:train", ("seed",))
