"""A first script: simulated training, one run for each of two experiments."""

import random

import wandb

random.seed(0)
for experiment in range(2):
    wandb.init(
        project="first-steps",
        name=f"experiment_{experiment}",
        config={"learning_rate": 0.02, "architecture": "CNN", "dataset": "CIFAR-100", "epochs": 10},
    )
    offset = random.random() / 5
    for epoch in range(2, wandb.config.epochs):
        acc = 1 - 2**-epoch - random.random() / epoch - offset
        loss = 2**-epoch + random.random() / epoch + offset
        wandb.log({"acc": acc, "loss": loss})
    wandb.finish()
