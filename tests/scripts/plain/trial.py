"""One trial of a sweep, as W&B's agent starts it."""

import wandb


def train() -> None:
    with wandb.init(project="ignored", config={"lr": 0.1, "layers": 2}) as run:
        for epoch in range(3):
            run.log({"val_loss": run.config.lr * run.config["layers"] / (epoch + 1)})


if __name__ == "__main__":
    train()
