"""Settings, a project of one's own, and everything switched off that can be."""

import wandb

run = wandb.init(
    project="settings",
    id="settings",
    dir=".",
    settings=wandb.Settings(console="off", run_name="by settings", run_tags=["a", "b"], silent=True),
    config={"a": {"b": {"c": 1}}, "list": [1, 2]},
    config_exclude_keys=["list"],
    save_code=False,
    monitor_gym=False,
    sync_tensorboard=False,
    force=False,
)
assert wandb.run is run
assert wandb.config["a"]["b"]["c"] == 1
run.log({"loss": 1}, step=10)
run.log({"loss": 2}, step=5)
run.log({"loss": 3, "inner": {"x": 1, "y": {"z": 2}}}, step=20)
run.log({"nan": float("nan"), "inf": float("inf"), "none": None, "text": "é"}, step=21)
wandb.finish()
