"""The charts of an explanation: the index by layer, gates by class; and pictures of where networks look."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ecanet.experiments.report.image import content_of, own_style
from ecanet.experiments.report.style import (
    Chart,
    add_line,
    add_markers,
    cut,
    module_style,
    new_figure,
    printable,
    text,
)
from ecanet.explain.result import Attention, LayerNumbers, Pair

_TICKS = 16
# Colors of classes, by their places in those of modules: neighbors there are alike, as blue and light blue.
_CLASSES = (1, 2, 3, 5, 6, 4, 7)
# How much of a picture is the color of the map, where that is highest.
_OPACITY = 0.7


@dataclass
class Pictures:
    """What the maps of a :class:`ecanet.explain.result.Pair` are drawn from."""

    images: Tensor
    """uint8 (N, C, S, S)."""
    own: Tensor
    """(N, S, S), 0 to 1."""
    base: Tensor | None
    spatial: dict[str, Tensor] = field(default_factory=dict)
    """Factors of the pixels, (N, H, W), by layer."""


def short_name(layer: str) -> str:
    """Return a layer's name without what all have at the end: ``layer1.0`` for ``layer1.0.attention``."""
    return re.sub(r"(\.drop_path)?\.attention$", "", layer)


def index_chart(attention: Sequence[Attention]) -> Chart:
    """Draw the input-dependence index of each network, layer by layer."""
    figure = new_figure(360)
    for network in attention:
        style, name = module_style(network.place), text(network.module)
        line = [(i, layer.index) for i, layer in enumerate(network.layers)]
        names = [text(short_name(layer.name)) for layer in network.layers]
        add_line(figure, line, style.color, 2, meta=network.place)
        hover = f"{name}, %{{customdata}}: %{{y:.3f}}<extra></extra>"
        add_markers(
            figure, line, style.color, 9, style.symbol, name=name, customdata=names,
            hovertemplate=hover, meta=network.place, cliponaxis=False,
        )  # fmt: skip
    longest = max(attention, key=lambda network: len(network.layers)).layers
    places = range(0, len(longest), -(-len(longest) // _TICKS))
    labels = [text(cut(printable(short_name(longest[i].name)), 14)) for i in places]
    figure.update_xaxes(tickvals=list(places), ticktext=labels, tickangle=-40, showgrid=False)
    figure.update_yaxes(title_text="Index", rangemode="tozero")
    caption = (
        "The share of the variance of a layer's factors that is between images: 0 for a gate that is the "
        "same for every image, whatever its channels; 1 where all channels share one factor, which depends "
        "on the image alone."
    )
    return Chart("attention-index", "How much each layer depends on the image", caption, figure)


def class_charts(network: Attention) -> list[Chart]:
    """Draw a network's gates by class at the end of each stage, as Fig. 5 of the ECA-Net paper does."""
    ends = [layer for layer in network.layers if layer.curves]
    return [_class_chart(network, layer, i) for i, layer in enumerate(ends)]


def _class_chart(network: Attention, layer: LayerNumbers, number: int) -> Chart:
    figure = new_figure(330)
    for i, (name, means) in enumerate(layer.curves.items()):
        points = [(channel, value) for channel, value in enumerate(means) if value is not None]
        label = text(printable(name), width=24, lines=1)
        hover = f"{label}, channel %{{x}}: %{{y:.3f}}<extra></extra>"
        color = module_style(_CLASSES[i % len(_CLASSES)]).color
        add_line(figure, points, color, 1.5, name=label, hovertemplate=hover, showlegend=True)
    figure.update_layout(
        showlegend=True,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        meta=f"{cut(network.module)}, {short_name(layer.name)}",
    )
    figure.update_xaxes(title_text="Channel", tickformat="d", showgrid=False)
    figure.update_yaxes(title_text="Mean factor")
    counts = ", ".join(f"{cut(printable(name))} {count}" for name, count in network.classes.items())
    caption = (
        f"Mean over the images of each {network.by} class ({counts}). The index of this layer is "
        f"{layer.index:.3f}."
    )
    title = f"{network.module}, {short_name(layer.name)}: factors by class"
    return Chart(f"gates-{network.place}-{number}", title, caption, figure)


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """Return an image, uint8 (C, S, S), in grey under the colors of a map (S, S): uint8 (3, S, S)."""
    from matplotlib import colormaps

    grey = image.float().mean(0, keepdim=True).expand(3, -1, -1)
    colors = torch.from_numpy(colormaps["inferno"](heat.numpy())[..., :3]).float().permute(2, 0, 1)
    share = _OPACITY * (0.25 + 0.75 * heat)
    return ((1 - share) * grey + share * 255 * colors).clamp(0, 255).to(torch.uint8)


def spatial_picture(factors: Tensor, side: int) -> Tensor:
    """Return factors of pixels (H, W) as grey, the lowest black and the highest white: uint8 (1, S, S)."""
    low, high = factors.min(), factors.max()
    grey = (255 * (factors - low) / (high - low).clamp_min(1e-12)).to(torch.uint8)
    large = torch.nn.functional.interpolate(grey[None, None].float(), (side, side), mode="nearest")
    return large[0].to(torch.uint8)


def rows_of(pair: Pair, pictures: Pictures) -> dict[str, list[Tensor]]:
    """Return the pictures of each image by what they show: the image, the maps, factors of pixels."""
    side, images = pictures.images.shape[-1], list(pictures.images)
    rows = {"image": images}
    if pair.base is not None and pictures.base is not None:
        rows[pair.base.module] = [
            overlay(*both) for both in zip(images, pictures.base, strict=True)
        ]
    rows[pair.own.module] = [overlay(*both) for both in zip(images, pictures.own, strict=True)]
    for layer, maps in pictures.spatial.items():
        rows[f"pixels of {short_name(layer)}"] = [spatial_picture(one, side) for one in maps]
    return rows


def maps_image(pair: Pair, pictures: Pictures) -> bytes:
    """Draw all maps of a pair of networks: the content of a PNG, a column for each image."""
    from matplotlib.figure import Figure

    rows = rows_of(pair, pictures)
    columns = len(pair.images)
    with own_style():
        figure = Figure(
            figsize=(1.25 * columns + 0.6, 1.25 * len(rows) + 0.4), layout="constrained"
        )
        axes = figure.subplots(len(rows), columns, squeeze=False)
        for line, (name, drawn) in zip(axes, rows.items(), strict=True):
            for ax, one in zip(line, drawn, strict=True):
                pixels = one.expand(3, -1, -1).permute(1, 2, 0).numpy()
                ax.imshow(np.ascontiguousarray(pixels))
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
            line[0].set_ylabel(cut(printable(name), 18), fontsize="small")
        for ax, name in zip(axes[0], pair.classes, strict=True):
            ax.set_title(cut(printable(name), 14), fontsize="small")
        return content_of(figure, "png")
