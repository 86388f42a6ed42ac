"""Draw: charts of plain values, in Altair, one description for pages, notebooks and pictures. Imports nothing of ours
but the errors."""
