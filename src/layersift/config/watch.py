"""How a training is watched while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from layersift.config.fields import Checked
from layersift.errors import LayersiftError, unknown_name

TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")


@dataclass(frozen=True)
class WatchSettings(Checked):
    """What is looked at and told of a training; its test data are not for this."""

    hold_back: (
        Annotated[
            float,
            Meta(
                gt=0,
                lt=1,
                description="Hold that fraction of the rows back: score the model on them while it trains, and judge "
                "the finished run on them.",
            ),
        ]
        | None
    ) = None
    eval_data: Annotated[
        str | None, Meta(description="Rows to score the model on, eight times while it trains; not the test rows.")
    ] = None
    eval_split: Annotated[str, Meta(description="Split of --eval-data.")] = "validation"
    patience: (
        Annotated[
            int,
            Meta(
                ge=1, le=8, description="Stop after so many looks without a better score, and keep the best adapters."
            ),
        ]
        | None
    ) = None
    report_to: Annotated[
        str | None, Meta(description="tensorboard, wandb, trackio, mlflow; several between commas.")
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hold_back is not None and self.eval_data is not None:
            raise LayersiftError(
                "hold-back takes rows of the data to score the model on, eval-data names others; give one"
            )
        if self.patience is not None and self.eval_data is None and self.hold_back is None:
            raise LayersiftError("patience needs hold-back or eval-data, whose score it watches")
        for name in self.trackers:
            if name not in TRACKERS:
                raise unknown_name("tracker", name, TRACKERS)

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of the trackers."""
        return tuple(name.strip() for name in (self.report_to or "").split(",") if name.strip())
