from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np

from analysis.receptive_field.methods import erf_methods, field_warnings
from analysis.receptive_field.options import ErfOptions
from analysis.recognition.labels import SORTED
from analysis.recognition.methods import accuracy_warnings, evaluation_methods
from analysis.runs.methods import FAMILIES, LIBRARIES, Methods, networks_of, software, warned, works, write_methods
from analysis.shape_bias.methods import bias_warnings, shape_bias_methods
from replknet.networks import FAMILIES as OWN
from tests.analysis.redrawing.test_kinds import answers, evaluation, field


def test_every_entry_is_whole() -> None:
    for key, entry in works().items():
        assert entry.count("{") == entry.count("}") and entry.endswith("\n}"), key
        assert all(f"  {name} = {{" in entry for name in ("author", "title", "year")), key
    assert {*LIBRARIES.values(), *FAMILIES.values()} <= set(works())


def test_files_hold_the_paragraphs_and_the_works_they_name(tmp_path: Path) -> None:
    methods = Methods(("One.", "Two."), ("luo2016erf",)) + Methods(
        ("Two.", "Three."), ("ding2022replknet", "luo2016erf")
    )
    write_methods(methods, lambda name: nullcontext(tmp_path / name))
    assert (tmp_path / "methods.txt").read_text() == "One.\n\nTwo.\n\nThree.\n"
    text = (tmp_path / "references.bib").read_text()
    assert text.count("\n@") + 1 == 2 and text.startswith("@inproceedings{ding2022replknet,")


def test_networks_are_cited_by_library_and_family() -> None:
    found = networks_of(["timm:resnet50", "a.pth", "torchvision:resnet18"], ["ResNet", "UniRepLKNet"])
    assert found == ("wightman2019timm", "torchvision2016", "ding2024unireplknet")
    assert set(FAMILIES) == {family.name for family in OWN}


def test_a_field_is_told_with_its_numbers() -> None:
    result = field("net")
    methods = erf_methods([result, replace(result, model="other")])
    text = " ".join(methods.paragraphs)
    area, (low, high) = 100 * result.area_ratio(0.5), result.area_ratio_interval(0.5)
    for part in (
        "of 2 networks (net; other) were measured on 2 images of 32 x 32 pixels",
        "outputs of the unit of the last feature map whose centre is nearest to the centre of the image was taken",
        "its absolute values were summed over the colours",
        f"net: 50 % of the gradient in {area:.1f} % [{100 * low:.1f}, {100 * high:.1f}] of the image",
    ):
        assert part in text
    assert set(methods.works) == {"luo2016erf", "ding2022replknet", "efron1993bootstrap"}
    signed = replace(result, options=ErfOptions(gradient_rule="signed", unit=(1, 2)), images=("a", "b"), seed=None)
    text = " ".join(erf_methods([signed]).paragraphs)
    assert "its values, with their signs, were" in text and "row and column (1, 2)" in text and "%" not in text
    drawn = replace(result, image_source="generated dead leaves", seed=7)
    assert "(generated dead leaves, Lee et al., 2001; seed 7)" in erf_methods([drawn]).paragraphs[0]


def test_shape_bias_is_told_with_its_counts_and_people() -> None:
    net, people = answers("net", 0.4), [answers("a", 0.7), answers("bb", 0.6)]
    methods = shape_bias_methods([net], people, "texture")
    text = " ".join(methods.paragraphs)
    low, high = net.confidence_interval("texture")
    counts = f"({net.num_shape} shape, {net.num_texture} texture, {net.num_neither} neither)"
    for part in (
        "1 observer (net) answered 256 images, of which 240 show",
        "the others were left out",
        f"net: shape bias {net.shape_bias:.3f} [{low:.3f}, {high:.3f}] {counts}",
        "10000 bootstrap draws of texture exemplars with all their images",
        f"of their answers to the 240 of two cues, {sum(own.num_neither for own in people)} were neither",
    ):
        assert part in text
    assert "softmax" not in text  # nobody had logits
    assert "The answers of net were recorded elsewhere and read from a file." in text
    assert f"also outside of the {len(net.categories)} categories" in text
    assert "owen2007pigeonhole" not in methods.works and "geirhos2020consistency" in methods.works
    alone = shape_bias_methods([net])
    assert "geirhos2020consistency" not in alone.works and "owen2007pigeonhole" in alone.works


