"""Images for training: small sets as uint8 tensors in memory, augmented in batches on the device."""

from __future__ import annotations

from ecanet.aliases import SOURCES
from ecanet.data.batches import DeviceBatches
from ecanet.data.dataset import Data, Split
from ecanet.data.memory import load_data

__all__ = ["SOURCES", "Data", "DeviceBatches", "Split", "load_data"]
