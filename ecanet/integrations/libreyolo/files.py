"""Files of weights of a run, in LibreYOLO's layout."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from ecanet.config import LibreYoloSettings
from ecanet.errors import as_user_error
from ecanet.files import write_atomic
from ecanet.integrations.libreyolo.library import contained, require
from ecanet.models.insert import insert_attention

# Ends the name of the family: LibreYOLO, which would drop the modules without a word, then refuses the file.
_MARK = "+ecanet"


def save_model(file: Path, wrapper: Any, network: Any, settings: LibreYoloSettings) -> None:
    """Write a network's weights, without what is only there in training.

    Without attention modules, ``LibreYOLO(file)`` takes the file; with them, :func:`load_model` does.
    """
    wrap = require("libreyolo.utils.serialization").wrap_libreyolo_checkpoint
    weights = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if not name.startswith(("aux.", "aux_head."))
    }
    inserted, extra = settings.attention not in (None, "none"), {}
    if inserted:
        names = ("attention", "places", "identity")
        extra = {"ecanet": {name: getattr(settings, name) for name in names}}
    content = wrap(
        weights,
        model_family=wrapper.FAMILY + (_MARK if inserted else ""),
        size=wrapper.size,
        task="detect",
        nc=wrapper.nb_classes,
        names=wrapper.names,
        imgsz=settings.image_size,
        **extra,
    )
    written = io.BytesIO()
    torch.save(content, written)
    file.parent.mkdir(exist_ok=True)
    write_atomic(file, written.getbuffer())


def load_model(file: str | Path, device: str = "cpu") -> Any:
    """Return LibreYOLO's object with the network of a run, attention modules included.

    Args:
        file: ``weights/last.pt`` of a run. No code of it is run.
        device: as LibreYOLO takes it.

    Raises:
        UserError: it is no such file, or LibreYOLO is missing.
    """
    with contained():
        from ecanet.integrations.libreyolo.networks import Origin

        with as_user_error(f"{file} is not a LibreYOLO weight file"):
            content = torch.load(file, map_location="cpu", weights_only=True)
            family = content["model_family"].removesuffix(_MARK)
            wrapper = Origin(f"{family}-{content['size']}").plain(content["nc"])
            ours = content.get("ecanet")
            if ours is not None:
                insert_attention(
                    wrapper.model,
                    ours["attention"],
                    ours["places"],
                    identity=bool(ours["identity"]),
                )
            wrapper.model.load_state_dict(content["model"])
    wrapper.names = content["names"]
    wrapper.model.to(device).eval()
    wrapper.device = torch.device(device)
    return wrapper
