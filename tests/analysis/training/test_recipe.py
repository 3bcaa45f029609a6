import math
from pathlib import Path

import pytest

from analysis.training.recipe import Recipe, load_recipe, parse_changes, recipe_names

IMAGENET = 1_281_167


def test_the_published_recipes() -> None:
    """Batch size: machines x GPUs x images x accumulation of the commands in the official README."""
    published = {
        "imagenet-300": (8 * 64 * 4, 4e-3, 300, 10, 0.5, 224),
        "imagenet22k-90": (16 * 8 * 32, 4e-3, 90, 5, 0.1, 224),
        "finetune-384": (4 * 8 * 32, 4e-4, 30, 1, 0.8, 384),
        "finetune-22k-224": (2 * 8 * 32, 4e-4, 30, 1, 0.2, 224),
        "finetune-22k-384": (4 * 8 * 16, 4e-4, 30, 1, 0.3, 384),
    }
    assert recipe_names() == sorted(published)
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


def test_changes_and_own_files(tmp_path: Path) -> None:
    changes = parse_changes(["batch_size=64", "ema_decay=", "autocast=", "epochs=2", "warmup_epochs=0.5", "mixup=0.2"])
    recipe = load_recipe("imagenet-300").for_images(640, changes)
    assert (recipe.steps, recipe.warmup, recipe.batch_size) == (20, 0.25, 64)
    assert (recipe.ema_decay, recipe.autocast, recipe.mixup) == (None, "", 0.2)
    own = tmp_path / "mine.toml"
    own.write_text('about = ""\nsource = ""\nepochs = 1\nwarmup_epochs = 0\n[recipe]\nbatch_size = 8\n')
    assert load_recipe(str(own)).for_images(80) == Recipe(steps=10, batch_size=8, warmup=0.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"not a recipe \(it lacks about, epochs, recipe, source, warmup_epochs\)"),
        ("epochs = 1", r"not a recipe \(it lacks about, recipe, source, warmup_epochs\)"),
        ("epochs = \n", "not a recipe"),
        (
            'about = ""\nsource = ""\nepochs = 1\nwarmup_epochs = 0\n[recipe]\nbatch = 8\n',
            "batch=8: no field of a recipe",
        ),
        ('about = ""\nsource = ""\nepochs = 1\nwarmup_epochs = 2\n[recipe]\n', "0 <= warmup_epochs < epochs"),
        ('about = ""\nsource = ""\nepochs = 1\nwarmup_epochs = 0\n[recipe]\nlearning_rate = "a"\n', "not a recipe"),
    ],
)
def test_wrong_recipes_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "wrong.toml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(str(tmp_path / "wrong.toml"))


def test_unknown_names_and_changes() -> None:
    with pytest.raises(ValueError, match=r"recipe='imagenet': expected a \.toml file or one of finetune-22k-224"):
        load_recipe("imagenet")
    with pytest.raises(ValueError, match="set='batch_size': expected name=value"):
        parse_changes(["batch_size"])
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
    ],
)
def test_changes_of_another_type_are_named(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_recipe("imagenet-300").for_images(1000, parse_changes([change]))
