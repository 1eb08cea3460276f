"""The published figures, counted by hand and compared with the program's results."""

from __future__ import annotations

from pathlib import Path

import pytest

from ecanet.profiling import claims as claims_module
from ecanet.profiling import claims_text
from ecanet.profiling.claims import CONTRADICTED, EXACT, NOT_CHECKED, Claim, check_claims

DOCUMENT = Path(__file__).parents[2] / "docs" / "claims.md"


@pytest.fixture(scope="module")
def claims() -> list[Claim]:
    return check_claims()


def find(claims: list[Claim], subject: str, quantity: str) -> Claim:
    (claim,) = [c for c in claims if (c.subject, c.quantity) == (subject, quantity)]
    return claim


@pytest.mark.slow
def test_nothing_is_contradicted(claims: list[Claim]) -> None:
    assert [c for c in claims if c.verdict == CONTRADICTED] == []
    assert sum(c.verdict == EXACT for c in claims) == 57
    # Everything else that can be counted is named here, with a reason.
    near = [(c.subject, c.printed, c.ours) for c in claims if c.holds and c.verdict != EXACT]
    assert near[:2] == [("ECA-Net152", "57.41", "57.40"), ("ECA-MobileNet_v2", "319.9", "320.0")]
    assert len(near) == 10


@pytest.mark.parametrize(
    ("subject", "plain", "kernels", "printed"),
    [
        ("ECA-Net18", 11_689_512, 2 * 3 + 2 * 5 + 2 * 7 + 2 * 7, "11.15"),
        ("ECA-Net34", 21_797_672, 3 * 3 + 4 * 3 + 6 * 5 + 3 * 7, "20.79"),
        ("ECA-Net50", 25_557_032, 3 * 3 + 4 * 5 + 6 * 5 + 3 * 7, "24.37"),
        ("ECA-Net101", 44_549_160, 3 * 3 + 4 * 3 + 23 * 5 + 3 * 7, "42.49"),
        ("ECA-Net152", 60_192_808, 3 * 3 + 8 * 3 + 36 * 5 + 3 * 7, "57.41"),
        # 16 / 24 24 / 32 32 32 channels have k = 1, the other eleven blocks k = 3.
        ("ECA-MobileNet_v2", 3_504_872, 6 + 11 * 3, "3.34"),
    ],
)
@pytest.mark.slow
def test_sizes(claims: list[Claim], subject: str, plain: int, kernels: int, printed: str) -> None:
    claim = find(claims, subject, "parameters")
    assert claim.printed == printed
    assert claim.ours == f"{(plain + kernels) / 2**20:.2f}"
    assert claim.verdict == (EXACT if claim.ours == printed else "within 0.02 %")
    if subject != "ECA-MobileNet_v2":
        total = find(claims, subject, "parameters of all attention modules")
        assert (total.ours, total.verdict) == (str(kernels), EXACT)


@pytest.mark.slow
def test_detectors(claims: list[Claim]) -> None:
    """Layer by layer, weights + biases; a ResNet's first convolution and stage are frozen."""
    frozen = 9408 + 128 + 215_808
    backbone = {50: 25_557_032 - 2_049_000 - frozen, 101: 44_549_160 - 2_049_000 - frozen}
    conv = 256 * 256 * 9 + 256
    pyramid = 256 * (256 + 512 + 1024 + 2048) + 4 * 256 + 4 * conv
    proposals = conv + 257 * (3 + 12)
    boxes = (256 * 49 + 1) * 1024 + 1025 * 1024 + 1025 * (81 + 4 * 81)
    masks = 4 * conv + (256 * 256 * 4 + 256) + 257 * 81
    retina_pyramid = 256 * (512 + 1024 + 2048) + 3 * 256 + 4 * conv + (2048 * 256 * 9 + 256)
    retina_heads = 8 * conv + (256 * 9 + 1) * (9 * 80 + 9 * 4)
    for depth, plain in backbone.items():
        sizes = {
            "Faster R-CNN": plain + pyramid + proposals + boxes,
            "Mask R-CNN": plain + pyramid + proposals + boxes + masks,
            "RetinaNet": plain + retina_pyramid + retina_heads,
        }
        for name, size in sizes.items():
            claim = find(claims, f"{name}, ECA-Net{depth}", "trainable parameters")
            assert claim.ours == claim.printed == f"{size / 1e6:.2f}"


@pytest.mark.slow
def test_every_unchecked_figure_names_a_check(claims: list[Claim]) -> None:
    open_ = [c for c in claims if c.verdict == NOT_CHECKED]
    assert len(open_) == 113
    for claim in open_:
        assert claim.ours is None
        assert claim.check
        assert "{" not in claim.check
        assert "None" not in claim.check
    checks = {(c.subject, c.printed): c.check for c in open_}
    assert checks["ECA-Net50", "77.42"] == (
        "ecanet evaluate DATA -m eca_resnet50 --kernel-sizes 3557 "
        "--weights eca_resnet50_k3557.pth.tar"
    )


def test_a_wrong_figure_is_contradicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims_module, "_CLAIMS", tmp_path / "claims.yaml")
    (tmp_path / "claims.yaml").write_text("""\
models: {64 channels: {channels: 64}, 256 channels: {channels: 256}}
checks: {}
groups:
- quantity: kernel
  source: nowhere
  measure: kernel_size
  tolerance: 0.3
  values: {64 channels: '5', 256 channels: '4'}
""")
    wrong, near = check_claims()
    assert (wrong.ours, wrong.verdict, wrong.holds) == ("3", CONTRADICTED, False)
    assert (near.ours, near.verdict, near.holds) == ("5", "within 30 %", True)
    assert "1 contradicted" in claims_text.summary([wrong, near])


@pytest.mark.slow
def test_text_fits_a_terminal_and_names_every_figure(claims: list[Claim]) -> None:
    text = claims_text.text(claims)
    assert max(map(len, text.splitlines())) <= 80
    joined = " ".join(text.split())
    for claim in claims:
        assert f"{claim.subject} {claim.printed}" in joined


@pytest.mark.slow
def test_docs_claims_is_up_to_date(claims: list[Claim]) -> None:
    """To update it: ecanet profile --check-claims --markdown all > docs/claims.md"""
    assert DOCUMENT.read_text(encoding="utf-8") == claims_text.long_markdown(claims) + "\n"


@pytest.mark.slow
def test_the_short_table_has_the_published_models(claims: list[Claim]) -> None:
    short = claims_text.short_markdown(claims)
    assert short.count("| ECA-") == 6
    assert short.count(", ECA-Net") == 6
    assert "| ECA-Net50 | 24.37 M | 24.37 M | 3.86 G | 3.86 G | exact |" in short
    assert "docs/claims.md" in short
