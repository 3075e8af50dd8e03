"""As scripts of years ago say it: the module's own config, explicit steps, files in the run's directory."""

import os

import wandb
from wandb.data_types import Table
from wandb.errors import UsageError

try:
    wandb.require("service")
except UsageError:
    wandb.termwarn("this release does not know it")
wandb.login()
run = wandb.init(project="old-style", job_type="train", group="all", config={"dropout": 0.5}, reinit=True)
config = wandb.config
config.batch_size = 4
config["hidden"] = [8, 8]
config.update({"dropout": 0.25, "seed": 7}, allow_val_change=True)
config.setdefaults({"seed": 1, "momentum": 0.9})

for step in range(5):
    wandb.log({"loss": 1.0 / (step + 1)}, step=step)
    wandb.log({"examples": step * config.batch_size}, step=step)
wandb.log({"table": Table(columns=["a", "b"], data=[[1, "x"], [2, None]])}, step=5)

with open(os.path.join(wandb.run.dir, "model.txt"), "w") as file:
    file.write("weights")
os.makedirs("logs", exist_ok=True)
for name in ("a.log", "b.log"):
    with open(os.path.join("logs", name), "w") as file:
        file.write(name)
wandb.save("logs/*.log", policy="now")
wandb.run.summary["best_accuracy"] = 0.75
wandb.summary["nested"] = {"a": 1}
wandb.run.name = "renamed"
wandb.run.tags += ("done",)
wandb.join()
