"""The contract: for the same calls, the server gets from us what it gets from W&B's own SDK, field by field.

    scripts ──clients──▶ Both(ours, theirs) ──comparable──▶ equal

Invariants
----------
* A script runs twice, as it is: with `import wandb` against one server, and with `import eventlog as wandb` and
  `syncd sync` against another.
* Both run on one machine, from one directory, so what is compared is compared by value. Only what no two runs
  share is compared by type: times, random ids, and how full the disk is.
* A difference that stays is listed with its reason, and only it: a listed one that is gone fails as well.

`test_state` is what the server holds of a run's lines and settings, `test_requests` what goes over the wire,
`test_files` the files, media, console and artifacts, `test_live` a run while it runs.
"""
