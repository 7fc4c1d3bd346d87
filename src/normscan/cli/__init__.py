"""The command line: ``main`` and the BIDS-App ``bids``, and a module for each group of commands."""
