"""Attention modules: each takes ``channels`` first, keeps the shape (N, C, H, W), and has a registered name.

``create_attention("eca:kernel_size=9", 64)`` builds one, ``list_attention()`` lists all names, and
``register_attention`` adds your own; see docs/attention.md.
"""

from .cbam import CBAM
from .coord import CoordAttention
from .eca import ECA, ECANS, ECACircular, eca_kernel_size
from .ela import ELA
from .ema import EMA
from .fca import FCA
from .gate import PooledGate
from .gather_excite import GatherExcite
from .gct import GCT
from .global_context import GlobalContext
from .none import NoAttention
from .registry import (
    create_attention,
    list_attention,
    load_plugin,
    parse_attention,
    plugin_module,
    register_attention,
)
from .se import SE, SEGroup, SEVar1, SEVar2, SEVar3
from .simam import SimAM
from .srm import SRM
from .triplet import TripletAttention

__all__ = [
    "CBAM",
    "ECA",
    "ECANS",
    "ELA",
    "EMA",
    "FCA",
    "GCT",
    "SE",
    "SRM",
    "CoordAttention",
    "ECACircular",
    "GatherExcite",
    "GlobalContext",
    "NoAttention",
    "PooledGate",
    "SEGroup",
    "SEVar1",
    "SEVar2",
    "SEVar3",
    "SimAM",
    "TripletAttention",
    "create_attention",
    "eca_kernel_size",
    "list_attention",
    "load_plugin",
    "parse_attention",
    "plugin_module",
    "register_attention",
]
