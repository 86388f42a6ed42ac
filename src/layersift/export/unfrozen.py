"""Parameters that are trained themselves, in the words of trainers that take their names."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from layersift.errors import LayersiftError
from layersift.provenance import command, versions
from layersift.records.selection import Selection

TRAINERS = ("axolotl", "trl")


def unfrozen_text(to: str, names: Sequence[str], selection: Selection) -> str:
    """What Axolotl's config takes, or Python for TRL's trainers and any other.

    Raises:
        LayersiftError: a trainer that takes no names of parameters.
    """
    require_names(to)
    about = f"# {len(names)} parameters of {selection.model}, trained themselves: {selection.rule}.\n"
    about += f"# layersift {versions()['layersift']}: {command()}\n"
    if to == "axolotl":  # which reads points as points, and what follows $ as a range
        values = {"unfrozen_parameters": [f"^{name}$" for name in names]}
        return about + yaml.safe_dump(values, sort_keys=False, width=10**6)
    listed = "".join(f'    "{name}",\n' for name in names)
    loop = "for name, parameter in model.named_parameters():  # before SFTTrainer(model, ...)\n"
    return f"{about}UNFROZEN = {{\n{listed}}}\n{loop}    parameter.requires_grad = name in UNFROZEN\n"


def require_names(to: str) -> None:
    """Refuse a trainer that takes no names of parameters.

    Raises:
        LayersiftError: it takes none.
    """
    if to not in TRAINERS:
        raise LayersiftError(
            f"--unfreeze is for {' and '.join(TRAINERS)}; --to {to} takes adapters, without --unfreeze"
        )
