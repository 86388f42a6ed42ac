"""The selection in other people's trainers and servers."""
