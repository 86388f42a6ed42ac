"""Adapt: put adapters on exactly the selected layers."""
