"""Every command that writes, in a small case; a new command is covered by being listed here."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

import replknet
from analysis.benchmark import agreement
from analysis.cli import bench
from analysis.images import downloads
from analysis.images.stimuli import PublishedSet, published_sets
from analysis.images.synthetic.sets import SyntheticImages, save_stimuli
from replknet.checkpoints import published
from replknet.checkpoints.published import sha256_of
from tests.networks import TINY, randomize_norms

_STUDY = (
    "--preset quick --kernels 3 --seeds 1 --size 32 --layers 1,1 --channels 4,8 --train-images 24 --val-images 12 "
    "--conflict-images 12 --balances -1.0,0.0,1.0 --erf-images 1"
)
_FOLDER_STUDY = (
    "--preset quick --kernels 3 --seeds 1 --size 32 --layers 1,1 --channels 4,8 --erf-images 1 --steps 2 "
    "--batch-size 2 --data {inputs}/data"
)
_WEIGHTS = "replknet_31b.in1k_224"
STIMULI = {f"cat/cat{i}-dog{i}.png": bytes(range(i, 200)) * 9 for i in range(3)}
_SINGLE = dict.fromkeys(published_sets()["refined-bias"].class_folders, b"hello\n")
_HELLO = "ce013625030ba8dba906f756967f9e9ca394464a"
"""Git's id of that content."""
_TREE = [{"path": f"{path}/0.png", "type": "blob", "sha": _HELLO} for path in _SINGLE]
SERVED = {
    **STIMULI,
    **{f"{path}/0.png": content for path, content in _SINGLE.items()},
    "commits/8655b6b": json.dumps({"sha": "8655b6b"}).encode(),
    "git/trees/8655b6b?recursive=1": json.dumps({"truncated": False, "tree": _TREE}).encode(),
}


@dataclass(frozen=True)
class Case:
    """A command in a folder of its own, which writes to `out/` there.

    Args:
        words: After the name of the program; `{inputs}` is the folder that `make_inputs` filled.
        former: A command whose results are in `out/` before.
        prepared: A function of this module that the process of the command calls first.
    """

    words: str
    former: str = ""
    prepared: str = ""


COMMANDS = {
    "predict": Case("predict replknet_nano_k3 {inputs}/congruent --out out/p.csv"),
    "predict, anew": Case(
        "predict replknet_nano_k3 {inputs}/congruent --out out/p.json --overwrite",
        former="predict replknet_nano_k31 {inputs}/congruent --out out/p.json",
    ),
    "predict, of two": Case(
        "predict A=replknet_nano_k3 {inputs}/congruent --model B=replknet_nano_k31 --out out/p.csv"
    ),
    "features": Case("features replknet_nano_k3 {inputs}/congruent --stages 1,pooled --out out/f.npz"),
    "evaluate": Case("evaluate replknet_nano_k3 --data {inputs}/congruent --confusion --out out/run"),
    "evaluate, of two": Case(
        "evaluate A=replknet_nano_k3 B=replknet_nano_k31 --data {inputs}/congruent --confusion --out out/run"
    ),
    "erf": Case("erf replknet_nano_k3 replknet_nano_k31 --images {inputs}/photos --size 64 --out out/run"),
    "erf, anew": Case(
        "erf replknet_nano_k3 --images {inputs}/photos --size 64 --out out/run --overwrite",
        former="erf replknet_nano_k3 --images {inputs}/photos --size 96 --out out/run",
    ),
    "shape-bias": Case("shape-bias replknet_nano_k3 --stimuli {inputs}/conflict --out out/run"),
    "compare": Case(
        "compare replknet_nano_k3 replknet_nano_k31 --images {inputs}/photos --size 64 --stimuli {inputs}/conflict "
        "--data {inputs}/congruent --out out/run"
    ),
    "train": Case(
        "train replknet_nano_k3 --recipe finetune-384 --set image_size=32 --set batch_size=2 --set autocast= "
        "--set epochs=2 --data {inputs}/data --out out/run"
    ),
    "train, another library's": Case(
        "train timm:test_resnet --recipe finetune-small --set image_size=32 --set batch_size=2 --set steps=3 "
        "--data {inputs}/data --out out/run"
    ),
    "study": Case("study --preset quick --kernels 3 --seeds 1 --steps 2 --out out/run"),
    "plot": Case(
        "plot out/run --kind erf --out out/erf.pdf",
        former="erf replknet_nano_k3 --images {inputs}/photos --size 64 --out out/run",
    ),
    "report": Case("report out/run", former=f"ablate train {_STUDY} --steps 2 --batch-size 4 --out out/run"),
    "ablate train": Case(f"ablate train {_STUDY} --steps 2 --batch-size 4 --out out/run"),
    "ablate train, anew": Case(
        f"ablate train {_STUDY} --steps 3 --batch-size 4 --out out/run --overwrite",
        former=f"ablate train {_STUDY} --steps 2 --batch-size 4 --out out/run",
    ),
    "ablate train, of stimuli": Case(
        f"ablate train {_FOLDER_STUDY} --stimuli {{inputs}}/cues --humans {{inputs}}/people --out out/run",
        former=f"ablate train {_FOLDER_STUDY} --out out/run",
    ),
    "ablate posthoc": Case(
        "ablate posthoc replknet_nano_k3 --kernels 1 --no-stages --num-images 1 --size 64 --out out/run"
    ),
    "convert": Case("convert {inputs}/tiny.safetensors out/tiny.pth --to mmpretrain"),
    "convert, anew": Case(
        "convert {inputs}/tiny.safetensors out/tiny.safetensors --overwrite",
        former="convert {inputs}/other.safetensors out/tiny.safetensors",
    ),
    "reparameterize": Case("reparameterize {inputs}/tiny.safetensors out/tiny.safetensors"),
    "export": Case("export replknet_nano_k3 --size 64 --out out/nano.pt"),
    "export, program": Case("export replknet_nano_k3 --size 64 --out out/nano.pt2"),
    "export, ONNX": Case("export replknet_nano_k3 --size 64 --out out/nano.onnx"),
    "data synthetic": Case("data synthetic --to out/images --num-images 6"),
    "data weights": Case(f"data weights {_WEIGHTS} --url file://{{inputs}}/weights.pth", prepared="small_weights"),
    "data refined-bias": Case("data refined-bias --to out/images --url {server}", prepared="few_single_cues"),
    "data cue-conflict": Case("data cue-conflict --to out/images --url {server}", prepared="few_stimuli"),
    "bench conv": Case("bench conv --rounds 1 --seconds 0.1 --threads 1 --out out/bench", prepared="known_times"),
    "bench all": Case("bench all --device cpu --out out/bench", prepared="known_times"),
}
"""By name of the command; after a comma a variant."""

