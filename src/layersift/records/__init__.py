"""Records: what one stage hands to the next, frozen, with typed JSON in and out."""
