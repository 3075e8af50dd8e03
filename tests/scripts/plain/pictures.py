"""Media of each kind that an array or a text makes."""

import numpy as np
import wandb

rng = np.random.default_rng(3)
run = wandb.init(project="pictures", id="pictures")
for step in range(2):
    pixels = rng.integers(0, 255, size=(3, 6, 8, 3), dtype=np.uint8)
    run.log(
        {
            "examples": [wandb.Image(each, caption=f"number {i}") for i, each in enumerate(pixels)],
            "single": wandb.Image(pixels[0]),
            "text": wandb.Html(f"<p>step {step}</p>"),
            "weights": wandb.Histogram(rng.normal(size=100), num_bins=16),
            "counts": wandb.Histogram(np_histogram=np.histogram([1, 2, 2, 3], bins=3)),
        }
    )
table = wandb.Table(columns=["id", "image", "guess", "truth"])
for number in range(4):
    table.add_data(number, wandb.Image(np.full((4, 4, 3), number * 40, np.uint8)), number % 2, number % 3)
run.log({"predictions": table})
run.finish()
