"""Arguments of the command line as config, a run as context, the best value in the summary, an alert."""

import argparse

import numpy as np
import wandb
from wandb import AlertLevel


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--lr", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch-size", type=int, default=16)
    return parser.parse_args()


def main() -> None:
    args = parse()
    rng = np.random.default_rng(1)
    inputs = rng.normal(size=(64, 3))
    target = inputs @ np.array([1.0, -2.0, 0.5])
    with wandb.init(
        project="arguments", config=args, tags=["numpy", "baseline"], notes="least squares"
    ) as run:
        run.define_metric("epoch")
        run.define_metric("train/*", step_metric="epoch")
        run.define_metric("train/loss", summary="min")
        weights = np.zeros(3)
        for epoch in range(run.config.epochs):
            error = inputs @ weights - target
            weights -= run.config["lr"] * inputs.T @ error / len(inputs)
            run.log({"train/loss": float((error**2).mean()), "weights": weights.copy()}, commit=False)
            run.log({"epoch": epoch, "error": wandb.Histogram(error)})
            if (error**2).mean() < 0.5 and run.summary.get("reached") is None:
                run.alert(title="Below a half", text=f"epoch {epoch}", level=AlertLevel.INFO)
                run.summary["reached"] = epoch
        run.summary["weights"] = {"first": float(weights[0]), "last": float(weights[-1])}
        run.summary.update({"final_loss": float((error**2).mean())})


if __name__ == "__main__":
    main()
