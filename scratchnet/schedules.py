"""The learning rate over the steps of a training.

    constant    lr
    step        lr * factor^(step // every)
    cosine      lr * (1 + cos(pi * t)) / 2, t from 0 to 1 over the steps after the warm-up

with a warm-up that rises linearly from lr / warmup. A schedule is called with the number of the
step, from 0. Sources: He et al. 2016 (step); Loshchilov and Hutter 2017, equation 5, without
restarts (cosine); Goyal et al. 2017, section 2.2 (warm-up).
"""

import math
from dataclasses import dataclass

from scratchnet.checks import check_number, check_whole


@dataclass(frozen=True)
class ConstantSchedule:
    """The same learning rate at every step."""

    lr: float

    def __post_init__(self) -> None:
        check_number("ConstantSchedule", "lr", self.lr, 0)

    def __call__(self, step: int) -> float:
        return self.lr


@dataclass(frozen=True)
class StepSchedule:
    """The learning rate times factor after each `every` steps."""

    lr: float
    every: int
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_number("StepSchedule", "lr", self.lr, 0)
        check_whole("StepSchedule", "every", self.every)
        check_number("StepSchedule", "factor", self.factor, 0)

    def __call__(self, step: int) -> float:
        return self.lr * self.factor ** (step // self.every)


@dataclass(frozen=True)
class CosineSchedule:
    """From lr down to 0 in `steps` steps along half a cosine, after a linear warm-up."""

    lr: float
    steps: int
    warmup: int = 0

    def __post_init__(self) -> None:
        check_number("CosineSchedule", "lr", self.lr, 0)
        check_whole("CosineSchedule", "steps", self.steps)
        check_number("CosineSchedule", "warmup", self.warmup, 0, self.steps)
        if int(self.warmup) != self.warmup:
            raise ValueError(f"CosineSchedule: warmup must be a whole number, got {self.warmup}")

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        t = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.lr * (1 + math.cos(math.pi * t)) / 2
