"""Reading ImageNet for training: ecanet's stream beside ImageFolder on PIL, in one run, as a ratio.

    python benchmarks/image_pipeline.py PATH/images

PATH/images is a folder of class folders. Both sides decode, take a random resized crop of 224 pixels,
flip and batch in the main process, on one thread: images a second of one core. The usual side also
makes floats and normalises on the core, as its scripts do; ecanet leaves that to the device, so its
normalisation of the batch, on the same core here, is counted too. They take turns; a side's figure is
the median over the turns, the ratio the median of the ratios turn by turn.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from sides import in_words, ratio_of, write_record
from torch import Tensor

from ecanet.config import Augmentation
from ecanet.data.augment import normalize
from ecanet.data.preprocessing import MEAN, STD, Preprocessing
from ecanet.data.stream import ImageDataset, ImageList, ShardedBatchSampler, make_loader
from ecanet.data.transforms import train_transform
from ecanet.heap import keep_freed_memory

SIZE, BATCH = 224, 20
AUGMENTATION = Augmentation(flip=True, scale=[0.08, 1.0])


def usual(folder: Path) -> Iterator[Tensor]:
    """Yield batches for ever, the way most scripts for ImageNet make them."""
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )
    data = datasets.ImageFolder(str(folder), transform)
    for _ in itertools.count():
        for images, _labels in DataLoader(data, BATCH, shuffle=True, drop_last=True):
            yield images


def ours(folder: Path) -> Iterator[Tensor]:
    """Yield batches for ever from ecanet's stream, normalised as its trainer does."""
    files = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    images = ImageList(folder, files, [0] * len(files), ["all"])
    order = ShardedBatchSampler(len(images), BATCH, shuffle=True)
    dataset = ImageDataset(
        images, train_transform(AUGMENTATION, Preprocessing.of_crop(SIZE, 0.875), SIZE), seed=0
    )
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    loader = make_loader(dataset, order, workers=0, pin=False)
    for epoch in itertools.count():
        order.seek(epoch)
        for batch in loader:
            yield normalize(batch.images, mean, std, channels_last=True)


def images_per_second(batches: Iterator[Tensor], count: int) -> float:
    """Time ``count`` batches."""
    start = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path, help="folder of class folders")
    parser.add_argument("--batches", type=int, default=10, help="batches a turn")
    parser.add_argument("--repeats", type=int, default=9, help="turns")
    parser.add_argument("--out", type=Path, help="folder for the record")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # for both: our loader's processes have it, the other side gains by it too
    sides: dict[str, Callable[[Path], Iterator[Tensor]]] = {
        "ImageFolder, PIL, torchvision transforms v1": usual,
        "ecanet": ours,
    }
    running = {name: make(flags.images) for name, make in sides.items()}
    for batches in running.values():
        images_per_second(batches, flags.batches)  # files into the system's cache
    rates: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(flags.repeats):
        for name, batches in running.items():
            rates[name].append(images_per_second(batches, flags.batches))
    usual_rates, our_rates = rates.values()
    ratio = ratio_of(our_rates, usual_rates)
    record: dict[str, Any] = {
        "what": "images/s of one core: decode, random resized crop 224, flip, normalise",
        "images_per_second": {name: statistics.median(r) for name, r in rates.items()},
        "ratio": ratio,
        "repeats": flags.repeats,
        "settings": {"size": SIZE, "batch": BATCH, **asdict(AUGMENTATION)},
    }
    for name, rate in record["images_per_second"].items():
        print(f"{name:45} {rate:7.0f} images/s a core")
    print(in_words(ratio))
    write_record(flags.out, "image-pipeline", record)


if __name__ == "__main__":
    main()
