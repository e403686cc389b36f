"""Audits: what they find in models that are broken in one way each, and that they touch nothing."""

from __future__ import annotations

import copy
import functools
import json
import math
import re
import warnings

import audited
import numpy as np
import pytest
import torch
from audited import (
    Attention,
    Branching,
    Dropped,
    Embeds,
    Floats,
    Grouped,
    Keeps,
    Net,
    Noisy,
    Norm,
    Shifted,
    Sorted,
    Square,
    Squeezes,
)
from torch import Tensor, nn
from zoo import SPECS, case_of, dependence, pyramid

import pixelfast as pf
from pixelfast import _audit
from pixelfast._audit import effects, results

GREY, RGB = (1, 5, 6), (3, 4, 5)


@functools.cache
def sound() -> pf.Audit:
    return pf.audit(Net(), GREY)


@functools.cache
def stopped() -> pf.Audit:
    return pf.audit(Branching().eval(), GREY)


def lines(audit: pf.Audit, mark: str) -> str:
    return "\n".join(f"{f.topic}: {f.text}" for f in audit.findings if f.mark == mark)


# --- causality --------------------------------------------------------------------------------------------


def test_a_sound_model():
    audit = sound()
    assert (audit.ok, audit.causal, audit.exact, audit.problems, audit.leak) == (True, True, True, (), None)
    text = str(audit)
    assert text.startswith(
        "causal: every distribution depends on earlier pixels and colours alone\n\nNet, 1 x 5 x 6"
    )
    assert "no pixel depends on later ones (read off the weights)" in text
    assert "changing all 30 sub-pixels, one at a time in float64, has no effect that the" in lines(
        audit, "ok"
    )
    assert (audit.measured.missed, audit.measured.unseen) == ((), 0)
    assert audit.steps == results.Steps(skew=2, wavefront=14, raster=30)
    assert "a wavefront of skew 2 needs 14 steps, raster order 30" in text
    assert audit.scores.same_bits
    assert audit.scores.worst < 1e-5
    assert "teacher-forced scores are those of the drawn distribution, to the bit" in text


LEAKS = [
    ("type B for A", Net("B"), GREY, "causality", (0, 0), (0, 0), "first", (0, 0)),
    ("no mask", Net(second=None), GREY, "causality", (0, 0), (1, 0), "second", (1, 1)),
    ("wrong shift", Shifted(), GREY, "causality", (0, 0), (0, 1), "left", (0, 1)),
    ("type B in colour", Net("B", colours=3), RGB, "colours", (0, 0), (0, 0), "first", (0, 0)),
]


@pytest.mark.parametrize(
    ("module", "shape", "topic", "of", "on", "where", "tap"),
    [case[1:] for case in LEAKS],
    ids=[c[0] for c in LEAKS],
)
def test_a_leak_is_located(module, shape, topic, of, on, where, tap):
    audit = pf.audit(module, shape)
    leak = audit.leak
    assert not audit.ok
    assert not audit.causal
    assert (leak.of[1:], leak.on[1:], leak.modules, leak.tap) == (of, on, (where,), tap)
    assert leak == (audit.spatial_leak if topic == "causality" else audit.colour_leak)
    (sentence,) = audit.problems
    assert re.search(
        rf"pixel \(y={of[0]}, x={of[1]}\) depends on .*pixel \(y={on[0]}, x={on[1]}\), which is not drawn before it\. "
        rf"The leak is in module '{where}': its tap at \(dy=\+{tap[0]}, dx=\+{tap[1]}\)",
        sentence,
    )
    assert str(audit).startswith("NOT causal: the distribution of ")
    assert lines(audit, "FAIL").startswith(topic)
    assert "cannot compile it before it is causal" in lines(audit, "note")
    assert "has no effect that the weights do not allow" in lines(audit, "ok")  # what is measured leaks too
    assert (audit.scores, audit.steps, audit.cost.live) == (None, None, None)
    with pytest.raises(pf.CausalityError, match="the model is not causal"):
        pf.compile(module, shape=shape)


