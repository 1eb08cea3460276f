"""What a comparison did, as the methods section of a paper has it, and the sources to cite."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ecanet.attention.registry import attention_paper
from ecanet.errors import counted, listed, percent
from ecanet.experiments.analysis.compare import BOX_AP, StudySummary
from ecanet.experiments.analysis.images import OtherImages
from ecanet.experiments.analysis.statistics import StudyStatistics
from ecanet.experiments.plans.controls import NAMES, PLAIN, modules_of
from ecanet.experiments.report.papers import label, latex_text
from ecanet.experiments.report.style import printable
from ecanet.statistics.design import FIRST_LOOK, FUTILE

_REFERENCES = Path(__file__).with_name("references.bib")
# Entries of that file which every comparison cites.
_ALWAYS = ("ecanet", "pytorch", "timm", "bouthillier2021", "lakens2017")
_OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW", "lamb": "LAMB"}
_SPLITS = {"train": "training", "val": "validation", "test": "test", "eval": "evaluation"}


def methods(
    summary: StudySummary, statistics: StudyStatistics, others: Mapping[str, OtherImages]
) -> list[str]:
    """Return paragraphs on what was compared, how it was trained, judged and measured.

    They state what the study's settings and runs say and nothing else; what is unknown is left out.

    Args:
        others: what is shown of each module for other images.
    """
    return [
        printable(" ".join(" ".join(part).split()))
        for part in (
            _compared(summary, statistics),
            _training(summary.settings),
            _statistics(summary, statistics, others),
            _machine(summary),
        )
        if part
    ]


# What was compared


def _compared(summary: StudySummary, statistics: StudyStatistics) -> list[str]:
    baseline, settings = statistics.baseline, summary.settings
    modules = [name for name in modules_of(summary.attention) if name != baseline]
    plain = f"{baseline}, the network without such a module" if baseline == PLAIN else baseline
    network = str(settings.get("model") or "the network")
    if detector := settings.get("detector"):
        network = f"{detector} with a {network} backbone"
    where = f"{network} on {str(settings.get('data')).rstrip('/').rpartition('/')[2]}"
    if "data" not in settings:
        where = f"runs of {summary.metric.reported_by}"
    noun = "attention module" if len(modules) == 1 else "attention modules"
    text = []
    if modules:
        text.append(
            f"The {noun} {listed(modules)} {_was(modules)} compared with {plain}, in {where}."
        )
    else:
        text.append(f"Networks were trained with {plain}, in {where}.")
    for name, control in summary.controls.items():
        what = (
            f"trained {control.reached:.3f} times as long"
            if control.resource == "time"
            else f"with stages of {listed(list(map(str, control.channels or [])))} channels"
        )
        text.append(
            f"As a control, {name} is {PLAIN} {what}, which gives it the {NAMES[control.resource]} of "
            f"{control.module} ({control.reached:.3f} and {control.cost:.3f} times those of {PLAIN})."
        )
    if summary.built_in:
        own = listed([f"{number} {kind}" for kind, number in summary.built_in.items()])
        text.append(f"The network has attention modules of its own: {own}.")
    if images := [
        f"{count:,} {_SPLITS[split]}" for split, count in summary.images.items() if count
    ]:
        text.append(f"The data has {listed(images)} images.")
    elif settings.get("validation"):
        text.append(
            f"{percent(settings['validation'])} of the training images were held out for validation."
        )
    if settings.get("group_by"):
        text.append(
            f"Images of one group ({settings['group_by']} in their names) are in one split."
        )
    if summary.skipped_images:
        text.append(
            f"{counted(len(summary.skipped_images), 'image')} could not be read and "
            f"{_was(summary.skipped_images)} left out."
        )
    if summary.metric == BOX_AP or summary.metric.reported_by:
        text.append(summary.metric.splits)
    else:
        text.append(
            "Every choice was made on the validation split; the test split was read once per run, at its end."
        )
    return text


def _was(names: Sequence[Any]) -> str:
    return "was" if len(names) == 1 else "were"


# How it was trained


def _training(settings: Mapping[str, Any]) -> list[str]:
    get = settings.get
    if "epochs" not in settings:
        return []
    start = "from scratch"
    if get("pretrained"):
        start = "from weights pretrained on ImageNet"
    elif weights := get("weights") or get("backbone_weights"):
        start = f"from the weights in {str(weights).rpartition('/')[2]}"
    first = f"Networks were trained {start} for {counted(settings['epochs'], 'epoch')}"
    if get("epoch_length", 1.0) != 1.0:
        first += f" of {get('epoch_length'):.4g} passes over the training images each"
    if batch := get("batch_size"):
        first += f" in batches of {counted(batch, 'image')}"
    text = [f"{first}, with {_optimizer(settings)}{_schedule(settings)}."]
    text.append(_loss(settings))
    text.append(_images(settings))
    frozen = get("freeze")
    if frozen == "backbone":
        text.append("Not trained: the backbone.")
    elif isinstance(frozen, int):
        text.append(f"Not trained: the stem and {counted(frozen, 'stage')}.")
    elif stages := get("frozen_stages"):
        first = "stage" if stages == 1 else f"{stages} stages"
        text.append(f"Not trained: the first {first} of the backbone.")
    if get("identity"):
        text.append("Inserted attention modules started as the identity.")
    if get("replace_attention"):
        text.append("They took the place of the attention modules that the network has of its own.")
    if get("kernel_sizes"):
        text.append(f"ECA's kernel sizes by stage were {get('kernel_sizes')}.")
    if get("select") == "best":
        text.append("The epoch that did best on the validation split was tested.")
    elif get("select") == "last":
        text.append("The weights after the last epoch were tested.")
    if get("ema_decay"):
        text.append(
            "An exponential moving average of the weights was evaluated, with a decay of "
            f"{get('ema_decay'):g} per step."
        )
    if get("precision", "auto") != "auto":
        text.append(f"Training was computed in {get('precision')}.")
    return text


def _optimizer(settings: Mapping[str, Any]) -> str:
    optimizer = settings.get("optimizer") or {}
    name = optimizer.get("name", "sgd")
    parts = []
    if (lr := optimizer.get("lr")) is not None:
        base = settings.get("lr_batch_size")
        scaled = f" for {base} images, scaled with the batch" if isinstance(base, int) else ""
        parts.append(f"peak learning rate {lr:g}{scaled}")
    if name == "sgd" and optimizer.get("momentum"):
        nesterov = "Nesterov momentum" if optimizer.get("nesterov") else "momentum"
        parts.append(f"{nesterov} {optimizer['momentum']:g}")
    if optimizer.get("weight_decay"):
        parts.append(f"weight decay {optimizer['weight_decay']:g}")
    if optimizer.get("layer_decay"):
        parts.append(f"layer-wise decay of the learning rate {optimizer['layer_decay']:g}")
    if optimizer.get("new_lr_scale", 1.0) != 1.0:
        parts.append(f"{optimizer['new_lr_scale']:g} times the learning rate for new layers")
    if settings.get("clip_grad"):
        parts.append(f"gradients clipped to a norm of {settings['clip_grad']:g}")
    title = _OPTIMIZERS.get(name, name)
    return f"{title} ({', '.join(parts)})" if parts else title


def _schedule(settings: Mapping[str, Any]) -> str:
    schedule = settings.get("schedule") or {}
    if "name" not in schedule:
        return ""
    epochs = list(map(str, schedule.get("milestones") or []))
    steps = f"epoch{'' if len(epochs) == 1 else 's'} {listed(epochs)}" if epochs else "no epoch"
    text = {
        "cosine": " and a cosine schedule",
        "onecycle": " and a one-cycle schedule",
        "step": f" and a learning rate divided by ten after {steps}",
        "exponential": " and a learning rate multiplied by 0.98 after each epoch",
        "constant": " and a constant learning rate",
    }[schedule["name"]]
    if schedule.get("warmup_steps"):
        return f"{text}, after a linear warm-up of {counted(schedule['warmup_steps'], 'step')}"
    if schedule.get("warmup_epochs") and schedule["name"] in ("cosine", "step", "exponential"):
        epochs = schedule["warmup_epochs"]
        return f"{text}, after a linear warm-up of {epochs:g} epoch{'' if epochs == 1 else 's'}"
    return text


def _loss(settings: Mapping[str, Any]) -> str:
    get = settings.get
    if "loss" not in settings:
        return ""
    text = "The loss was the cross-entropy"
    if get("loss") == "bce":
        text = "The loss was a binary cross-entropy per class"
    if get("label_smoothing"):
        text += f" with label smoothing {get('label_smoothing'):g}"
    if get("class_weights") == "balanced":
        text += ", with images weighted in inverse proportion to the size of their class"
    if get("balanced_sampling"):
        text += ", over images drawn so that all classes were equally frequent"
    if get("drop_rate"):
        text += f"; dropout before the classifier was {get('drop_rate'):g}"
    return f"{text}."


def _images(settings: Mapping[str, Any]) -> str:
    get = settings.get
    text = []
    if side := get("image_size"):
        evaluated = get("eval_size") or side
        at = "" if evaluated == side else f", those evaluated {evaluated} × {evaluated}"
        text.append(f"Images had {side} × {side} pixels{at}.")
    elif sides := get("min_size"):
        text.append(
            f"Images had a short side of {listed(list(map(str, sides)))} pixels, and a long side of at most "
            f"{get('max_size')}."
        )
    augmentation = get("augmentation") or ({"flip": get("flip")} if "flip" in settings else None)
    if augmentation is None:
        return " ".join(text)
    changes = []
    if augmentation.get("flip"):
        changes.append("mirrored with probability 1/2")
    if augmentation.get("crop_padding"):
        changes.append(f"cropped after padding by {counted(augmentation['crop_padding'], 'pixel')}")
    if scale := augmentation.get("scale"):
        changes.append(f"cropped to {100 * scale[0]:g} to {100 * scale[1]:g} % of their area")
    if augmentation.get("cutout"):
        changes.append(f"blanked in a square of {augmentation['cutout']} pixels")
    policy = augmentation.get("policy", "none")
    if policy == "randaugment":
        changes.append(f"changed by RandAugment of magnitude {augmentation.get('magnitude')}")
    elif policy == "trivialaugment":
        changes.append("changed by TrivialAugment")
    mixes = [
        f"{title} (alpha {augmentation[name]:g})"
        for name, title in (("mixup", "mixup"), ("cutmix", "CutMix"))
        if augmentation.get(name)
    ]
    if mixes:
        changes.append(f"mixed by {' or '.join(mixes)}")
    text.append(
        f"Training images were {listed(changes)}, at random."
        if changes
        else "Training images were not augmented."
    )
    return " ".join(text)


# How it was judged


def _statistics(
    summary: StudySummary, statistics: StudyStatistics, others: Mapping[str, OtherImages]
) -> list[str]:
    if len(statistics.modules) < 2:
        return []
    design, metric = statistics.design, statistics.metric
    runs = {module.attention: len(module.accuracies) for module in statistics.modules}
    if len(set(runs.values())) == 1:
        each = f"{counted(next(iter(runs.values())), 'seed')} each"
    else:
        each = listed([f"{counted(n, 'seed')} for {name}" for name, n in runs.items()])
    text = []
    if summary.unfinished:
        text.append(
            f"The study is not complete: {len(summary.records)} of {counted(len(summary.planned), 'run')} "
            "have finished."
        )
    text.append(
        f"Networks were trained with {each}."
        + (
            ""
            if not metric.shares_seed
            else " Runs of one seed share the initial weights that their networks have in common, the order "
            "of the images and the augmentation."
        )
    )
    if design.sequential:
        text.append(
            f"The design was sequential: results were looked at after every seed from the {FIRST_LOOK}th on, "
            "and a module got no further seed once it had a verdict, or once the chance of one within the "
            f"planned maximum of {design.seeds} seeds was below {100 * FUTILE:g} %."
        )
    else:
        short = [
            name
            for name, c in statistics.comparisons.items()
            if c.interval and len(c.seeds) < design.seeds
        ]
        text.append(
            f"The design was fixed, with {counted(design.seeds, 'seed')} planned beforehand and results "
            "judged once, with all of them"
            + (
                f"; {listed(short)} {_was(short)} judged with fewer, at the level "
                "that is kept for other looks."
                if short
                else "."
            )
        )
    if max(runs.values()) > design.seeds:
        text.append(
            f"The study was later extended to {max(runs.values())} seeds, which its intervals allow for."
        )
    if summary.failed:
        text.append(
            f"{counted(len(summary.failed), 'run')} failed and {_was(summary.failed)} left out."
        )
    if diverged := [seed for module in statistics.modules for seed in module.diverged]:
        text.append(
            f"A loss was not finite in {counted(len(diverged), 'run')}, which {_was(diverged)} counted like "
            "all others."
        )
    if blank := [seed for module in statistics.modules for seed in module.without_accuracy]:
        text.append(
            f"{counted(len(blank), 'run')} ended without a finite {metric.name} and {_was(blank)} left out."
        )
    n = design.comparisons
    many = (
        f"divided by {n} for the number of comparisons (Bonferroni)"
        if n > 1
        else "for the one comparison"
    )
    text.append(
        f"Each module's mean {metric.name} was compared with that of {statistics.baseline} by "
        f"{_TESTS[summary.pairing]}, from the seeds that both have finished. "
        f"The level is {percent(1 - design.confidence)}, {many}, and calibrated by simulation so that "
        "the probability of a false finding is at most that, "
        + (
            "over all looks together."
            if design.sequential
            else "at the planned look and any beside it."
        )
    )
    within = f"{metric.difference(summary.margin, sign=False)} {_difference_unit(statistics)}"
    text.append(
        "Intervals hold every difference that this test does not reject; with "
        f"{percent(design.confidence)} all of them hold the true difference. A module is called better or "
        f"worse if its interval leaves out 0, equivalent if the interval lies within {within} of 0, the "
        "smallest difference taken to matter, and undecided otherwise. The intervals describe the "
        "variation between seeds on these test images, not other images, networks or settings."
    )
    if any(found.interval for found in others.values()):
        text.append(
            "Intervals for other images like these take seeds and test images as two crossed random factors: "
            "the variance of a difference is the sum of its components, with Satterthwaite's degrees of "
            "freedom, at the same confidence."
        )
    return text


_TESTS = {
    "auto": "the average of the p-values of Student's paired t test and Welch's unpaired one, weighted by "
    "the posterior probabilities that runs of one seed do and do not correlate",
    "paired": "Student's paired t test",
    "unpaired": "Welch's unpaired t test",
}


def _difference_unit(statistics: StudyStatistics) -> str:
    return "percentage points" if statistics.metric.is_share else statistics.metric.difference_unit


# The machine


def _machine(summary: StudySummary) -> list[str]:
    text = []
    if summary.costs:
        text.append(
            "Multiply-adds are those of one image's forward pass. Speeds were measured on random images that "
            "stay on the device, without loading: of training steps (forward, backward, update) and of "
            "inference, the modules in turns; they are medians."
        )
        kinds = {(c.device, c.precision, c.batch_size, c.train.repeats) for c in summary.costs}
        for device, precision, batch, repeats in sorted(kinds):
            text.append(
                f"This was done on {device}, in {precision}, with batches of {counted(batch, 'image')} and "
                f"{counted(repeats, 'repeat')}."
            )
    environments = [record.environment for record in summary.records] or [summary.environment]
    if devices := _values(environment.get("device") for environment in environments):
        text.append(f"Runs were trained on {listed(devices)}.")
    titles = {"ecanet": "ecanet", "torch": "PyTorch", "timm": "timm", "python": "Python"}
    found = []
    for key, title in titles.items():
        versions = _values(e.get("versions", {}).get(key) for e in environments)
        if versions:
            found.append(f"{title} {' and '.join(versions)}")
    if found:
        commits = _values(environment.get("commit") for environment in environments)
        commit = f" (commit of ecanet: {listed(commits)})" if commits else ""
        text.append(f"Software: {', '.join(found)}{commit}.")
    return text


def _values(values: Iterable[Any]) -> list[str]:
    """Return different values that are known, in their order."""
    return list(dict.fromkeys(str(value) for value in values if value))


# Sources


def citations(*summaries: StudySummary) -> str:
    """Return what a paper on comparisons cites, as BibTeX: ecanet, the modules' papers, other sources."""
    known = _references()
    keys, others = list(_ALWAYS), []
    for spec in modules_of([name for summary in summaries for name in summary.attention]):
        paper = attention_paper(spec)
        found = [key for key, entry in known.items() if paper and _is_of(paper, entry)]
        keys += found
        if paper and not found:
            others.append(_entry(spec, paper))
    if any(summary.pairing != "paired" for summary in summaries):
        keys.append("welch1947")
    if any(summary.design and summary.design.sequential for summary in summaries):
        keys.append("jennison2000")
    version = str(summaries[0].environment.get("versions", {}).get("ecanet", "unknown"))
    entries = [known[key].replace("VERSION", version) for key in dict.fromkeys(keys)]
    return "\n\n".join([*entries, *dict.fromkeys(others)]) + "\n"


@functools.cache
def _references() -> dict[str, str]:
    """Return the entries of references.bib by key."""
    entries = _REFERENCES.read_text(encoding="utf-8").strip().split("\n\n")
    return {entry[entry.index("{") + 1 : entry.index(",")]: entry for entry in entries}


def _is_of(paper: str, entry: str) -> bool:
    """Whether an entry is the paper that a module's docstring names, by its arXiv number or its title."""
    number = re.search(r"eprint = \{(.+?)\}", entry)
    title = re.search(r"title = \{(.+?)\},\n", entry)
    return any(
        found and found[1].replace("{", "").replace("}", "") in paper for found in (number, title)
    )


def _entry(spec: str, paper: str) -> str:
    """Return an entry for the paper of a module that references.bib does not have."""
    name = label(spec)
    return (
        f"@misc{{{name},\n  title = {{{latex_text(spec)}}},\n  note = {{{latex_text(paper)}}},\n}}"
    )


def methods_files(paragraphs: Sequence[str], sources: str) -> dict[str, str]:
    """Return the files of the methods and their sources, as BibTeX: names and contents."""
    content = "\n\n".join([*paragraphs, "## References", f"```bibtex\n{sources}```"])
    return {"methods.md": f"{content}\n", "references.bib": sources}