READING = ("models", "info", "explore", "ablate status")
"""Commands that write nothing."""
ALIKE = ("bench model", "bench erf", "bench train")
"""Commands that write by the same function as `bench conv`, and take minutes."""


def make_inputs(folder: Path) -> None:
    """What the commands read."""
    save_stimuli(SyntheticImages(kind="congruent", num_images=6, seed=1), folder / "congruent")
    save_stimuli(SyntheticImages(kind="conflict", num_images=6, seed=1), folder / "conflict")
    generator = np.random.default_rng(0)

    def picture(path: Path, side: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (side, side, 3), np.uint8)).save(path)

    for index in range(2):
        picture(folder / "photos" / f"{index}.png", 100)
        for split in ("train", "val"):
            for name in ("cat", "dog"):
                picture(folder / "data" / split / name / f"{index}.png", 40)
    lines = ["subj,session,trial,rt,object_response,category,condition,imagename"]
    for shape, texture in (("cat", "dog"), ("dog", "cat"), ("cat", "cat")):
        picture(folder / "cues" / f"{shape}1-{texture}1.png", 40)
        lines.append(f"someone,1,1,NaN,cat,{shape},0,0001_a_{shape}1-{texture}1.png")
    (folder / "people").mkdir()
    (folder / "people" / "someone.csv").write_text("\n".join(lines) + "\n")
    for seed, name in enumerate(("tiny", "other")):
        model = randomize_norms(replknet.create_model("replknet_31b", **TINY), seed)
        state = model.state_dict()
        torch.save(state, folder / f"{name}.pth")
        replknet.convert_checkpoint(folder / f"{name}.pth", folder / f"{name}.safetensors")
    torch.save({"meta": {}, "state_dict": replknet.convert_state_dict(state, to="mmpretrain")}, folder / "weights.pth")


def small_weights(words: Sequence[str]) -> None:
    """Let the file that is here stand for the published weights."""
    os.environ["TORCH_HOME"] = str(Path("out").resolve())
    (source,) = (Path(word.removeprefix("file://")) for word in words if word.startswith("file://"))
    entry = replace(replknet.PUBLISHED[_WEIGHTS], file=f"small-{sha256_of(source)[:8]}.pth")
    vars(published)["PUBLISHED"] = {**replknet.PUBLISHED, _WEIGHTS: entry}


def few_stimuli(words: Sequence[str]) -> None:
    """Let three small files stand for the published stimuli."""
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in STIMULI.items()}
    few = PublishedSet("cue-conflict", "three stimuli", "http://127.0.0.1:9", "none", "nobody", digests)
    downloads.published_sets = lambda: {"cue-conflict": few}  # type: ignore[assignment,attr-defined]


def few_single_cues(words: Sequence[str]) -> None:
    """Let twenty small files, one of each class, stand for the published stimuli."""
    url = words[list(words).index("--url") + 1]
    few = replace(published_sets()["refined-bias"], repository=url, folder="")
    downloads.published_sets = lambda: {"refined-bias": few}  # type: ignore[assignment,attr-defined]


def known_times(words: Sequence[str]) -> None:
    """Let the contenders have taken these times."""
    row = {"images": 1, "channels": 4, "size": 14, "kernel": 5, "direction": "both", "contender": "replknet"}
    times = {"median_ms": 2.0, "min_ms": 1.0, "max_ms": 3.0, "rounds": 2, "ratio": 1.0, "peak_mib": 1.0}
    bench.compare = lambda *arguments, **options: pd.DataFrame([row | times])  # type: ignore[attr-defined]
    agreement.SHAPES = ((1, 2, 5, 5, 3, 3),)