def test_leaks_of_space_and_of_colour_are_told_apart():
    audit = pf.audit(Net(None, colours=3), RGB)
    assert audit.spatial_leak.of[1:] == (0, 0) != audit.spatial_leak.on[1:]
    assert audit.colour_leak.of[1:] == audit.colour_leak.on[1:]
    assert re.search(r"the distribution of R of pixel \(y=3, x=2\) depends on R of", audit.problems[1])
    spatial = pf.audit(Net(second=None), GREY)
    assert spatial.colour_leak is None


def test_a_uniform_row_of_attention_leaks():
    audit = pf.audit(Attention(), (1, 3, 4))
    assert audit.leak.of == (0, 0, 0)
    assert "does it leave no position at all to some query?" in audit.problems[0]


@pytest.mark.parametrize(
    ("module", "stage", "why"),
    [
        (Sorted(), "lower", r"cannot plan aten\.sort\.default of \(N, 6, 5, 6\) in module 'sort'"),
        (Branching(), "capture", r"torch\.export could not capture Branching"),
    ],
)
def test_what_cannot_be_planned_is_measured(module, stage, why, capfd):
    audit = pf.audit(module, GREY)
    assert (audit.ok, audit.causal, audit.exact, audit.stopped.stage) == (True, True, False, stage)
    assert str(audit).startswith("causal, as far as measured: ")
    warned = lines(audit, "warn")
    assert "no pixel depends on later ones (measured only, by changing all sub-pixels in float64)" in warned
    assert re.search(rf"cannot compile it \({stage}\): .*{why}", warned)
    assert audit.field == sound().field
    assert (audit.steps, audit.scores, audit.cost.cached_seconds) == (None, None, None)
    assert "def forward" not in capfd.readouterr().err  # torch.export prints the graph that it gives up


@pytest.mark.parametrize(
    ("module", "shape", "where"),
    [
        (Sorted("B"), GREY, "first"),
        (Sorted(second=None), GREY, "second"),
        (Branching("B"), GREY, "first"),
        (Branching("B", colours=3), RGB, "first"),
        (Grouped(), GREY, "norm"),
    ],
)
def test_a_leak_is_measured(module, shape, where):
    audit = pf.audit(module, shape)
    assert not audit.ok
    assert not audit.exact
    assert audit.leak.of[1:] == (0, 0)
    assert audit.leak.modules == (where,)
    assert f"It is first seen there in what module '{where}' returns" in audit.problems[0]
    assert (audit.colour_leak is None) == (shape == GREY)


def test_of_a_measured_leak_the_last_pixel_is_named():
    assert pf.audit(Grouped(), GREY).leak.on == (0, 4, 4)  # the last one is seen by none


def test_a_scripted_module_is_measured():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(Floats(3))
    audit = pf.audit(scripted, RGB, head=pf.heads.Bernoulli(), to_input=pf.inputs.floats())
    assert (audit.ok, audit.causal, audit.exact) == (True, True, False)
    assert "is a TorchScript module; pass the module that it was made of" in lines(audit, "warn")


@pytest.mark.parametrize("case", [case_of(SPECS[3]), case_of(SPECS[9]), pyramid()], ids=str)
def test_what_is_measured_is_the_dependence(case, monkeypatch):
    monkeypatch.setattr(effects, "kChanges", 10**4)
    prepared, _ = _audit._prepared(case.module, case.shape, None, None, None, None)
    how = effects.manner(prepared)
    places, seen = effects.measure(prepared, how, pixel=(0, 0), seconds=None).singles()
    index = [np.ravel_multi_index(place, case.shape) for place in places]
    assert sorted(index) == list(range(math.prod(case.shape)))
    wanted = dependence(case).T[index]
    assert not (seen.reshape(len(index), -1) & ~wanted).any()
    assert (seen.reshape(len(index), -1) == wanted).mean() > 0.9  # the other has no dead rectifiers


