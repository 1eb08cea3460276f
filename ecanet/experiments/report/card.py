"""The model card of published weights: README.md with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ecanet.experiments.analysis.compare import column_title
from ecanet.experiments.report.papers import markdown_text
from ecanet.metrics import format_metric
from ecanet.statistics.design import Interval

_METRICS = {"test_accuracy": "accuracy", "test_macro_f1": "f1", "box_AP": "mAP"}
"""Metrics that the Hub has names for; the others keep ours."""


@dataclass(frozen=True)
class Measured:
    """A metric, by its column in a record, and its 95 % interval if it has one."""

    key: str
    value: float
    interval: Interval | None = None

    @property
    def title(self) -> str:
        """The metric's name: Test accuracy."""
        return column_title(self.key)

    def text(self, value: float) -> str:
        """Return a value of this metric with its unit."""
        if self.key.startswith(("box_", "mask_")):
            return f"{100 * value:.1f} %"
        return format_metric(self.key, value)

    @property
    def interval_text(self) -> str:
        """The interval, or a dash."""
        return " to ".join(map(self.text, self.interval)) if self.interval else "–"


@dataclass(frozen=True)
class StudyResult:
    """A study, and which of its runs is published."""

    run: str
    module: str
    runs: int
    """Of the module."""
    selected_by: str
    """The column by which the run was selected: val_accuracy."""
    table: str = ""
    """Of results, in Markdown; empty for a sweep."""
    command: str = ""
    """Runs the study again; empty for a sweep."""
    mean: Measured | None = None
    """The module's mean over its runs, with the interval over seeds."""
    images: Mapping[str, int] = field(default_factory=dict)
    """In each split; empty if unknown."""

    @property
    def selection(self) -> str:
        """The metric that the run was selected by, as text."""
        return self.selected_by.replace("val_", "validation ").replace("_", " ")


@dataclass(frozen=True)
class Card:
    """What a card shows. What is unknown is empty."""

    title: str
    """The network: resnet20 with attention eca."""
    name: str
    """Of the weights in commands: hf-hub:OWNER/NAME."""
    license: str
    detector: bool
    in_timm: bool
    """Whether timm can build the network."""
    plugins: Sequence[str] = ()
    data: str = ""
    seed: int | None = None
    epochs: int | None = None
    start: str = ""
    """What the weights were before training: scratch, or a name."""
    select: str = ""
    """Which epoch's weights they are: best or last."""
    measured: Sequence[Measured] = ()
    software: str = ""
    device: str = ""
    study: StudyResult | None = None

    @property
    def tested(self) -> bool:
        """Whether the metrics are of images that had no part in selecting the weights."""
        return self.select == "last" or any(one.key.startswith("test_") for one in self.measured)

    @property
    def command(self) -> str:
        """Trains the run again."""
        program = "ecanet detect train" if self.detector else "ecanet train"
        plugins = "".join(f" --plugin {file}" for file in self.plugins)
        return (
            f"{program} --recipe recipe.yaml --data DATA{plugins} --seed {self.seed} --out FOLDER"
        )

    @property
    def metadata(self) -> ModelCardData:
        """What the Hub reads."""
        task = "object-detection" if self.detector else "image-classification"
        results = [
            self._result(task, one, f"{one.title}, 1 run, seed {self.seed}")
            for one in self.measured
        ]
        if self.study and self.study.mean:
            name = f"{self.study.mean.title}, mean of {self.study.runs} seeds"
            results.append(self._result(task, self.study.mean, name, {"seeds": self.study.runs}))
        return ModelCardData(
            license=self.license,
            library_name="timm" if self.in_timm else "ecanet",
            pipeline_tag=task,
            tags=["ecanet", "attention", *(["timm"] if self.in_timm else [])],
            model_name=self.title,
            eval_results=results or None,
        )

    def _result(
        self, task: str, one: Measured, name: str, arguments: dict[str, int] | None = None
    ) -> EvalResult:
        return EvalResult(
            task_type=task,
            dataset_type=self.data,
            dataset_name=self.data,
            dataset_split="test" if one.key.startswith("test_") else "val",
            metric_type=_METRICS.get(one.key, one.key),
            metric_value=round(one.value, 6),
            metric_name=name,
            metric_args=arguments,
        )


def card_text(card: Card) -> str:
    """Return the card as Markdown with its metadata as YAML in front."""
    import jinja2

    templates = Path(__file__).parent / "templates"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # Names of classes and files may hold anything.
    environment.filters["plain"] = markdown_text
    text = environment.get_template("card.md.j2").render(card=card, study=card.study)
    return str(ModelCard(f"---\n{card.metadata.to_yaml()}\n---\n\n{text}"))
