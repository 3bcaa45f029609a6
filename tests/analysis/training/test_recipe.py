import math
from pathlib import Path

import pytest

from analysis.training.recipe import Recipe, load_recipe, parse_changes, recipe_names, why_too_little

IMAGENET = 1_281_167
HEAD = 'about = ""\nsource = ""\nepochs = 1\nwarmup_epochs = 0\n'


def test_the_published_recipes() -> None:
    """Batch size: machines x GPUs x images x accumulation of the commands in the official README."""
    published = {
        "imagenet-300": (8 * 64 * 4, 4e-3, 300, 10, 0.5, 224),
        "imagenet22k-90": (16 * 8 * 32, 4e-3, 90, 5, 0.1, 224),
        "finetune-384": (4 * 8 * 32, 4e-4, 30, 1, 0.8, 384),
        "finetune-22k-224": (2 * 8 * 32, 4e-4, 30, 1, 0.2, 224),
        "finetune-22k-384": (4 * 8 * 16, 4e-4, 30, 1, 0.3, 384),
    }
    assert recipe_names() == sorted([*published, "finetune-small"])
    for name, (batch_size, rate, epochs, warmup, drop_path, size) in published.items():
        source = load_recipe(name)
        recipe = source.for_images(IMAGENET)
        assert (recipe.batch_size, recipe.learning_rate) == (batch_size, rate)
        assert (source.epochs, source.warmup_epochs) == (epochs, warmup)
        assert (recipe.drop_path_rate, recipe.image_size) == (drop_path, size)
        assert recipe.steps == round(epochs * IMAGENET / batch_size)
        assert recipe.warmup == warmup / epochs
        assert (recipe.mixup, recipe.cutmix) == ((0.8, 1.0) if name.startswith("imagenet") else (0, 0))
        assert recipe.layer_decay == (1 if name.startswith("imagenet") else 0.7)
        assert recipe.weight_decay == (0.05 if name.startswith("imagenet") else 1e-8)
        assert recipe.ema_decay == (None if name == "imagenet22k-90" else 0.9999)
        assert recipe.max_gradient_norm == math.inf
        assert "RepLKNet-pytorch" in source.source


def test_a_recipe_that_adapts() -> None:
    """A batch of a tenth, the middle side rounded up to 32, sixty epochs, each within its bounds; 400 at 32 pixels."""
    source = load_recipe("finetune-small")
    small = source.for_images(400, sides=[32] * 9)
    assert (small.batch_size, small.image_size, small.steps) == (40, 64, 800)
    few = source.for_images(12, sides=[100, 150, 900])
    assert (few.batch_size, few.image_size, few.steps) == (8, 160, 800)
    fewest = source.for_images(5, sides=[600])
    assert (fewest.batch_size, fewest.image_size) == (4, 224)
    many = source.for_images(3000, sides=[96])
    assert (many.batch_size, many.image_size, many.steps) == (64, 96, round(60 * 3000 / 64))
    assert source.for_images(100_000).steps == 4000
    changed = source.for_images(400, {"epochs": 10, "batch_size": 20, "image_size": 48}, sides=[32])
    assert (changed.batch_size, changed.image_size, changed.steps) == (20, 48, 200)
    assert source.for_images(400, {"steps": 7}).steps == 7


def test_too_few_steps_are_told() -> None:
    assert "40 steps are few from random weights; expected 300 or more" in why_too_little(
        Recipe(steps=40), trained=False
    )
    assert "9 steps are few from trained weights; expected 50 or more" in why_too_little(Recipe(steps=9), trained=True)
    assert "layer_decay=0.7 is for trained" in why_too_little(Recipe(steps=900, layer_decay=0.7), trained=False)
    assert why_too_little(Recipe(steps=400), trained=False) == ""
    assert why_too_little(Recipe(steps=60, layer_decay=0.7), trained=True) == ""


