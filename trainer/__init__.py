"""One readable GRPO loop, and the recipes that it runs.

    trainer train calculator --quick        warm up, train, evaluate; everything logged with `eventlog`

    cli ──▶ recipes/<name> ──▶ warmup ──▶ loop ──▶ rollout ──▶ batch ──▶ algorithms ──▶ optimiser step
                                            │         │                                      │
                                            │    tasks/ · policy/                            │
                                            └──▶ collectors ──▶ one row of the log ◀─────────┘
                                            └──▶ checkpoint

Invariants
----------
* `torch` and `transformers` are imported by the modules that compute, never by this package, `cli`, `config` or
  the registry of recipes: `trainer --help` is instant.
* The trainer writes to the log and to its checkpoints, and nowhere else. It knows no network, no W&B and no `syncd`.
"""
