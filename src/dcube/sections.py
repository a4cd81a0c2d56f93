"""What the sections of an experiment are made of: the base class, kinds of numbers, and the optimiser of both steps."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A part of the experiment: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class OptimizerConfig(Section):
    """The optimiser (AdamW unless said otherwise) and the length of a training; exactly one of `steps` and `epochs`."""

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Positive = 2e-4
    weight_decay: NonNegative = 0.01
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)  # of adamw and adam
    momentum: Fraction | None = None  # of sgd; None: 0.9
    batch_size: Count = 32
    steps: Count | None = None
    epochs: Positive | None = None
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["constant", "cosine"] = "constant"
    grad_clip: Positive | None = 1.0
    ema_decay: Fraction = 0.999
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # of the forward passes; auto: bf16 where the hardware has it

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of steps and epochs")
        return self

    @model_validator(mode="after")
    def _only_what_acts(self) -> Self:
        if self.momentum is not None and self.name != "sgd":
            raise ValueError("momentum belongs to name sgd")
        if self.betas != (0.9, 0.999) and self.name == "sgd":
            raise ValueError("betas belong to name adamw or adam")
        return self

    def total_steps(self, images: int) -> int:
        """Optimiser steps for a training set of `images`."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * images / self.batch_size))
