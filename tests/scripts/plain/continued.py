"""A script that is stopped and started again: `resume="allow"` with an id of its own."""

import json
import os

import wandb

CHECKPOINT = "checkpoint.json"

run = wandb.init(project="continued", id="long-run", resume="allow", config={"epochs": 6})
first = 0
if wandb.run.resumed and os.path.exists(CHECKPOINT):
    with open(CHECKPOINT) as file:
        first = json.load(file)["epoch"] + 1
for epoch in range(first, first + 3):
    run.log({"epoch": epoch, "loss": 1 / (1 + epoch)})
    with open(CHECKPOINT, "w") as file:
        json.dump({"epoch": epoch}, file)
run.finish()
