"""What is taken out of lines, and what stays."""

from __future__ import annotations

import pytest

from ecanet.redaction import redact, without_secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("postgresql://me@host/x", "postgresql://me@host/x"),
        ("postgresql://me:pw@host:5432/x", "postgresql://me@host:5432/x"),
        ("postgresql://me:p@w/x@host/x", "postgresql://me@host/x"),
        ("postgresql://me:p w@host/x", "postgresql://me@host/x"),
        ("postgresql://me@host/x?password=pw&port=1", "postgresql://me@host/x?password=***&port=1"),
        ("https://me:pw@host/x", "https://me@host/x"),
        ("https://token@host/x", "https://***@host/x"),
        ("https://host/x?access_token=pw", "https://host/x?access_token=***"),
        ("https://host/a/b@2/c", "https://host/a/b@2/c"),
        ("https:/me:pw@host/x", "https:/me@host/x"),
        ("me:pw@host", "me@host"),
        ("host", "host"),
    ],
)
def test_addresses(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


def test_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "setting")
    monkeypatch.setenv("HF_TOKEN", "no")
    line = "key 0123456789abcdef, a setting, no more; at http://me:pw@proxy:80: password=pw2 failed"
    assert redact(line) == "key ***, a setting, no more; at http://me@proxy:80: password=*** failed"
    as_a_path = "postgresql:/me:p w/2@host/x holds no study"
    assert redact(as_a_path) == "postgresql:/me@host/x holds no study"
    harmless = "mail me@host, loss=0.5, eca:kernel_size=9"
    assert redact(harmless) == harmless
