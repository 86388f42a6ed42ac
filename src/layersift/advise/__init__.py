"""Advise: what to train within limits, priced by the plan and, where asked for, tried."""
