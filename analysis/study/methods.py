"""Studies of kernel sizes, trained or cropped, and comparisons in the words of a methods section."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from analysis.receptive_field.methods import UNTOLD, erf_methods
from analysis.recognition.methods import evaluation_methods
from analysis.runs.methods import FAMILIES, Methods, counted, joined, warned
from analysis.shape_bias.comparing import common_images
from analysis.shape_bias.methods import shape_bias_methods
from analysis.study.budget import TOLERANCE
from analysis.study.compared.result import Comparison
from analysis.study.compared.verdict import field_and_bias
from analysis.study.design import CAP
from analysis.study.families import architecture_text, family_differences
from analysis.study.measures import BRIEF, shown
from analysis.study.posthoc import VariantResult, intervals_text, names_explained
from analysis.study.record import StudyRecord
from analysis.study.result import plain_settings, settings_of, study_table
from analysis.study.verdict import findings, summary_text, warnings_of
from replknet.networks import family_named


def study_methods(record: StudyRecord) -> Methods:
    """How the networks of a study were trained and measured, and what came out; of a study with finished cells."""
    study, recipe, results = record.study, record.study.recipe, record.results
    table = study_table(results)
    first = results[0]
    seeds = table["seed"].nunique()
    images = f"the images of {Path(study.data).name}" if study.data else "generated images with two cues"
    number = "" if study.data else f"{study.num_train} "
    works = ["loshchilov2019adamw", "luo2016erf"]
    families = [family_named(name).name for name in dict.fromkeys(table["family"])]
    works += [FAMILIES[name] for name in families if name in FAMILIES]
    lesser = study.capped_kernels(record.kernels)
    capped = f" ({study.sizes_text(lesser)} by stage, {CAP})" if lesser else ""
    by_name = {result.cell.name: result for result in results}
    built = {
        name: architecture_text(name, [by_name[cell] for cell in rows["cell"]], study.layers)
        for name, rows in plain_settings(table).items()
    }
    networks = "; ".join(f"{name} {text}" if len(built) > 1 else text for name, text in built.items())
    budget = (
        f"; of each kernel, the widths of the others give them the {_BUDGETS[study.budget]} of the RepLKNet within "
        f"{100 * TOLERANCE:g} %"
        if len(families) > 1
        else ""
    )
    text = (
        f"{counted(len(results), 'network')} of the {'families' if len(families) > 1 else 'family'} "
        f"{joined(families)}{' (Ding et al., 2022)' if families == ['RepLKNet'] else ''} with kernels of "
        f"{joined(map(str, record.kernels))} pixels{capped} (by stage: {networks}{budget}) "
        f"were trained on {number}{images} of {study.size} x {study.size} pixels in "
        f"{counted(len(first.classes), 'class', 'classes')}, with {counted(seeds, 'seed')}, by AdamW (Loshchilov and "
        f"Hutter, 2019): {recipe.steps} steps of {recipe.batch_size} images, peak learning rate "
        f"{recipe.learning_rate:g}, "
        f"warm-up over {100 * recipe.warmup:g} % of the steps and cosine decay, weight decay {recipe.weight_decay:g}, "
        f"label smoothing {recipe.label_smoothing:g}, drop path {recipe.drop_path_rate:g}, augmentation "
        f"{recipe.augmentation}, gradients no longer than {recipe.max_gradient_norm:g}. Accuracy is of "
        f"{first.num_val} validation images."
    )
    magnified = " of" if study.erf_size == study.size else ", resized to"
    text += (
        f" Effective receptive fields (Luo et al., 2016) are of the central unit of the last feature map over "
        f"{counted(len(first.erf.images), 'validation image')}{magnified} "
        f"{' x '.join(map(str, first.erf.map_size))} pixels, "
        "before "
        "the training (batch norms calibrated) and after it."
    )
    if first.balances:
        text += (
            f" The two cues tell different classes in {first.num_conflict} images at each of {len(first.balances)} "
            "balances. Shape bias is S / (S + T) at balance 0, where both cues are full; the point of subjective "
            "equality is that of a logistic function with lapses over all balances (Wichmann and Hill, 2001)."
        )
        works.append("wichmann2001psychometric")
    if first.cue_conflict is not None:
        text += (
            f" The networks also answered {len(first.cue_conflict.stimuli)} cue-conflict stimuli (Geirhos et al., "
            "2019) in "
            f"the categories {joined(first.cue_conflict.categories)}."
        )
        works.append("geirhos2019texture")
    sequential = study.until_width is not None
    if seeds > 1:
        where = "means" if sequential else "means and differences"
        text += f" Brackets after {where} are Student's 95 % intervals over seeds (Student, 1908)"
        if sequential:
            text += (
                ", for a number fixed before; those after differences are always valid, since seeds were added until "
                "that of the difference in shape bias between the largest and the smallest kernel was "
                f"{study.until_width:g} wide or less, or the limit was reached"
            )
        text += "; they end at what is possible."
        works.append("student1908mean")
    paragraphs = [text, *warned(warnings_of(table, chance=record.chance)).paragraphs]
    for label, rows in settings_of(table):
        named = f"{label[0].upper()}{label[1:]}: " if label else ""
        found = []
        for kernel, own in rows.groupby("kernel"):
            values = [(m.heading, summary_text(own[m.name].tolist(), m)) for m in shown(BRIEF, rows)]
            found.append(f"kernel {kernel}: {', '.join(f'{heading} {value}' for heading, value in values)}")
        paragraphs.append(f"{named}{'; '.join(found)}.")
        if len(set(rows["kernel"])) > 1:
            tests = findings(rows, sequential=sequential)
            used = {finding.trend.test for finding in tests} - {"none"}
            if used:
                tested = joined(_TESTS[name] for name in sorted(used))
                paragraphs.append(f"Trends were tested by {tested}, without correction for several tests.")
                works += [_WORKS[name] for name in used if name in _WORKS]
            paragraphs.append(
                " ".join(f"{own.question} {own.answer.rstrip('.')} ({own.detail.rstrip('.')})." for own in tests)
            )
    differences = family_differences(table, sequential=sequential)
    if differences:
        how = joined(sorted({_PAIRED.get(found.overall.test, "") for found in differences} - {""}))
        paragraphs.append(
            f"Families with the same kernels and seeds were compared, by the means over the kernels that both have"
            f"{f', and tested by {how}, without correction for several tests' if how else ''}. "
            + " ".join(found.sentence for found in differences)
        )
    return Methods(tuple(dict.fromkeys(paragraphs)), tuple(dict.fromkeys(works)))


_PAIRED = {"paired t": "a paired t test", "always-valid t": "a t test that holds whenever one stops"}
_BUDGETS = {"parameters": "parameters", "macs": "multiply-accumulates"}
_TESTS = {
    "Page's L": "Page's L, two-sided (Page, 1963)",
    "paired t": "a paired t test of the largest and the smallest kernel",
    "always-valid t": "a t test of the largest and the smallest kernel that holds whenever one stops (Wang and "
    "Ramdas, 2025)",
}
_WORKS = {"Page's L": "page1963ordered", "always-valid t": "wang2025anytime"}


def posthoc_methods(results: Sequence[VariantResult], name: str) -> Methods:
    """How a network with cropped kernels was measured."""
    kernels = sorted({result.variant.kernel for result in results if result.variant.kernel is not None})
    dropped = sorted({branch for result in results for branch in result.variant.dropped})
    by_stage = any(result.variant.stage is not None for result in results)
    text = (
        f"The large kernels of {name} were cropped to squares of {joined(map(str, kernels))} pixels round their centres"
        f"{' at all stages and at one stage at a time' if by_stage else ' at all stages'}, the other taps set to zero"
    )
    if dropped:
        turn = " in turn" * (len(dropped) > 1)
        text += f"; in {len(dropped)} more, the {joined(dropped)} branch beside them was left out{turn}"
    text += (
        f". The {len(results)} variants, the whole network among them, were measured without any retraining, batch "
        "norms "
        "with the statistics of the whole kernels."
    )
    whole = results[0]
    measured = [
        f"{words}{f' on {whole.measured_on[name]}' if name in whole.measured_on else ''}"
        for name, words in (("accuracy", "accuracy"), ("shape_bias", "shape bias (Geirhos et al., 2019)"))
        if np.isfinite(getattr(whole, name))
    ]
    fields_on = whole.measured_on.get("receptive_field", "")
    images = f" on images {fields_on}" if whole.erf.image_source in UNTOLD and fields_on else ""
    text += (
        f" Measured were {joined([*measured, 'the effective receptive field'])}{images}; the values are in "
        f"posthoc.csv, by the names of the variants ({names_explained([result.variant for result in results])}), with "
        f"{intervals_text(results)}. Of the kernels, with the small ones merged in, energy.csv has the "
        "energy in central squares: their part of the sum of squared taps, the mean over channels."
    )
    fields = erf_methods([result.erf for result in results], of="these variants")
    works = ["ding2022replknet", "efron1993bootstrap"]
    works += ["geirhos2019texture"] * bool(np.isfinite(whole.shape_bias))
    works += ["wilson1927interval"] * bool(np.isfinite(whole.accuracy))
    return Methods((text,), tuple(works)) + fields


def comparison_methods(comparison: Comparison) -> Methods:
    """How networks beside each other were measured, and what came out."""
    networks = comparison.networks
    found = Methods((f"{counted(len(networks), 'network')} were compared, each quantity on the same images.",), ())
    if len(networks) == 1:
        found = Methods((), ())
    fields = [network.erf for network in networks if network.erf is not None]
    answers = [network.shape_bias for network in networks if network.shape_bias is not None]
    labelled = [network.evaluation for network in networks if network.evaluation is not None]
    if fields:
        found += erf_methods(fields)
    if answers:
        everyone = common_images([*answers, *comparison.people])
        found += shape_bias_methods(everyone[: len(answers)], everyone[len(answers) :])
    if labelled:
        found += evaluation_methods(labelled)
    answer = field_and_bias(comparison.table)
    if not np.isnan(answer.trend.tau):
        ends = (
            "The interval holds the correlations (Kendall, 1938) of normal populations in which neither so large nor "
            "so small a one is rarer than 2.5 %."
        )
        found += Methods((f"{answer.question} {answer.answer} {answer.detail} {ends}",), ("kendall1938rank",))
    families = [FAMILIES[network.architecture] for network in networks if network.architecture in FAMILIES]
    return found + Methods((), tuple(families))
