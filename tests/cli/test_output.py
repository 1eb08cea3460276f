import io
import json
import math
import sys
from pathlib import Path

import pytest
from helpers.commands import Refuse, Run
from rich.table import Table
from rich.text import Text

from ecanet.cli.output import console, fail, json_to, prepare, result, say, show, warn
from ecanet.errors import visible

_STEERING = "a\x1b[2J\x9b1m\r\x07\u202e\u2066\u2028\x7fb"
_WRITTEN = r"a\x1b[2J\x9b1m\r\x07\u202e\u2066\u2028\x7fb"


def test_what_steers_a_terminal_is_written_out() -> None:
    assert visible(_STEERING) == _WRITTEN
    assert visible(_WRITTEN) == _WRITTEN, "what has been written out stays"
    assert visible("café 漢字 → 😀\t|\n") == r"café 漢字 → 😀\t|\n"
    assert visible("a\nb\r", keep="\n") == "a\nb\\r"
    assert visible("caf\udce9") == r"caf\udce9"


def test_lines_and_results(capsys: pytest.CaptureFixture[str]) -> None:
    prepare()
    say(f"{_STEERING}\nforged")
    show(f"{_STEERING}\nsecond line")
    fail("one\nline")
    fail("x" * 100_000)
    out, err = capsys.readouterr()
    assert out == f"{_WRITTEN}\nsecond line\n"
    news, line, long = err.splitlines()
    assert news == rf"{_WRITTEN}\nforged"
    assert line == "ecanet: one line"
    assert len(long) < 5000


def test_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone it is all that standard output gets; to a file it is written beside the text."""
    prepare()
    json_to(None)
    show("text")
    console().print("table")
    say("news")
    result({"sd": math.nan, "out": tmp_path, "rows": [(1, math.inf)]})
    out, err = capsys.readouterr()
    assert json.loads(out) == {"sd": None, "out": str(tmp_path), "rows": [[1, None]]}
    assert err == "news\n"

    prepare()
    json_to(str(tmp_path / "x.json"))
    show("text")
    result({"sd": math.nan})
    assert capsys.readouterr().out == "text\n"
    assert json.loads((tmp_path / "x.json").read_text()) == {"sd": None}


def test_a_terminal_gets_lines_broken_at_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    line = "eca  better than none, so use a smaller --batch-size or --image-size"
    warn(line)
    assert capsys.readouterr().err == f"{line}\n", "a file or a pipe has no width"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    warn(line)
    broken = "eca  better than none, so use\na smaller --batch-size or\n--image-size\n"
    assert capsys.readouterr().err == broken
    warn(f"next: {line}")
    assert capsys.readouterr().err == f"next: {line}\n", "a command is copied"


def test_where_json_goes(tmp_path: Path, run: Run, refuse: Refuse) -> None:
    code, out, _ = run("list", "models", "--json")
    assert code == 0
    assert "eca_resnet50" in json.loads(out)["models"]
    file = tmp_path / "plan.json"
    for flags in (("--json", file, "--sd", "1"), ("--sd", "1", f"--json={file}")):
        file.unlink(missing_ok=True)
        code, out, _ = run("plan", *flags)
        assert code == 0
        assert "seeds  fixed" in out
        assert json.loads(file.read_text())["rows"]
    refuse("has no figures", "convert", "a", "b", "--json")
    refuse("given twice", "plan", "--json", "--json")
    refuse("is a folder", "plan", "--sd", "1", f"--json={tmp_path}")
    refuse("its folder does not exist", "plan", "--sd", "1", f"--json={tmp_path}/nowhere/x")


def test_tables_and_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    for color in ("", "1"):
        screen = io.StringIO()
        monkeypatch.setattr(sys, "stdout", screen)
        if color:
            monkeypatch.setenv("FORCE_COLOR", color)
        table = Table("study [/x]", "about")
        table.add_row(f"{_STEERING}\n[/red] :smile:", "[b]bold[/b]")
        console().print(table)
        console().print(Text(_STEERING, style="red"))
        shown = screen.getvalue()
        assert "[/red] :smile:" in shown
        assert "[b]bold[/b]" in shown
        assert "study [/x]" in shown
        assert _WRITTEN in shown
        assert "\x1b[2J" not in shown
        assert ("\x1b[31m" in shown) == bool(color)


def test_an_encoding_that_lacks_a_letter_gets_an_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_written, "ascii"))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    prepare()
    show("café 漢")
    assert bytes_written.getvalue() == rb"caf\xe9 \u6f22" + b"\n"


def test_a_defects_traceback_does_not_steer_either(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    prepare()
    try:
        raise ValueError(_STEERING)
    except ValueError as error:
        sys.excepthook(ValueError, error, error.__traceback__)
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert _WRITTEN in err
