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
    # The variable above is read when transformers is imported; bitsandbytes tells of kernels that it did not find.
    for library in ("bitsandbytes", "lm_eval", "transformers"):
        logging.getLogger(library).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(transformers|peft|torch|datasets|huggingface_hub)\b")
