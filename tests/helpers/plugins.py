"""Plugin files: attention modules of one's own."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent


def write_plugin(path: Path, name: str, forward: str = "return x * self.scale") -> str:
    """Write a plugin that registers a module with a scale, 0.5, for each channel; return its path."""
    path.write_text(
        "import os\nimport torch\nfrom ecanet import register_attention\n\n\n"
        f"@register_attention({name!r})\n"
        "class Module(torch.nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "        self.scale = torch.nn.Parameter(torch.full((channels, 1, 1), 0.5))\n\n"
        f"    def forward(self, x):\n{indent(forward, ' ' * 8)}\n"
    )
    return str(path)
