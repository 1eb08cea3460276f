"""The verb: what the attention of a study's or run's networks does, as a page."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna.trial import TrialState
from torch import Tensor

from ecanet.config import ExplainSettings
from ecanet.data.augment import normalize
from ecanet.data.stream import ImageDataset
from ecanet.environment import environment
from ecanet.errors import UserError, did_you_mean
from ecanet.experiments.plans.controls import is_control
from ecanet.experiments.report.explain import Heading, Pictures, write_explanation
from ecanet.experiments.run import write_report
from ecanet.experiments.study.study import Study, load_study
from ecanet.experiments.study.winner import find_weights, holds_study
from ecanet.explain.gates import hooked, pixel_factors
from ecanet.explain.images import Sample, sample_images
from ecanet.explain.network import Network, gates_of, look_at, open_network
from ecanet.explain.result import Attention, Explanation, Look, Pair, describe_gates, gate_rows
from ecanet.explain.saliency import class_maps, grad_cam, score_maps
from ecanet.models.holders import attention_modules
from ecanet.training.run_folder import is_run, kept_weights

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Run:
    """A run whose weights are there."""

    module: str
    place: int
    name: str
    weights: str
    seed: int | None = None
    value: float = 0.0
    """Of the metric that choices are made by; higher is better."""


def explain(source: str, settings: ExplainSettings, out: str | None = None) -> Path:
    """Show what attention does in the best run of each module of a comparison, or in one network.

    Args:
        source: folder of a study or of a run, or a file of weights. Of a sweep it is the best run.
        settings: of the images, and what is shown of them.
        out: folder of the page; by default the report's of a study, ``explain/`` in a run's, and ``explain``.

    Returns:
        The page, explain.html. Beside it are explain.json, CSV and PNG files.

    Raises:
        UserError: no weights were kept, there are no images or nothing to explain, or grad-cam is missing.
    """
    if settings.cams:
        grad_cam()
    folder = Path(source).expanduser()
    study = load_study(folder, "read") if holds_study(folder) else None
    notes: list[str] = []
    if study is not None and study.plan().kind == "compare":
        runs = _best_of_each(study, notes)
        title = study.plan().settings.title()
    else:
        weights = find_weights(source)
        assert weights is not None
        name = Path(weights).parent.name if is_run(Path(weights).parent) else Path(weights).name
        runs, title = [(_Run("", 1, name, weights), None)], name
    where = Path(out) if out else study.report_folder() if study else _beside(folder)
    made = _Making(settings, notes)
    for own, base in runs:
        made.add(own, base)
    if not (made.attention or made.pairs):
        raise UserError(
            f"{source}: there is no attention module to explain; leave out --cams 0 to see where "
            f"the network looks"
        )
    found = Explanation(made.source, made.attention, made.pairs, notes)
    heading = Heading(title, environment(made.networks[runs[0][0].weights].fabric.device))
    page = write_explanation(where, heading, found, made.rows, made.pictures)
    if study is not None and where == study.report_folder():
        write_report(study)  # which has a section on it
    return page


def _beside(folder: Path) -> Path:
    return folder / "explain" if folder.is_dir() else Path("explain")


def _best_of_each(study: Study, notes: list[str]) -> list[tuple[_Run, _Run | None]]:
    """Return the best run of each module among those whose weights are there, and the baseline's beside it.

    That is the one of the same seed, or else of the nearest.

    Raises:
        UserError: no run has kept its weights.
    """
    plan: Any = study.plan()
    sign = -1 if plan.direction == "minimize" else 1
    kept: dict[str, list[_Run]] = {}
    for trial in study.read_trials(TrialState.COMPLETE):
        about: dict[str, Any] = trial.user_attrs
        module, weights = str(about.get("attention")), kept_weights(study.run_folder(about["run"]))
        if weights and module in plan.attention and not is_control(module):
            value = sign * (trial.value if trial.value is not None else -np.inf)
            place = plan.attention.index(module)
            found = _Run(module, place, about["run"], str(weights), about.get("seed"), value)
            kept.setdefault(module, []).append(found)
    if not kept:
        raise UserError(
            f"{study.folder}: no run has kept its weights; --keep-weights last keeps all in a new study"
        )
    baseline, *modules = [name for name in plan.attention if not is_control(name)]
    for name in modules:
        if name not in kept:
            notes.append(f"{name} is left out: none of its runs has kept its weights.")
    runs: list[tuple[_Run, _Run | None]] = []
    for name in modules:
        if name in kept:
            own = max(kept[name], key=lambda run: run.value)
            base = min(
                kept.get(baseline, []),
                key=lambda run: (abs((run.seed or 0) - (own.seed or 0)), -run.value),
                default=None,
            )
            runs.append((own, base))
            if base is None:
                notes.append(
                    f"No run of {baseline} has kept its weights: {own.name} is shown alone."
                )
            elif base.seed != own.seed:
                notes.append(
                    f"{own.name} is shown beside {base.name}: the weights of {baseline} with the same seed "
                    "were not kept, so the two differ by chance as well."
                )
    return runs or [(max(kept[baseline], key=lambda run: run.value), None)]


class _Making:
    """An explanation that is being made, one pair of networks at a time."""

    def __init__(self, settings: ExplainSettings, notes: list[str]) -> None:
        self.settings, self.notes = settings, notes
        self.networks: dict[str, Network] = {}
        self.samples: dict[str, Sample] = {}
        self.source = ""
        self.attention: list[Attention] = []
        self.pairs: list[Pair] = []
        self.pictures: list[Pictures] = []
        self.rows: list[dict[str, Any]] = []

    def add(self, own: _Run, base: _Run | None) -> None:
        for run in (base, own):
            if run is not None and run.weights not in self.networks:
                self._explain_gates(run)
        if self.settings.cams:
            self._look(own, base)

    def _explain_gates(self, run: _Run) -> None:
        network = self.networks[run.weights] = open_network(run.weights, self.settings)
        sample = self._sample(run)
        if not attention_modules(network.classifier.model):
            return
        log.info("%s: %s", run.name, sample.source)
        drawn = [_number(name, network.names) for name in self.settings.classes]
        answers = look_at(network, sample, drawn or None)
        gates = gates_of(answers, sample)
        classes, layers = describe_gates(gates, network.names, drawn)
        by: Any = "predicted" if sample.numbers is None else "true"
        module = self._module(run)
        images = len(answers.predicted)
        self.attention.append(Attention(module, run.place, run.name, images, by, classes, layers))
        about = {"module": module, "run": run.name}
        self.rows += [about | row for row in gate_rows(gates, network.names, list(classes))]

    def _module(self, run: _Run) -> str:
        """Return the module of a run, by its weights if no study says it."""
        return (
            run.module or self.networks[run.weights].classifier.metadata.get("attention") or "none"
        )

    def _sample(self, run: _Run) -> Sample:
        if run.weights not in self.samples:
            classifier = self.networks[run.weights].classifier
            self.samples[run.weights] = sample_images(self.settings, run.weights, classifier)
        sample = self.samples[run.weights]
        self.source = self.source or sample.source
        return sample

    def _look(self, own: _Run, base: _Run | None) -> None:
        first = base or own
        sample = self._sample(first)
        images, labels, names = _chosen(self.networks[first.weights], sample, self.settings.cams)
        network = self.networks[first.weights]
        if labels is None:
            labels = _logits(network, images).argmax(1).cpu()
        classes = [network.names[number] for number in labels.tolist()]
        looks, maps = [], []
        for run in (own, *([base] if base else [])):
            found, where = self._look_of(run, images, labels)
            looks.append(found)
            maps.append(where)
        self.pairs.append(Pair(names, classes, looks[0], looks[1] if base else None))
        spatial = self._spatial(own, images)
        self.pictures.append(Pictures(images, maps[0], maps[1] if base else None, spatial))

    def _look_of(self, run: _Run, images: Tensor, labels: Tensor) -> tuple[Look, Tensor]:
        network = self.networks[run.weights]
        model, x = network.classifier.model, _input(network, images)
        maps = class_maps(model, x, labels)
        insertion, deletion = score_maps(model, x, labels, maps)
        shares = _logits(network, images).double().softmax(1).cpu()
        return Look(
            self._module(run),
            run.place,
            run.name,
            [network.names[number] for number in shares.argmax(1).tolist()],
            shares.gather(1, labels[:, None])[:, 0].tolist(),
            insertion.tolist(),
            deletion.tolist(),
        ), maps

    def _spatial(self, run: _Run, images: Tensor) -> dict[str, Tensor]:
        """Return by what the ends of stages multiply each pixel, where that is no gate of channels."""
        network = self.networks[run.weights]
        found = [one for one in self.attention if one.run == run.name]
        names = [n.name for one in found for n in one.layers if n.curves and n.unexplained]
        if not names:
            return {}

        def factors(module: Any, x: Tensor, y: Tensor) -> Tensor:
            return pixel_factors(x, y).cpu()

        with hooked(network.classifier.model, factors) as maps:
            _logits(network, images)
        return {name: maps[name] for name in names}


def _number(name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise UserError(
            f"--classes {name}: the weights have no such class.{did_you_mean(name, names)}"
        )
    return list(names).index(name)


def _chosen(
    network: Network, sample: Sample, count: int
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Return images, uint8 (N, C, S, S), evenly over a sample, their labels if known, and names."""
    listed = network.list(sample)
    dataset = ImageDataset(listed, network.classifier.preprocessing, 0, "skip")
    places = sorted(set(np.linspace(0, len(listed) - 1, count).round().astype(int).tolist()))
    found = [(*dataset[0, place], listed.files[place]) for place in places]
    readable = [(image, label, name) for image, label, fault, name in found if fault is None]
    if not readable:
        raise UserError("none of the images that maps were to be made of can be decoded")
    images, labels, names = zip(*readable, strict=True)
    numbers = None if sample.numbers is None else torch.tensor([sample.numbers[i] for i in labels])
    return torch.stack(images), numbers, list(names)


def _input(network: Network, images: Tensor) -> Tensor:
    device = network.fabric.device
    mean, std = network.classifier.preprocessing.statistics(device)
    return normalize(images.to(device), mean, std, network.settings.channels_last)


def _logits(network: Network, images: Tensor) -> Tensor:
    return network.classifier.logits(
        network.fabric, images.to(network.fabric.device), network.settings
    )
