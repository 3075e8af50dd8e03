"""`syncd sync` in the place of `wandb sync`: the same runs, made by the real SDK, through both commands."""
