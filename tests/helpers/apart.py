"""Packages that the tests' own environment lacks, each in a directory of its own."""

import os
import subprocess
import sys

import pytest


def installed_apart(place, packages, *options):
    """The directory, with the packages in it; the test is skipped, with pip's reason, where they cannot be had."""
    if not place.exists():
        words = [sys.executable, "-m", "pip", "install", "--quiet", *options, "--target", str(place), *packages]
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"{', '.join(packages)}: cannot be installed here: {done.stderr.strip()[-200:]}")
    return place


def run_with(place, words, cwd, **environment):
    """A command that finds the packages of such a directory, too."""
    around = os.environ | {"PYTHONPATH": str(place)} | environment
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=around, timeout=500)
