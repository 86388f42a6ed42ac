"""The evidence pages, one module a question; `python benchmarks/evidence_pages.py` writes them."""
