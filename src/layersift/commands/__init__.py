"""One module a subcommand: take the flags, call the library, print."""
