"""The cost-matched control: the plain network, given what an attention module costs.

``control:time`` is trained longer; ``control:macs`` and ``control:parameters`` are wider. Each is an arm of a
comparison like a module, whose name it takes the place of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, cast, get_args

from ecanet.attention import list_attention
from ecanet.config import ClassificationSettings, TrainingSettings
from ecanet.errors import UserError, did_you_mean

Resource = Literal["time", "macs", "parameters"]

PLAIN = "none"
"""The arm that controls are made of."""
WITHIN = 0.02
"""How far a control's cost may be from its module's, as a share of it."""
NAMES: dict[Resource, str] = {
    "time": "training time",
    "macs": "multiply-adds",
    "parameters": "parameters",
}

_Settings = TypeVar("_Settings", bound=TrainingSettings)
_NAME = "control"


@dataclass
class Control:
    """What a control is given in place of a module; settled once, when a study gets it."""

    resource: Resource
    module: str
    """The module whose cost it has."""
    cost: float
    """The module's cost, relative to the plain network's."""
    reached: float
    """The control's own."""
    epoch_length: float | None = None
    """In place of the plain network's setting; None: unchanged."""
    channels: list[int] | None = None

    def settings(self, plain: _Settings) -> _Settings:
        """Return the control's settings, of those of the plain network.

        Raises:
            UserError: a value is none that the settings can have.
        """
        if self.epoch_length is not None:
            return replace(plain, epoch_length=self.epoch_length)
        if not isinstance(plain, ClassificationSettings):
            raise UserError("detectors are not widened")
        return cast(_Settings, replace(plain, channels=self.channels))

    def describe(self, name: str, plain: TrainingSettings) -> str:
        """Return the line on it for a log or a report.

        Args:
            name: of the arm.
            plain: settings of the plain network.
        """
        if self.epoch_length is not None:
            passes = [plain.epochs * length for length in (self.epoch_length, plain.epoch_length)]  # type: ignore[operator]
            what = "trained for {:.4g} passes over the images in place of {:.4g}".format(*passes)
        else:
            what = f"with {', '.join(map(str, self.channels or []))} channels in its stages"
        off = 100 * abs(self.reached / self.cost - 1)
        return (
            f"the control, {name}, is {PLAIN} {what}: "
            f"{self.reached:.3f} times the {NAMES[self.resource]} of {PLAIN}, matched within {off:.1f} % to "
            f"{self.module}, which takes {self.cost:.3f} times"
        )


def is_control(arm: str) -> bool:
    """Whether an arm of a comparison is a control, by its name."""
    return arm.partition(":")[0].strip() == _NAME


def control_name(arm: str) -> str:
    """Return the full name of a control: ``control`` is ``control:time``; other arms keep their names."""
    return f"{_NAME}:time" if arm.strip() == _NAME else arm


def parse_control(name: str) -> tuple[Resource, str | None]:
    """Return the resource of a control, and the module that it names: ``control:macs=se``.

    Raises:
        UserError: there is no such resource, or a module of the user's has the name of controls.
    """
    if _NAME in list_attention():
        raise UserError(
            f"an attention module is registered as {_NAME}, which is the name of the cost-matched control: "
            "give it another name"
        )
    resource, equals, module = (part.strip() for part in name.partition(":")[2].partition("="))
    if resource not in get_args(Resource) or bool(equals) != bool(module):
        raise UserError(
            f"--attention {name}: a control is {_NAME}:time, {_NAME}:macs or {_NAME}:parameters, with the "
            f"module whose cost it gets if that is not the most expensive: {_NAME}:time=se"
        )
    return cast(Resource, resource), module or None


def check_controls(arms: Sequence[str]) -> None:
    """Refuse controls that cannot be matched to the other arms of a comparison.

    Raises:
        UserError: the plain network or every module is missing, the control is the baseline, or it names a
            module that is not compared.
    """
    modules = modules_of(arms)
    for name in filter(is_control, arms):
        _, module = parse_control(name)
        if PLAIN not in arms or name == arms[0]:
            raise UserError(
                f"--attention {','.join(arms)}: {name} is {PLAIN} with the cost of a module, and is compared "
                f"with both: name {PLAIN} too, and a control after it"
            )
        if not modules:
            raise UserError(
                f"--attention {','.join(arms)}: {name} gets the cost of a module, and there is none: name "
                f"one, such as {PLAIN},eca,{name}"
            )
        if module and module not in modules:
            raise UserError(
                f"--attention {name}: {module} is not compared.{did_you_mean(module, modules)}"
            )


def modules_of(arms: Sequence[str]) -> list[str]:
    """Return the arms that are attention modules, without none."""
    return [arm for arm in arms if arm != PLAIN and not is_control(arm)]
