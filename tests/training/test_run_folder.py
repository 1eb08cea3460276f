from pathlib import Path
from typing import Any

import pytest

from ecanet.errors import UserError
from ecanet.training.run_folder import claim_folder


def claim(out: Path, **asked: Any) -> None:
    with claim_folder(out, asked, set(), set(), accept=False, say=lambda line: None):
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[1]", b"null", b"3", b'"text"', b"\xff\xfe", b"[" * 100_000,
        b'{"a": 1', b'{"epochs": NaN}', b"\0\0\0",
    ],
)  # fmt: skip
def test_settings_that_are_damaged_with_no_run_beside_are_one_line(
    tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "settings.json").write_bytes(content)
    with pytest.raises(UserError, match="settings") as refused:
        claim(tmp_path, epochs=3)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert (tmp_path / "settings.json").read_bytes() == content, "it is left as it is"


def test_settings_of_another_shape_are_other_settings(tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text('{"optimizer": "sgd", "epochs": [3]}')
    with pytest.raises(
        UserError, match=r"optimizer: sgd there, .* asked; epochs: .3. there, 3 asked"
    ):
        claim(tmp_path, optimizer={"lr": 0.1}, epochs=3)


def test_a_folder_below_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("x" * 5000)):
        with pytest.raises((UserError, OSError)):
            claim(out, epochs=3)
