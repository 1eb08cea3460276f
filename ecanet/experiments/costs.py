"""What each attention module costs in a network, classifier or detector, on this machine."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from ecanet.config import ClassificationSettings, DetectionSettings, OutsideSettings
from ecanet.experiments.plans.compare import with_arm, with_attention
from ecanet.experiments.plans.controls import Control
from ecanet.heap import keep_freed_memory
from ecanet.models.counts import count_parameters
from ecanet.profiling import measure_costs
from ecanet.profiling.detectors import measure_detector_costs
from ecanet.profiling.memory import activation_bytes
from ecanet.record import Cost
from ecanet.training.classification import build_model
from ecanet.training.device import resolve_device, threads_kept
from ecanet.training.train import task_of, warnings_only


def measure(
    settings: Any,
    attention: list[str],
    data: Any,
    *,
    controls: Mapping[str, Control] | None = None,
    repeats: int = 5,
) -> list[Cost]:
    """Measure what each module costs in the network under resolved settings, on this machine.

    On a CPU, on the threads torch has been given; a study gives one, because several threads' speed
    collapses as soon as anything else wants a core.

    Args:
        controls: those among ``attention``, by name.
        repeats: measurements of each speed.

    Raises:
        UserError: a module fails in the network.
    """
    if isinstance(settings, OutsideSettings):
        return task_of(settings).costs(settings, attention, data)
    of_each = {name: with_arm(settings, name, controls or {}) for name in attention}
    how: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "device": resolve_device(settings.device),
        "precision": settings.precision,
        "channels_last": settings.channels_last,
        "repeats": repeats,
    }
    if isinstance(settings, DetectionSettings):
        from ecanet.detection.task import build_detector

        train, _ = data.folders
        assert settings.min_size is not None
        assert settings.max_size is not None
        costs = measure_detector_costs(
            {name: build_detector(own, train) for name, own in of_each.items()},
            train,
            min_size=settings.min_size[-1],
            max_size=settings.max_size,
            **how,
        )
    else:
        costs = measure_costs(
            {
                name: functools.partial(build_model, own, data, load=False)
                for name, own in of_each.items()
            },
            image_size=settings.image_size,
            in_chans=data.channels,
            num_classes=len(data.classes),
            compile=settings.compile == "on",
            **how,
        )
    torch.cuda.empty_cache()  # the memory is for the runs
    return costs


def estimate_step_memory(settings: ClassificationSettings, attention: str, data: Any) -> int:
    """Return about how many bytes a training step holds: weights, their gradients, Adam's two states,
    activations."""
    model = build_model(with_attention(settings, attention), data, load=False)
    try:
        kept, _ = activation_bytes(model, data.image_size, data.channels)
    except Exception:
        # What depends on values cannot be estimated without them.
        return 0
    assert settings.batch_size is not None
    activations = kept * settings.batch_size // (1 if settings.precision == "float32" else 2)
    return activations + 4 * 4 * count_parameters(model)


@contextmanager
def single_thread() -> Iterator[None]:
    """Let torch work as in one of several runs side by side: on one thread of the CPU, without news."""
    keep_freed_memory()
    with threads_kept(), warnings_only():
        torch.set_num_threads(1)
        yield