def test_images_without_conflict_have_no_shape_bias() -> None:
    net = answers("net", 0.4)
    congruent = net.restricted(
        [name for name, other in zip(net.stimuli, net.columns["conflict"], strict=True) if not other]
    )
    (text,) = shape_bias_methods([congruent]).paragraphs
    assert "answered 16 images, none of which shows the shape of one category" in text
    assert text.endswith(f"Answered with their category were net {100 * congruent.congruent_accuracy:.2f} %.")


def test_classes_that_were_matched_by_order_are_told() -> None:
    result = evaluation()
    assert accuracy_warnings([result]) == []
    blind = replace(result, model="net", settings={**result.settings, "classes_matched": SORTED})
    assert accuracy_warnings([result, blind]) == [f"Accuracy of net: classes were matched {SORTED}."]


def test_an_accuracy_is_told_with_its_interval() -> None:
    result = evaluation()
    methods = evaluation_methods([result])
    low, high = (100 * end for end in result.interval())
    correct = int((result.labels == result.best[:, 0]).sum())
    assert "classified 60 images of 10 classes." in methods.paragraphs[0]
    assert methods.paragraphs[1].endswith(f": top-1 {100 * correct / 60:.2f} % [{low:.2f}, {high:.2f}].")
    assert methods.works == ("wilson1927interval",)


def test_software_is_what_the_results_record() -> None:
    told = {"torch": "2.9", "numpy": "2.1", "python": "3.11", "device": "cuda", "gpu": "NVIDIA H1"}
    told["dtype"] = "torch.float16"
    text = software([told, told, {}]).paragraphs[0]
    assert "PyTorch 2.9 (Paszke et al., 2019), NumPy 2.1 and Python 3.11, on NVIDIA H1 in float16." in text
    assert text.count("PyTorch") == 1
    assert "PyTorch" not in software([{}]).paragraphs[0] and software([{}]).works == ()


def test_what_is_undefined_is_said() -> None:
    dark = field("net")
    nothing = {name: np.zeros_like(getattr(dark, name)) for name in ("mean_map", "ring_sums", "moments")}
    text = " ".join(erf_methods([replace(dark, **nothing)]).paragraphs)
    assert "net: 50 % of the gradient in an undefined part of the image" in text


def test_what_weakens_the_numbers_is_a_paragraph() -> None:
    assert warned([]) == Methods((), ())
    assert warned(["One.", "Two."]).paragraphs == ("One. Two.",)


def test_fields_that_are_cut_off_or_silent_are_named() -> None:
    result = field("net")
    nothing = {name: np.zeros_like(getattr(result, name)) for name in ("mean_map", "ring_sums", "moments")}
    silent = replace(result, model="off", **nothing)
    assert not result.fills_image() and field_warnings([result]) == []
    (text,) = field_warnings([result, silent])
    assert text.startswith("The unit does not react to any image, its ReLU is off (off):")
    rings = np.zeros_like(result.ring_sums)
    rings[:, -1] = 1.0  # all of the gradient at the border
    full = [replace(result, model=name, ring_sums=rings, layer=layer) for name, layer in (("a", "x"), ("b", "y"))]
    (text,) = field_warnings(full)
    assert "nine tenths of the image or more (x of a; y of b): gradient beyond the border is cut off" in text


def test_a_gradient_beside_the_unit_is_told() -> None:
    """All of it in one pixel, 3 rows and 4 columns from the unit; or in two on either side of it."""
    result = field("net")
    one = np.array([[1.0, 3.0, 4.0, 9.0, 16.0, 12.0]] * len(result.moments))
    both = np.array([[1.0, 0.0, 0.0, 9.0, 16.0, 12.0]] * len(result.moments))
    aside = replace(result, model="aside", moments=one)
    assert (aside.centroid_distance(), aside.rms_radius()) == (5.0, 0.0)
    assert (replace(result, moments=both).centroid_distance(), replace(result, moments=both).rms_radius()) == (0.0, 5.0)
    (text,) = field_warnings([replace(result, moments=both), aside])
    assert text.startswith("The gradient lies to one side of the unit (aside): squares are round the unit")


def test_shape_biases_that_mean_little_are_named() -> None:
    net = answers("net", 0.4)
    seldom = replace(net, observer="shy", responses=("none of them",) * len(net.responses))
    said = bias_warnings([net, seldom])
    assert bias_warnings([net]) == [] and len(said) == 2
    assert said[0].startswith("Too few of the images without conflict are named correctly (shy 0.0 %)")
    assert "either cue (shy 0.0 %): that shape bias rests on the others." in said[1]
