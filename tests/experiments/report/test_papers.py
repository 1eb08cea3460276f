"""What papers take from a report: LaTeX and Markdown, SVG and PDF, and the methods in words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args
from xml.etree import ElementTree

import pytest
import yaml
from helpers.browsing import Visit
from helpers.commands import Refuse, Run
from helpers.pages import EVIL, Page
from helpers.runs import read_csv
from helpers.stub_study import make_plan
from helpers.synthetic import make_accuracies, make_summary

from ecanet.attention import list_attention
from ecanet.attention.registry import attention_paper
from ecanet.errors import UserError
from ecanet.experiments.analysis.compare import BOX_AP, PRECISIONS, StudySummary
from ecanet.experiments.analysis.statistics import study_statistics
from ecanet.experiments.plans.compare import ComparePlan
from ecanet.experiments.plans.controls import Control
from ecanet.experiments.report.compare import make_report, result_rows
from ecanet.experiments.report.methods import citations, methods
from ecanet.experiments.report.page import PaperFormat
from ecanet.experiments.report.papers import latex_text, markdown_text
from ecanet.experiments.study.location import Location
from ecanet.experiments.study.study import create_study
from ecanet.statistics.design import Design

EFFECTS = {"none": 0.0, "se": 0.0, "eca": 0.02}
HOSTILE = [
    EVIL, "50 % & #1 of $x_i^2$", r"\input{/etc/passwd}", "{", "}}", "a|b`c`", "*star", "[bracket", "--dash",
    "two\nlines", "\x1b[31m\u202e", "模块", "**bold**", '"quoted"', "~tilde^",
]  # fmt: skip
SETTINGS: dict[str, Any] = {
    "data": "photos/cifar10/", "model": "resnet20", "epochs": 30, "batch_size": 128, "image_size": 32,
    "eval_size": 32, "select": "best", "loss": "cross_entropy", "label_smoothing": 0.1, "precision": "bf16",
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
    "schedule": {"name": "step", "warmup_epochs": 2.0, "milestones": [10, 20]},
    "augmentation": {"flip": True, "crop_padding": 4, "mixup": 0.2},
}  # fmt: skip

pytestmark = pytest.mark.usefixtures("quick_collections")


@pytest.fixture(scope="module")
def study() -> StudySummary:
    return make_summary(make_accuracies(EFFECTS, 6))


@pytest.fixture(scope="module")
def written(study: StudySummary, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("papers")
    report = make_report(study)
    report.write(out, None)
    return out


def check_latex(text: str) -> list[list[str]]:
    """Check LaTeX as far as that needs none: return the cells of its rows, as they are written."""
    # Escaped and other commands first, so that what is left of special characters would act as such.
    bare = re.sub(r"\\(?:[a-z]+\*?|[{}$&#%_]|\\)", " ", text)
    assert not re.search(r"[\\#%_~^]", bare.replace("~ ", " ")), bare
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    environments: list[str] = []
    for verb, name in re.findall(r"\\(begin|end)\{(.+?)\}", text):
        if verb == "begin":
            environments.append(name)
        else:
            assert environments.pop() == name
    assert environments == []
    rows = []
    for table in re.findall(r"\\toprule\n(.+?)\\bottomrule", text, re.DOTALL):
        lines = [line for line in table.splitlines() if line != r"\midrule"]
        assert all(line.endswith(r" \\") for line in lines)
        cells = [re.split(r" ?(?<!\\)& ?", line[:-3]) for line in lines]
        assert len({len(row) for row in cells}) == 1
        rows += cells
    return rows


def test_latex_has_a_table_with_everything(written: Path) -> None:
    text = (written / "table.tex").read_text()
    rows = {row[0]: row for row in check_latex(text)[:5]}
    assert rows["none"][3:6] == ["---"] * 3
    assert rows["se"][5] in ("equivalent", "undecided")
    # In bold is what is better by its verdict.
    assert rows[r"\textbf{eca}"][5] == r"\textbf{better}"
    assert r"\textbf" not in "".join(rows["none"] + rows["se"])
    assert r"\label{tab:resnet20-on-digits-results}" in text
    assert r"with 95~\% intervals that hold for all 2 comparisons together" in " ".join(
        text.split()
    )


def test_the_best_mean_is_not_bold_without_a_verdict() -> None:
    summary = make_summary({"none": [0.90, 0.91, 0.92, 0.93], "se": [0.93, 0.90, 0.92, 0.94]})
    assert r"\textbf" not in make_report(summary).texts["latex"]["table.tex"]


def test_markdown_has_the_numbers_of_the_csv(written: Path) -> None:
    lines = (written / "table.md").read_text().splitlines()
    table = [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]
    head, _, *rows = table
    for row, result in zip(rows, read_csv(written / "results.csv"), strict=True):
        cells = dict(zip(head, (cell.strip("*").replace("−", "-") for cell in row), strict=True))
        assert cells["Module"] == result["attention"]
        mean, sd = map(float, cells["Test accuracy (%)"].split(" ± "))
        assert mean == round(100 * float(result["test_accuracy_mean"]), 2)
        assert sd == round(100 * float(result["test_accuracy_sd"]), 2)
        assert cells["Seeds"] == result["runs"]
        assert int(cells["Parameters"].replace(",", "")) == int(result["parameters"])
        assert float(cells["Training speed"]) == round(float(result["train_ratio"]), 2)
        assert float(cells["Inference speed"]) == round(float(result["inference_ratio"]), 2)
        if result["finding"] != "baseline":
            assert cells["Verdict"] == result["finding"]
            numbers = [cells["Difference (points)"], *cells["95 % interval"].split(" to ")]
            for shown, key in zip(numbers, ("mean", "low", "high"), strict=True):
                assert float(shown) == round(100 * float(result[f"difference_{key}"]), 2)


def hostile_study() -> StudySummary:
    summary = make_summary(make_accuracies(dict.fromkeys(["none", *HOSTILE], 0.0), 4))
    summary.title = "resnet20_x on 100%_real & {more}"
    summary.environment["device"] = "CPU #1 (50 % of $2)"
    return summary


def test_hostile_names_are_text_in_every_format(tmp_path: Path) -> None:
    report = make_report(hostile_study())
    rows = check_latex(report.texts["latex"]["table.tex"])
    names = [row[0] for row in rows[3 : 3 + len(HOSTILE)]]
    assert names == [latex_text(name) for name in HOSTILE]
    for line in report.texts["markdown"]["table.md"].splitlines():
        if line.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", line)) in (11, len(HOSTILE) + 2)
        assert not re.search(r"(?<!\\)[<>`]", line)
    assert markdown_text("a|b") == r"a\|b"
    for path in report.write(tmp_path, ["svg"])[:-1]:
        ElementTree.parse(path)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")
def test_latex_compiles(tmp_path: Path) -> None:
    summary = hostile_study()
    # pdflatex has no fonts for these; xelatex and lualatex do.
    summary.attention.remove("模块")
    summary.records = [record for record in summary.records if record.attention != "模块"]
    table = (
        make_report(summary).texts["latex"]["table.tex"].replace("\N{REPLACEMENT CHARACTER}", "?")
    )
    document = r"\documentclass{article}\usepackage{booktabs}\begin{document}%s\end{document}"
    (tmp_path / "paper.tex").write_text(document % table)
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "paper.tex"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:]


def test_figures_are_vectors_with_text(written: Path) -> None:
    names = {path.stem for path in written.glob("*.png")}
    assert {"points", "pareto"} == names
    for name in names:
        texts = [e.text for e in ElementTree.parse(written / f"{name}.svg").iter() if e.text]
        assert any("eca" in text for text in texts), "text is text"
        content = (written / f"{name}.pdf").read_bytes()
        assert content.startswith(b"%PDF-")
        assert b"/FontFile2" in content, "fonts are embedded as TrueType"
        assert b"/Type3" not in content


@pytest.mark.slow
@pytest.mark.parametrize("format", get_args(PaperFormat))
def test_files_are_the_same_each_time(
    study: StudySummary, tmp_path: Path, format: PaperFormat
) -> None:
    contents = []
    for out in (tmp_path / "a", tmp_path / "b"):
        paths = make_report(study).write(out, [format])[:-1]
        contents.append({path.name: path.read_bytes() for path in paths})
    assert contents[0] == contents[1] != {}
    assert not any(re.search(rb"CreationDate|<dc:date>", c) for c in contents[0].values())


def test_methods_of_a_sequential_and_a_fixed_design(study: StudySummary) -> None:
    study = make_summary(make_accuracies(EFFECTS, 6))
    study.margin, study.settings = 0.008, dict(SETTINGS)
    study.images = {"train": 45000, "val": 5000, "test": 10000}
    fixed = " ".join(methods(study, study_statistics(study), {}))
    assert "judged once, with all of them." in fixed
    study.records[-1].final["test_accuracy"] = float("nan")
    short = " ".join(methods(study, study_statistics(study), {}))
    assert "with all of them; eca was judged with fewer, at the level that is kept" in short
    assert "1 run ended without a finite test accuracy and was left out." in short
    study.design = Design(12)
    study.records = study.records[:-2]
    sequential = " ".join(methods(study, study_statistics(study), {}))
    for text in (fixed, sequential):
        for part in (
            "se and eca were compared with none, the network without such a module, in resnet20 on cifar10",
            "45,000 training, 5,000 validation and 10,000 test images",
            "from scratch for 30 epochs in batches of 128 images, with SGD (peak learning rate 0.1, Nesterov "
            "momentum 0.9, weight decay 0.0005) and a learning rate divided by ten after epochs 10 and 20, "
            "after a linear warm-up of 2 epochs",
            "cross-entropy with label smoothing 0.1",
            "mirrored with probability 1/2, cropped after padding by 4 pixels and mixed by mixup (alpha 0.2)",
            "The epoch that did best on the validation split was tested.",
            "divided by 2 for the number of comparisons (Bonferroni)",
            "within 0.80 percentage points of 0",
            "with 95 % all of them hold the true difference",
            "Example CPU, 2 cores, in bf16, with batches of 128 images and 5 repeats",
            "ecanet 0.1.0, PyTorch 2.14.1",
        ):
            assert part in text
    assert "with 6 seeds each" in fixed
    assert "The design was fixed, with 6 seeds planned beforehand" in fixed
    assert "6 seeds for none, 6 seeds for se and 4 seeds for eca" in sequential
    assert "The design was sequential" in sequential
    assert "the planned maximum of 12 seeds" in sequential
    assert "The study is not complete: 16 of 18 runs have finished." in sequential


def test_methods_name_what_went_wrong_and_controls() -> None:
    study = make_summary(make_accuracies({"none": 0.0, "se": 0.0, "control:time": 0.0}, 5))
    study.controls = {"control:time": Control("time", "se", 1.24, 1.239, epoch_length=1.24)}
    study.failed = [{"attention": "se", "seed": 5, "error": "OutOfMemoryError"}]
    study.records[1].epochs[2]["train_loss"] = float("nan")
    study.skipped_images, study.pairing = ["a.jpg", "b.jpg"], "paired"
    text = " ".join(methods(study, study_statistics(study), {}))
    assert "The attention module se was compared with none" in text
    assert "control:time is none trained 1.239 times as long" in text
    assert "2 images could not be read and were left out." in text
    assert "1 run failed and was left out." in text
    assert "A loss was not finite in 1 run, which was counted like all others." in text
    assert "by Student's paired t test, from the seeds that both have finished" in text
    assert "welch1947" not in citations(study)
    rows = result_rows(study, study_statistics(study), {})
    assert [row["training_length"] for row in rows] == [1.0, 1.0, 1.239]
    assert "Training length" in make_report(study).texts["markdown"]["table.md"]


def test_a_study_of_detectors() -> None:
    study = make_summary(make_accuracies(EFFECTS, 4), metric=BOX_AP)
    study.settings = {
        "model": "resnet50", "detector": "mask_rcnn", "data": "coco", "epochs": 12, "flip": True,
        "min_size": [640, 800], "max_size": 1333, "backbone_weights": "a/r50.safetensors", "frozen_stages": 1,
        "schedule": {"name": "step", "warmup_steps": 500, "milestones": [8, 11]},
    }  # fmt: skip
    report = make_report(study)
    text, table = report.texts["methods"]["methods.md"], report.texts["markdown"]["table.md"]
    check_latex(report.texts["latex"]["table.tex"])
    for part in (
        "in mask_rcnn with a resnet50 backbone on coco",
        "from the weights in r50.safetensors for 12 epochs",
        "after a linear warm-up of 500 steps",
        "a short side of 640 and 800 pixels",
        "Not trained: the first stage of the backbone.",
        "Nothing was chosen by the evaluation images",
    ):
        assert part in text
    assert "Box AP (%)" in table
    assert f"| Module | {' | '.join(PRECISIONS)} |" in table


def test_a_study_without_a_run(tmp_path: Path) -> None:
    for study in (make_summary({}), make_summary({"none": [], "eca": []}, seeds=4)):
        report = make_report(study)
        check_latex(report.texts["latex"]["table.tex"])
        written = report.write(tmp_path, ["svg", "markdown"])
        assert [path.name for path in written] == ["table.md", "index.html"]
    assert "Preliminary: 0 of 8 runs finished." in (tmp_path / "table.md").read_text()


def test_files_for_papers_stay_in_step_with_the_page(tmp_path: Path) -> None:
    first = make_report(make_summary(make_accuracies(EFFECTS, 3)))
    *papers, page = first.write(tmp_path, ["latex", "svg"])
    old = {path: path.read_text() for path in papers}
    assert all(path.name in page.read_text() for path in papers), "the page names them"
    make_report(make_summary(make_accuracies(EFFECTS, 8))).write(tmp_path)
    for path, content in old.items():
        assert path.read_text() != content
        assert path.name in page.read_text()
    assert {path.suffix for path in tmp_path.iterdir()} >= {".tex", ".svg", ".png"}
    assert not {".pdf", ".md"} & {path.suffix for path in tmp_path.iterdir()}


@pytest.mark.parametrize("there", [None, "{}", '{"title": "of another study"}', "[1"])
def test_a_report_leaves_files_alone_that_are_not_of_its_study(
    tmp_path: Path, there: str | None
) -> None:
    (tmp_path / "table.tex").write_text("mine")
    if there is not None:
        (tmp_path / "report.json").write_text(there)
    make_report(make_summary(make_accuracies(EFFECTS, 3))).write(tmp_path)
    assert (tmp_path / "table.tex").read_text() == "mine"


def test_a_sweep_has_figures_alone(tmp_path: Path) -> None:
    report = make_report(make_summary(make_accuracies(EFFECTS, 3)))
    report.texts = {}
    with pytest.raises(UserError, match="--format latex is for comparisons"):
        report.write(tmp_path, ["svg", "latex"])
    assert list(tmp_path.iterdir()) == []
    names = {path.suffix for path in report.write(tmp_path, None)}
    assert names == {".svg", ".pdf", ".html"}


def test_every_module_of_ecanet_has_its_paper_in_bibtex() -> None:
    names = [name for name in list_attention() if attention_paper(name)]
    assert len(names) >= 15
    for name in names:
        found = citations(make_summary({"none": [0.9], name: [0.9]}))
        assert "@misc{" + name + "," not in found, f"references.bib lacks the paper of {name}"
    found = citations(make_summary({"none": [0.9], "eca:kernel_size=3": [0.9], "simam": [0.9]}))
    for part in ("1910.03151", "SimAM", "version = {0.1.0}", "welch1947"):
        assert part in found
    assert found.count("{") == found.count("}")
    keys = re.findall(r"^@\w+\{(\w+),$", found, re.M)
    assert len(keys) == len(set(keys))


def test_ecanet_is_cited_as_it_asks_for() -> None:
    root = Path(__file__).parents[3]
    cff = yaml.safe_load((root / "CITATION.cff").read_text())
    found = citations(make_summary({"none": [0.9], "eca": [0.9]})).replace("{CNNs}", "CNNs")
    assert f"title = {{{cff['title']}}}" in found
    assert f"{{{{{cff['authors'][0]['name']}}}}}" in found
    for author in cff["references"][0]["authors"]:
        assert f"{author['family-names']}, {author['given-names']}" in found


def test_the_page_has_them_selectable_and_copied(browser: Any, written: Path) -> None:
    page = Page(written / "index.html")
    shown = " ".join((written / "table.tex").read_text().split())
    assert shown.split(r"\end{table*}")[0] in page.words
    assert "The design was fixed" in page.words
    buttons = [attributes for tag, attributes in page.tags if attributes.get("class") == "copy"]
    ids = {attributes.get("id") for _, attributes in page.tags}
    assert len(buttons) == 6
    assert all("hidden" in b and b["data-copies"] in ids for b in buttons), "shown by the script"
    visit = Visit(
        browser, written / "index.html", 390, permissions=["clipboard-read", "clipboard-write"]
    )
    try:
        visit.page.locator("section[aria-labelledby=papers] summary").nth(1).click()
        button = visit.page.locator("[data-copies=latex-results]")
        button.click()
        visit.page.get_by_role("button", name="Copied").wait_for()
        copied = visit.page.evaluate("navigator.clipboard.readText()")
        assert copied == (written / "table.tex").read_text().split("\n\n")[0] + "\n"
        assert (visit.errors, visit.overflow()) == ([], 0)
    finally:
        visit.context.close()


def test_the_command_prints_what_it_wrote(workdir: Path, run: Run, refuse: Refuse) -> None:
    plan = make_plan(1, ComparePlan, attention=["none", "eca"])
    create_study(Location(workdir / "mine"), plan, [], {})
    code, out, _ = run("report", "mine", "--format", "latex, methods")
    folder = Path("mine/report")
    names = ["table.tex", "methods.md", "references.bib"]
    assert (code, out.splitlines()) == (0, [str(folder / name) for name in names])
    assert json.loads((folder / "report.json").read_text())["attention"] == ["none", "eca"]
    code, out, _ = run("report", "mine", "--format", "all", "--out", "there")
    assert out.splitlines() == [
        "there/table.tex",
        "there/table.md",
        *(f"there/{n}" for n in names[1:]),
    ]
    refuse("take latex, markdown, svg, pdf, methods or all", "report", "mine", "--format", "word")
