"""The scripts that run through both clients, with `wandb` for whichever it is.

They end by themselves, but for `LIVE`: that goes on when its input ends.
"""

INIT = """
run = wandb.init(project="p", id="r", name="a name", notes="notes", tags=["a", "b"], group="g", job_type="train",
                 config={"lr": 0.1, "nested": {"x": 1, "t": (1, 2)}, "none": None, "nan": float("nan"), "s": "é"})
"""
SCRIPTS = {
    "explicit steps": INIT
    + """
for i in range(5):
    run.log({"loss": 1 / (i + 1), "i": i}, step=i)
run.log({"late": 1}, step=2)
run.log({"same": 1}, step=4)
run.log({"far": 1}, step=100)
run.finish()
""",
    "steps of its own": INIT
    + """
run.log({"a": 1})
run.log({"b": 2}, commit=False)
run.log({"c": 3})
run.log({})
run.log({"d": 4}, step=7, commit=True)
run.log({"e": 5})
run.finish()
""",
    "values": INIT
    + """
import numpy as np
run.log({"nan": float("nan"), "inf": float("inf"), "ninf": float("-inf"), "none": None, "bool": True, "text": "é\\n\\"",
         "int": 3, "big": 2**53, "float": 1.0, "small": 1e-300, "list": [1, 2.5, "x", None]})
run.log({"nested": {"x": 1, "y": {"z": 2}}, "dotted.key": 3, "slash/key": 4})
run.log({"np32": np.float32(0.1), "np64": np.float64(0.1), "npint": np.int64(7), "array": np.arange(4) / 2})
run.finish()
""",
    "definitions": INIT
    + """
run.define_metric("epoch")
run.define_metric("loss", summary="min,max,mean,last,first")
run.define_metric("hidden", hidden=True)
run.define_metric("gone", summary="none")
run.define_metric("eval/*", step_metric="epoch")
run.define_metric("free/*", step_metric="epoch", step_sync=False)
run.log({"eval/before": 1, "loss": 3})
run.log({"epoch": 1, "loss": 1.5, "gone": 1, "hidden": 2})
run.log({"eval/acc": 0.5, "loss": 2})
run.log({"free/x": 1, "eval/acc": 0.75, "epoch": 2})
run.log({"eval/acc": 1.0})
run.finish()
""",
    "definitions of each kind": INIT
    + """
run.define_metric("copied", summary="copy")
run.define_metric("again", summary="min")
run.define_metric("again", summary="max", overwrite=True)
run.define_metric("added", summary="min")
run.define_metric("added", summary="max")
run.define_metric("exact", step_metric="epoch")
run.define_metric("exact, unsynced", step_metric="epoch", summary="max", step_sync=False)
run.define_metric("stepped anew", step_metric="epoch")
run.define_metric("stepped anew", step_metric="other step", overwrite=True)
run.define_metric("all/*", summary="min,max")
run.define_metric("all/exact", summary="mean")
run.define_metric("hidden/*", step_metric="epoch", hidden=True, summary="last")
for i in range(3):
    run.log({"epoch": i, "copied": i, "again": 5 - i, "added": i, "other step": 10 * i})
    run.log({"all/a": -i, "all/exact": i, "hidden/x": i})
    run.log({"exact": i / 10, "exact, unsynced": i, "stepped anew": i})
run.finish()
""",
    "summary": INIT
    + """
run.define_metric("m", summary="max")
run.log({"m": 1, "a": 1, "n": {"x": 1, "y": 2}})
run.log({"m": 0.5, "a": 2})
run.summary["best"] = 7
run.summary["m"] = 3
run.summary.update({"u": 1, "v": "text"})
run.summary["dict"] = {"in": {"side": 1}}
run.log({"m": 0.25})
del run.summary["a"]
run.finish()
""",
    "config": INIT
    + """
run.config["new"] = 0.2
run.config.update({"lr": 0.2, "more": [1, {"x": 2}], "text": "t"}, allow_val_change=True)
run.config.by_attribute = 5
run.log({"x": 1})
run.finish()
""",
    "a failure": INIT
    + """
run.log({"x": 1}, step=3)
run.finish(exit_code=3)
""",
    "nothing logged": INIT
    + """
run.finish()
""",
}
RESUMED = [
    INIT
    + """
for i in range(3):
    run.log({"x": i})
run.log({"open": 1}, step=5)
run.finish()
""",
    """
run = wandb.init(project="p", id="r", resume="must", config={"lr": 0.3, "second": 1})
run.log({"x": 10})
run.log({"x": 11}, step=20)
run.finish()
""",
]
EVERYTHING = (
    INIT
    + """
import sys, time
import numpy as np
print("a line", flush=True)
print("trouble", file=sys.stderr, flush=True)
for i in range(3):
    sys.stdout.write(f"\\r{i} of 3")
sys.stdout.flush()
print()
print("é ✓ \\x1b[31mred\\x1b[0m", flush=True)
print("more trouble", file=sys.stderr, flush=True)
table = wandb.Table(columns=["a", "b"], data=[[1, "x"], [2, "y"]])
run.log({"image": wandb.Image(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)), "html": wandb.Html("<b>hi</b>")})
run.log({"histogram": wandb.Histogram([1, 2, 2, 3]), "table": table, "nested": {"image": wandb.Image(np.zeros((2, 2, 3), np.uint8))}})
open("model.bin", "wb").write(b"weights" * 1000)
run.save("model.bin", policy="now")
artifact = wandb.Artifact("weights", "model", description="d", metadata={"epoch": 3})
artifact.add_file("model.bin")
with artifact.new_file("notes/readme.txt") as file:
    file.write("hello")
run.log_artifact(artifact, aliases=["best"], tags=["kept", "small"])
reference = wandb.Artifact("pointer", "dataset")
reference.add_reference("https://example.com/data.bin", name="data.bin", checksum=False)
run.log_artifact(reference)
open("sound.wav", "wb").write(b"a sound")
open("film.mp4", "wb").write(b"a film")
run.log({"sound": wandb.Audio("sound.wav", caption="heard"), "film": wandb.Video("film.mp4", caption="seen")})
picture = wandb.Image(np.ones((2, 2, 3), np.uint8))
run.log({"pictures": wandb.Table(columns=["number", "picture"], data=[[1, picture]])})
run.alert("diverged", "the loss is NaN", level="WARN", wait_duration=120)
time.sleep(2.5)
run.finish()
"""
)
LIVE = (
    INIT
    + """
import sys
run.log({"x": 1})
run.log({"x": 2})
sys.stdin.read()
run.log({"x": 3})
run.finish()
"""
)
