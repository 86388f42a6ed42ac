"""Other libraries' bars and reports, which would stand between ours: what matters of them is said in our own words."""

from __future__ import annotations

import logging
import os
import warnings


def quieten_libraries() -> None:
    """Silence the libraries of this process, unless its environment says otherwise."""
    for name, value in (
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("HF_DATASETS_DISABLE_PROGRESS_BARS", "1"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("TQDM_DISABLE", "1"),
    ):
        os.environ.setdefault(name, value)
    for library in ("lm_eval", "transformers"):  # the variable above is read when transformers is imported
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|datasets|huggingface_hub)\b")
