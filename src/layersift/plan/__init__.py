"""What a training costs: each kind of block is measured once without weights, and everything else is a sum."""
