"""Attacks: files, folders and addresses that were made to do harm. None gets in.

Each test is one attack. The commands run as processes of their own whose writes, requests and programs
are recorded (``isolated.py``).
"""

from __future__ import annotations

from pathlib import Path

from isolated import Isolated

# ---- The tools that watch are themselves watched


def test_what_a_command_touches_is_seen(isolated: Isolated, tmp_path: Path) -> None:
    """The recorder records: else every test below would pass in silence."""
    code = (
        "import socket, subprocess, sys\n"
        "open('here', 'w'); open('/dev/null', 'w')\n"
        "subprocess.run([sys.executable, '-c', ''])\n"
        "socket.create_connection(('127.0.0.1', 9), timeout=1)\n"
    )
    seen = isolated.call(code, tmp_path)
    assert seen.code == 1
    assert "ConnectionRefusedError" in seen.err
    assert str(tmp_path / "here") in seen.wrote
    assert seen.wrote_outside(tmp_path) == []
    assert seen.wrote_outside(tmp_path / "there") != []
    assert any("127.0.0.1" in address for address in seen.contacted)
    assert len(seen.started) == 1


# ---- A weight file


# ---- The current folder


# ---- A study, recipe or plugin from elsewhere


# ---- Secrets


# ---- Images and shards


# ---- Annotations


# ---- Checkpoints that are structures without end


# ---- YAML, sweeps and settings


# ---- Names shown in a terminal
