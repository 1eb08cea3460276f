"""Named places in the networks of LibreYOLO. LibreYOLO is not imported.

Such a network has a backbone, a neck (or the encoder of a DETR) and a head.
"""

from __future__ import annotations

from torch import nn

# Classes of modules that are blocks of several convolutions.
_BLOCKS = {
    "Blocks", "CSPLayer", "CSPRepLayer", "CSPResStage", "CSPStage", "ELAN", "ESBlock", "ESBlockDS",
    "HG_Block", "RepNCSPELAN", "RepNCSPELAN4", "YoloNASCSPLayer",
}  # fmt: skip
# Parts of a network without places: what is only there in training, and what makes boxes.
_NO_PLACE = ("aux", "head", "heads", "decoder")

IMAGE_SIZE = 640
"""A size that all of them take: D-FINE's smallest takes none that is much smaller."""


def is_libreyolo(model: nn.Module) -> bool:
    """Whether a network is a detector of LibreYOLO."""
    return type(model).__module__.startswith("libreyolo.models.") and hasattr(model, "backbone")


def libreyolo_places(network: nn.Module) -> dict[str, list[str]]:
    """Return the names of the blocks at each of :data:`ecanet.models.yolo.PLACES`."""
    blocks: list[str] = []
    outer: tuple[str, ...] = ()
    for name, module in network.named_modules():
        inside = name.startswith(outer)
        is_block = not _BLOCKS.isdisjoint(kind.__name__ for kind in type(module).__mro__)
        if is_block and not inside and name.partition(".")[0] not in _NO_PLACE:
            # RTMDet's blocks have an attention of their own before their last layer.
            has_own = hasattr(module, "channel_attention")
            blocks.append(f"{name}.final_conv" if has_own else name)
            outer += (f"{name}.",)
    # YOLOX calls both together the backbone.
    inner = hasattr(network.backbone, "backbone")
    prefix = "backbone.backbone." if inner else "backbone."
    backbone = [name for name in blocks if name.startswith(prefix)]
    neck = [name for name in blocks if name not in backbone]
    # The neck goes up with its first blocks, and down with the others. The head reads the last of the first
    # ones, and all others.
    read = neck[(len(neck) - 1) // 2 :]
    return {"blocks": blocks, "backbone": backbone, "neck": neck, "before-detect": read}
