"""torch.compile: whether a run is long enough for it, and that what is to run compiled does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ecanet.errors import UserError

# Seconds that a run must last for the start of torch.compile to pay for itself (ResNet-20 on 2 cores: 35 to
# 50 s of compilation for 5 % of speed).
_LEAST = {"cuda": 180.0, "cpu": 3600.0}
# Sustained multiply-adds a second of a few CPU cores in training on small images.
_CPU_RATE = 1e11
# Dense bf16 multiply-adds per clock of a multiprocessor, by compute capability.
_DATA_CENTER = {(8, 0): 1024, (9, 0): 2048, (10, 0): 4096, (10, 3): 4096}
# Graphs of one network: for training, for evaluation, by sizes. If more are wanted, something in it changes
# from call to call.
_GRAPHS = 8


def gpu_rate(capability: tuple[int, int], multiprocessors: int) -> float:
    """Return about how many multiply-adds a second a GPU sustains in training in bf16.

    A quarter of what its tensor cores could do at 1.5 GHz: 1e14 on an H100, 4e13 on an A100, 8e12 on a T4.
    """
    others = 512 if capability >= (7, 0) else 128
    return multiprocessors * _DATA_CENTER.get(capability, others) * 1.5e9 / 4


def compile_pays(macs: int, images: int, device: torch.device) -> bool:
    """Whether a run of ``images`` forward and backward passes is long enough for torch.compile.

    A rule of the work and the kind of device, not of a measurement, so that all runs of a study agree.
    ``macs`` are the multiply-adds of one image's forward pass; training costs three times that.
    """
    if device.type not in _LEAST:
        return False
    rate = _CPU_RATE
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        rate = gpu_rate((properties.major, properties.minor), properties.multi_processor_count)
    return 3 * macs * images / rate > _LEAST[device.type]


@contextmanager
def compiling(models: int = 1) -> Iterator[None]:
    """Let nothing that is compiled inside ``with`` run uncompiled unnoticed.

    Dynamo keeps compiled graphs by their code, which all networks of a class share, and runs the ninth as it
    is, with no more than a line in the log. It also takes sizes that differ from those of an earlier network
    for dynamic, which is slower: what was compiled before is forgotten.

    Args:
        models: how many are compiled.

    Raises:
        UserError: one of them is compiled again and again.
    """
    # It takes seconds to import, so only what compiles does.
    import torch._dynamo
    from torch._dynamo.exc import FailOnRecompileLimitHit

    torch.compiler.reset()
    limit = _GRAPHS * models
    try:
        with torch._dynamo.config.patch(
            recompile_limit=limit,
            accumulated_recompile_limit=max(
                limit, torch._dynamo.config.accumulated_recompile_limit
            ),
            fail_on_recompile_limit_hit=True,
            suppress_errors=False,
        ):
            yield
    except FailOnRecompileLimitHit as error:
        raise UserError(
            f"torch.compile has compiled a network more than {_GRAPHS} times, as something in it changes "
            "from call to call: give --compile off"
        ) from error