def test_a_dependence_that_the_plan_does_not_know_is_shouted(monkeypatch):
    def blind(plan, sources):
        return np.zeros((len(sources), *plan.shape), bool)

    monkeypatch.setattr(_audit.receptive, "seeing", blind)
    audit = pf.audit(Net(), GREY)
    assert audit.causal
    assert not audit.ok
    assert "this is a bug of pixelfast, please report it" in audit.problems[0]
    assert "alone, but there is 1 problem\n" in str(audit).replace("\nproblem", " problem")


def test_weights_too_small_to_matter_are_a_note():
    module = Net()
    with torch.no_grad():
        module.last.weight.mul_(1e-30)
    audit = pf.audit(module, GREY)
    assert audit.ok
    assert re.search(r"\d+ effects that they allow did not show", lines(audit, "note"))


# --- colours and fields -----------------------------------------------------------------------------------


def test_colours_that_see_each_other():
    audit = pf.audit(Net(colours=3), RGB)
    assert audit.colours == ((), (0,), (0, 1))
    assert "G sees R; B sees R, G, of their own pixel" in lines(audit, "ok")
    measured = pf.audit(Branching(colours=3), RGB)
    assert measured.colours == audit.colours
    assert (
        pf.audit(Net(colours=2), (2, 3, 3)).findings[1].text == "colour 1 sees colour 0, of their own pixel"
    )


def test_colours_that_do_not():
    audit = pf.audit(Floats(3), RGB)
    assert audit.ok
    assert audit.colours == ((), (), ())
    assert "the colours of a pixel are independent of each other" in lines(audit, "note")


def test_the_blind_spot_is_a_fraction_and_a_picture(tmp_path):
    field = sound().field
    assert field.pixel == (4, 3)
    assert field.rows == ("......", "......", ".#####", ".####o", ".##@  ")
    assert (field.up, field.left, field.right, field.reach, field.seen) == (2, 2, 2, 12, 11)
    assert field.blind == pytest.approx(1 / 12)
    assert "blind spot: 8.3% of the 12 pixels within reach are not seen" in lines(sound(), "warn")
    assert "\n    ......\n    .#####\n    .####o\n    .##@" in str(sound())
    picture = sound().picture(scale=10)
    assert picture.mode == "RGB"
    assert np.asarray(picture)[2 + 45, 2 + 35].max() < 64
    assert sound().picture().size > (390, 300)


def test_what_there_is_no_time_to_measure_is_not_known():
    audit = pf.audit(Branching(), (1, 9, 9), seconds=0.0)
    assert audit.causal
    assert any("?" in row for row in audit.field.rows)
    assert re.search(r"measured only, by changing \d+ of the sub-pixels in float64", lines(audit, "warn"))
    assert "of what was measured" in str(audit)
    audit.picture()


# --- the batch, dropout, sizes ----------------------------------------------------------------------------


def test_batch_norm_is_named():
    audit = pf.audit(Norm(), GREY)
    assert audit.ok
    assert audit.batch == results.Batch(("norm",), (), training=True, evaluation=False)
    assert re.search(
        r"batch norm: in training mode it mixes the images of a batch and looks at later pixels \('norm'\)",
        lines(audit, "warn"),
    )
    bad = pf.audit(Norm(track_running_stats=False), GREY)
    assert bad.batch.evaluation
    assert "depends on the rest of its batch: there are no running statistics in 'norm'" in bad.problems[1]
    assert bad.leak is not None


def test_other_ways_to_mix_a_batch_are_measured():
    class Centred(Net):
        def middle(self, x: Tensor) -> Tensor:
            return x - x.mean(0, keepdim=True) if self.training else x

    audit = pf.audit(Centred().eval(), GREY)
    assert (audit.batch.layers, audit.batch.training) == ((), True)
    assert "in training mode an image's distribution depends on the rest of its batch" in lines(audit, "warn")


