"""Score: a number for each layer, by one of many rules."""
