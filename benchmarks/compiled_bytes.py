"""The bytes that a compiled training step moves on a GPU, counted without one.

    python benchmarks/compiled_bytes.py --model resnet50 --batch-size 256

Inductor plans the step for a GPU of 132 multiprocessors from tensors without values, and counts what its
kernels read and write, convolutions included. Networks: timm's without attention and with its ECA; ours
without attention, with ECA unfused and fused. The ratio of bytes bounds that of speeds where memory limits
both; it is no measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import timm
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._inductor import compile_fx, scheduler
from torch._inductor.dependencies import MemoryDep
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.utils._pytree import tree_map

from ecanet.files import write_json
from ecanet.models import create_model

PLAIN = "timm, plain"


def builders(name: str) -> dict[str, Callable[[], nn.Module]]:
    return {
        PLAIN: lambda: timm.create_model(name),
        "timm, eca": lambda: timm.create_model(name, block_args={"attn_layer": "eca"}),
        "ecanet, plain": lambda: create_model(name),
        "ecanet, eca, one by one": lambda: create_model(name, attention="eca", fused=False),
        "ecanet, eca, fused": lambda: create_model(name, attention="eca", fused=True),
    }


def properties() -> Any:
    """An H100's, as far as the compiler uses them."""
    return mock.Mock(
        name="H100", major=9, minor=0, multi_processor_count=132, warp_size=32, gcnArchName="",
        regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
        shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
        total_memory=80 * 2**30, L2_cache_size=50 * 2**20, clock_rate=1980000,
        memory_clock_rate=2619000, memory_bus_width=5120,
    )  # fmt: skip


@contextlib.contextmanager
def imagined_gpu() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for name, value in {
            "is_available": True,
            "_lazy_init": None,
            "_get_device_properties": properties(),
            "get_device_capability": (9, 0),
            "current_device": 0,
            "device_count": 1,
            "is_bf16_supported": True,
        }.items():
            stack.enter_context(
                mock.patch.object(torch.cuda, name, lambda *_, v=value, **__: v, create=True)
            )
        stack.enter_context(mock.patch.object(scheduler, "has_triton", return_value=True))
        # cuDNN's convolutions keep channels last.
        determine = "_conv_determine_backend_memory_format"
        stack.enter_context(
            mock.patch.object(torch._C, determine, return_value=torch.channels_last)
        )
        yield


def without_values(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape for the fake tensor mode; channels last if it has four axes."""
    layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
    return torch.empty(tensor.shape, dtype=tensor.dtype, memory_format=layout)


def on_gpu(
    graph_module: torch.fx.GraphModule, inputs: list[Any]
) -> tuple[torch.fx.GraphModule, list[Any]]:
    """Return a graph and its inputs, traced on a CPU, for a GPU: autograd traces on real GPUs only."""
    mode = FakeTensorMode()

    def moved(value: Any) -> Any:
        if not isinstance(value, FakeTensor):
            return value
        with mode:
            return torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device="cuda"
            )

    graph_module = copy.deepcopy(graph_module)
    for node in graph_module.graph.nodes:
        if "val" in node.meta:
            node.meta["val"] = tree_map(moved, node.meta["val"])
        if node.kwargs.get("device") is not None:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda", 0)}
    return graph_module, [moved(value) for value in inputs]


def kernel_bytes(node: Any) -> int:
    """Return the bytes that a kernel reads and writes.

    Inductor's own count takes whole buffers, also where one pixel of each image is read.
    """
    if isinstance(node, scheduler.ExternKernelSchedulerNode):
        return int(node.get_read_write_buffers_sizes())
    sizes: dict[str, int] = {}
    for dependency in node.read_writes.reads | node.read_writes.writes:
        if isinstance(dependency, MemoryDep):
            buffer = V.graph.get_buffer(dependency.name) or V.graph.graph_inputs[dependency.name]
            values = min(
                V.graph.sizevars.optimization_hint(n)
                for n in (buffer.get_numel(), dependency.get_numel())
            )
            size = values * buffer.get_dtype().itemsize
            sizes[dependency.name] = max(size, sizes.get(dependency.name, 0))
    return sum(sizes.values())


def bytes_moved(build: Callable[[], nn.Module], batch_size: int, image_size: int) -> dict[str, int]:
    """Return what the graphs of a training step (forward and backward) move, in how many kernels."""
    found = {"bytes": 0, "kernels": 0, "graphs": 0}

    def count(graph_module: torch.fx.GraphModule, inputs: list[Any], **known: Any) -> Any:
        planned, given = on_gpu(graph_module, inputs)
        # As Inductor prepares a graph before it plans kernels.
        mode = next(value for value in given if isinstance(value, FakeTensor)).fake_mode
        with V.set_fake_mode(mode), imagined_gpu(), unset_fake_temporarily():
            compile_fx.view_to_reshape(planned)
            compile_fx.record_original_output_strides(planned)
            compile_fx._recursive_post_grad_passes(planned, is_inference=False)
        graph = GraphLowering(
            planned,
            example_inputs=given,
            shape_env=compile_fx.shape_env_from_inputs(given),
            is_backward=known.get("is_backward", False),
        )
        with (
            imagined_gpu(),
            V.set_fake_mode(mode),
            V.set_debug_handler(mock.MagicMock()),
            V.set_graph_handler(graph),
            V.set_real_inputs(given),
            unset_fake_temporarily(),
        ):
            graph.run(*given)
            graph._update_scheduler()
            nodes = graph.scheduler.nodes
            found["bytes"] += sum(map(kernel_bytes, nodes))
            found["kernels"] += len(nodes)
            found["graphs"] += 1
        return compile_fx.make_boxed_func(graph_module.forward)

    def backend(graph_module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        return compile_fx.compile_fx(graph_module, inputs, inner_compile=count)

    torch._dynamo.reset()
    model = build()
    with FakeTensorMode():
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    module._parameters[name] = nn.Parameter(without_values(weight))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = without_values(buffer)
        x = torch.empty(batch_size, 3, image_size, image_size).to(memory_format=torch.channels_last)
        labels = torch.empty(batch_size, dtype=torch.int64)
        run = torch.compile(model, backend=backend, fullgraph=True)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(run(x).float(), labels)
        loss.backward()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--only", nargs="*", help="parts of the names of what is counted")
    parser.add_argument("--out", type=Path, help="JSON file for the record")
    flags = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    for name, build in builders(flags.model).items():
        if flags.only and not any(part in name for part in [PLAIN, *flags.only]):
            continue
        rows[name] = bytes_moved(build, flags.batch_size, flags.image_size)
        rows[name]["ratio"] = rows[name]["bytes"] / rows[PLAIN]["bytes"]
        print(
            f"{name:24} {rows[name]['bytes'] / 1e9:8.2f} GB {rows[name]['kernels']:6} kernels "
            f"{rows[name]['ratio']:7.4f} of plain",
            flush=True,
        )
    if flags.out:
        write_json(flags.out, {"torch": torch.__version__, "model": flags.model, "rows": rows})


if __name__ == "__main__":
    main()