def test_changes_and_own_files(tmp_path: Path) -> None:
    changes = parse_changes(["batch_size=64", "ema_decay=", "autocast=", "epochs=2", "warmup_epochs=0.5", "mixup=0.2"])
    recipe = load_recipe("imagenet-300").for_images(640, changes)
    assert (recipe.steps, recipe.warmup, recipe.batch_size) == (20, 0.25, 64)
    assert (recipe.ema_decay, recipe.autocast, recipe.mixup) == (None, "", 0.2)
    spelled = {".9999": 0.9999, "0.9999": 0.9999, "9999e-4": 0.9999, "0": 0, "none": None, "": None, " ": None}
    for text, value in spelled.items():
        assert parse_changes([f" ema_decay = {text}"]) == {"ema_decay": value}
    texts = ["gradient_checkpointing=true", "sync_batch_norm=false", "rand_augment='rand-m9'"]
    texts += ['augmentation="imagenet"', "autocast=''", "max_gradient_norm=inf", "batch_size=1_024"]
    assert parse_changes(texts) == {
        "gradient_checkpointing": True,
        "sync_batch_norm": False,
        "rand_augment": "rand-m9",
        "augmentation": "imagenet",
        "autocast": "",
        "max_gradient_norm": math.inf,
        "batch_size": 1024,
    }
    own = tmp_path / "mine.toml"
    own.write_text(HEAD + "[recipe]\nbatch_size = 8\n")
    assert load_recipe(str(own)).for_images(80) == Recipe(steps=10, batch_size=8, warmup=0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"not a recipe \(it lacks about, epochs, recipe, source, warmup_epochs\)"),
        ("epochs = 1", r"not a recipe \(it lacks about, recipe, source, warmup_epochs\)"),
        ("epochs = \n", "not a recipe"),
        (
            HEAD + "[recipe]\nbatch = 8\n",
            "batch=8: no field of a recipe",
        ),
        ('about = ""\nsource = ""\nepochs = 1\nwarmup_epochs = 2\n[recipe]\n', "0 <= warmup_epochs < epochs"),
        (HEAD + '[recipe]\nlearning_rate = "a"\n', "not a recipe"),
        ('about = ""\nsource = ""\nepochs = "1"\nwarmup_epochs = 0\n[recipe]\n', "epochs='1': expected a number"),
        (HEAD + "recipe = 3\n", "settings=3: expected values by name"),
        (HEAD + "[recipe]\nsteps = 8\n", "steps=8: a file tells epochs"),
        (HEAD + "seed = 3\n[recipe]\n", "seed: no entry of one"),
        (HEAD + "[adapt]\nmixup = [1, 2]\n[recipe]\n", "mixup=.*: expected one of batch_size, steps, image_size"),
        (HEAD + "[adapt]\nsteps = [2, 1]\n[recipe]\n", "steps=.*: expected the lowest and the highest whole number"),
        (HEAD + "[adapt]\nsteps = 3\n[recipe]\n", "steps=3: expected the lowest and the highest whole number"),
        (HEAD + "[adapt]\nbatch_size = [2, 4]\n[recipe]\nbatch_size = 3\n", "and it under .adapt. only"),
        (HEAD + "[recipe]\nbatch_size = 0\n", "batch_size=0: expected"),
        ('about = ""\nabout = ""\n', "not a recipe"),
        ("a = " + "[" * 100_000, "not a recipe"),
    ],
)
def test_wrong_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(str(tmp_path / "wrong.toml"))


def test_unknown_names_and_changes() -> None:
    with pytest.raises(ValueError, match=r"recipe='imagenet': expected a \.toml file or one of finetune-22k-224"):
        load_recipe("imagenet")
    for text in ("batch_size", "=8", " = 8", ""):
        with pytest.raises(ValueError, match=f"set='{text}': expected name=value"):
            parse_changes([text])
    with pytest.raises(ValueError, match="set='batch_size=8': batch_size is given twice"):
        parse_changes(["batch_size=4", "batch_size=8"])
    for changes in (["steps=9", "epochs=3"], ["warmup=0.1", "warmup_epochs=1"], ["steps=9", "warmup_epochs=1"]):
        with pytest.raises(ValueError, match=r"epochs=\d: expected (steps|warmup) or (warmup_)?epochs, not both"):
            load_recipe("imagenet-300").for_images(IMAGENET, parse_changes(changes))
    with pytest.raises(ValueError, match="rand_augment='rand-m9': goes with augmentation 'imagenet' only"):
        Recipe(rand_augment="rand-m9")
    with pytest.raises(ValueError, match="autocast='float16': expected 'bfloat16' or ''"):
        Recipe(autocast="float16")
    with pytest.raises(ValueError, match="minimum_rate=1: expected a number from 0 to learning_rate"):
        Recipe(minimum_rate=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("batch_size=abc", "batch_size='abc': expected a whole number"),
        ("batch_size=8.5", r"batch_size=8\.5: expected a whole number"),
        ("learning_rate=fast", "learning_rate='fast': expected a number"),
        ("epochs=long", "epochs='long': expected a number"),
        ("gradient_checkpointing=yes", "gradient_checkpointing='yes': expected true or false"),
        ("mixup=true", "mixup=True: expected a number"),
        ("autocast=1", "autocast=1: expected a text"),
        ("rand_augment=hello", "rand_augment='hello': expected timm's notation"),
        ("epochs=1", "expected 0 <= warmup_epochs < epochs; set both of them"),
        ("epochs=inf", "epochs=inf: expected a number from 1e-6 to 1e6"),
        ("epochs=nan", "epochs=nan: expected a number"),
        ("epochs=1e12", r"epochs=1000000000000\.0: expected a number from"),
        ("warmup_epochs=-1", "warmup_epochs=-1: expected a number from 0"),
        ("batch_size=0", "batch_size=0: expected 2 .* to 65536 images"),
        ("batch_size=", "batch_size='': expected a whole number"),
        ("batch_size=none", "batch_size='none': expected a whole number"),
        ('batch_size="8"', "batch_size='8': expected a whole number"),
        ("batch_size=[8]", r"batch_size='\[8\]': expected a whole number"),
        ("batch_size=8 # more", "batch_size='8 # more': expected a whole number"),
        ("batch_size=8\nsteps=3", r"batch_size='8\\nsteps=3': expected a whole number"),
        ("batch_size=2048", "batch_size=2048: there are only 1000 training images"),
        ("learning_rate=inf", "learning_rate=inf: expected a number"),
        ("ema_decay=half", "ema_decay='half': expected a number or none"),
        ("ema_decay=1", r"ema_decay=1: expected a number in \[0, 1\), or none"),
        ("ema_decay=nan", "ema_decay=nan: expected a number"),
        ("autocast=none", "autocast='none': expected 'bfloat16' or ''"),
        ("lr=8", r"lr=8: no field of a recipe \(did you mean learning_rate\?\)"),
        ("wd=8", r"wd=8: no field of a recipe \(did you mean weight_decay\?\)"),
        ("batchsize=8", r"batchsize=8: no field of a recipe \(did you mean batch_size\?\); expected accumulate, aug"),
    ],
)
def test_changes_of_another_type_are_named(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("imagenet-300").for_images(1000, parse_changes([change]))
