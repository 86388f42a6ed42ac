"""Select: turn importances into a selection, the record that passes between all later stages."""
