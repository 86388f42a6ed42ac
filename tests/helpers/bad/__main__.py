"""Count the tables: `PYTHONPATH=tests/helpers python -m bad`."""

import sys

from bad.commands import TABLES
from bad.functions import CALLS

counts = {name: len({bad.command for bad in table}) for name, table in TABLES.items()}
counts["calls"] = len({call.name for call in CALLS})
for name, count in (counts | {"in all": sum(counts.values())}).items():
    sys.stdout.write(f"{name:<9} {count:>4}\n")