def test_dropout_left_on():
    audit = pf.audit(Dropped(always=False), GREY)
    assert audit.ok
    assert audit.chance == results.Chance(False, (), True, ("drop",))
    assert "the module came in training mode, with dropout in 'drop'; call eval() first" in lines(
        audit, "warn"
    )
    assert "training mode" not in str(pf.audit(Dropped(always=False).eval(), GREY))
    assert "the module came in training mode; this is about its eval mode" in lines(sound(), "note")


def test_dropout_that_stays_on():
    audit = pf.audit(Dropped(always=True).eval(), GREY)
    assert audit.causal  # as far as chance allows: with one seed
    assert not audit.ok
    assert audit.problems == (
        "in eval mode two runs on the same images differ; something random is left on (drawn by bernoulli)",
    )
    assert str(audit).startswith("causal, as far as measured: ")


def test_a_random_layer_is_named():
    assert "(drawn by randn_like in 'noise')" in pf.audit(Noisy(), GREY).problems[0]


def test_sizes_at_which_it_breaks():
    assert {s.outcome for s in sound().sizes} == {"ok"}
    assert "sizes: runs on 1x1, 7x7, 5x12, 10x6, 10x12" in lines(sound(), "ok")
    audit = pf.audit(Square(5), (1, 5, 5))
    assert audit.ok
    warned = lines(audit, "warn")
    assert re.search(r"breaks on 5x10, 10x10: The size of tensor a \(10\) must match", warned)
    assert "returns a wrong shape on 1x1: (2, 1, 5, 5)" in warned


def test_a_batch_of_one_breaks_it():
    audit = pf.audit(Squeezes(), GREY)
    assert audit.ok
    assert "breaks on 1x1, 5x6, batch 1: where is the batch?" in lines(audit, "warn")


def test_a_module_that_keeps_something_for_its_batch():
    module = Keeps()
    module(torch.zeros((5, *GREY), dtype=torch.int64))
    audit = pf.audit(module, GREY)
    assert audit.causal
    assert "5x6, batch 1, 5x6, batch 3: another batch" in lines(audit, "warn")
    assert audit.measured.complete
    assert len(module.ones) == 5


# --- how it is read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "shape", "read_as"),
    [
        (Embeds(1, 256), GREY, "logits of 256 levels"),
        (Embeds(3, 768), RGB, 'logits of 256 levels, layout "n (k c) h w"'),
        (Embeds(3, 20), RGB, "LogisticMixture(2, levels=256)"),
        (Embeds(1, 15), GREY, "LogisticMixture(5, levels=256)"),
        (Embeds(1, 8), GREY, "logits of 8 levels"),
        (Floats(3), RGB, "logits of 2 levels"),
    ],
)
def test_a_head_is_guessed(module, shape, read_as):
    audit = pf.audit(module, shape=shape)
    how = "as floats in [-1, 1]" if isinstance(module, Floats) else "as they are"
    assert audit.read_as == f"{read_as}, as a guess from its size; levels go in {how}"
    assert audit.ok
    assert (audit.field.up, audit.field.left, audit.field.right) == (1, 0, 0)


def test_colours_and_levels_are_not_confused():
    class Sees(Floats):
        """Its outputs are level-major, and a colour sees the earlier ones."""

        def __init__(self, levels: int) -> None:
            super().__init__(3 * levels)
            self.own = nn.Conv2d(3, 3 * levels, 1)
            of, on = torch.arange(3 * levels)[:, None] % 3, torch.arange(3)
            self.own.weight.data *= (on < of)[:, :, None, None]

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.own(x)

    audit = pf.audit(Sees(8), RGB)
    assert audit.ok
    assert audit.read_as.startswith('logits of 8 levels, layout "n (k c) h w", as a guess from its size')
    assert audit.colours == ((), (0,), (0, 1))


