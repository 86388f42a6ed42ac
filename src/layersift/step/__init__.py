"""Step: what one training step runs, keeps and costs: the frozen prefix, its cache, the loss, the plan."""
