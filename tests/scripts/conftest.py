"""The scripts are programs that log at once: no module of the tests, and nothing to look for doctests in."""

collect_ignore_glob = ["plain/*", "pytorch/*", "huggingface/*", "lightning/*"]