def test_what_it_is_told_it_need_not_guess():
    module = audited.labelled()
    options = {"to_input": pf.inputs.scaled(-1, 1), "conditions": {"labels": torch.int64}, "output": "logits"}
    audit = pf.audit(module, GREY, **options)
    assert audit.ok
    assert audit.read_as == "logits of 2 levels"
    audit = pf.audit(Floats(3), RGB, to_input=pf.inputs.floats(), head=pf.heads.Bernoulli(probabilities=True))
    assert audit.stopped.stage == "plan"
    assert "cannot compile it (plan): Floats yields probabilities below 0" in lines(audit, "FAIL")
    guessed = pf.audit(Floats(3), RGB, to_input=pf.inputs.floats()).read_as
    assert guessed == "logits of 2 levels, as a guess from its size; levels go in as to_input says"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((Net(), (1, 5)), r"\[audit\] shape must be three positive integers \(C, H, W\), got \(1, 5\)"),
        (
            (Square(5), GREY),
            r"\[audit\] Square cannot be run on images of shape \(2, 1, 5, 6\): The size of tensor a",
        ),
        ((nn.Conv2d(2, 2, 1), GREY), r"\[audit\] Conv2d cannot be run on images of shape \(2, 1, 5, 6\): "),
        (
            (nn.AdaptiveAvgPool2d(1), RGB),
            r"AdaptiveAvgPool2d does not say how its output is read, .* fits no head",
        ),
        ((case_of(SPECS[3]).module, GREY), r"the model has 3 channels, but shape is \(1, 5, 6\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        pf.audit(*arguments)


# --- nothing is touched -----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: Norm(), lambda: Branching(), lambda: Dropped(True)])
def test_the_module_is_left_as_it_was(make):
    module = make()
    module.train()
    module.second.eval()
    module.last.bias.requires_grad_(False)
    module.first.weight.grad = torch.ones_like(module.first.weight)
    before = copy.deepcopy(module.state_dict())
    modes = [part.training for part in module.modules()]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    pf.audit(module, GREY)
    assert torch.equal(torch.get_rng_state(), state)
    assert [part.training for part in module.modules()] == modes
    assert not module.last.bias.requires_grad
    assert torch.equal(module.first.weight.grad, torch.ones_like(module.first.weight))
    assert module.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_a_dictionary_is_what_json_can_hold():
    for audit in (sound(), stopped(), pf.audit(Net("B"), GREY)):
        found = json.loads(json.dumps(audit.to_dict(), allow_nan=False))
        assert found["ok"] == audit.ok
        assert found["problems"] == list(audit.problems)
        assert found["field"]["rows"] == list(audit.field.rows)
    assert found["leak"]["tap"] == [0, 0]


def test_what_it_costs():
    cost = sound().cost
    assert cost.passes == 30
    assert cost.dense == 30 * (9 * 6 + 9 * 36 + 6)
    assert cost.live == pf.compile(Net(), shape=GREY).multiply_adds < cost.dense
    assert cost.plain_seconds == 30 * cost.pass_seconds > 0
    assert cost.cached_seconds > 0
    assert re.search(
        r"plain sampling: 30 forward passes of 11\.5 k multiply-adds: about [\d.]+ m?s",
        lines(sound(), "note"),
    )
    assert re.search(
        r"cached sampling: 6\.3 k multiply-adds, once, in \d+ launches: [\d.]+ m?s", lines(sound(), "note")
    )


def test_progress_is_shown_if_asked_for(capsys):
    pf.audit(Branching(), (1, 2, 2), progress=True)
    assert "measure" in capsys.readouterr().err


# --- assert_causal ----------------------------------------------------------------------------------------


def test_assert_causal_passes():
    pf.testing.assert_causal(Net(), GREY)
    pf.testing.assert_causal(Branching(), shape=GREY)
    head = pf.heads.Categorical(100, layout="n (c k) h w")
    pf.testing.assert_causal(Floats(300), RGB, head=head, to_input=pf.inputs.floats())


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            Net("B"),
            r"Net is not causal: the distribution of pixel .* The leak is in module 'first': its tap at",
        ),
        (
            Branching("B"),
            r"Branching is not causal: .* It is first seen there in what module 'first' returns",
        ),
    ],
)
def test_assert_causal_fails(module, message):
    with pytest.raises(AssertionError, match=message):
        pf.testing.assert_causal(module, GREY)
