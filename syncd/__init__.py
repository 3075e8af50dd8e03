"""Uploads event logs to Weights & Biases whenever the network is there, each line exactly once.

    log ──reader──▶ records ──fold──▶ lines ──shipper──▶ requests ──wandb_api──▶ W&B
                                                 ▲                                │
                                     cursor ◀────┴───────────── ack ◀─────────────┘

`fold`, `shipper`, `attach` and `metadata` decide; `wandb_api`, `run_sync`, `watch` and `daemon` act.
"""
