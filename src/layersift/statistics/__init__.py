"""Statistics: intervals, and what may be said of them. Pure maths: this package imports nothing of ours."""
