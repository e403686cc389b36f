"""`pixelfast audit`: what it prints, what it writes, and how it fails."""

from __future__ import annotations

import json
import re
import sys

import audited
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import pixelfast as pf
from pixelfast import cli
from pixelfast._audit import command


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder of a user, with a module of models in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    (tmp_path / "ours.py").write_text(
        "import audited\nnet, leaking, labelled = audited.net, audited.leaking, audited.labelled\n"
        "made = audited.Net()\nnumber = lambda: 3\n"
    )
    yield tmp_path
    sys.modules.pop("ours", None)


def test_the_command_prints_and_writes(here, capsys):
    argv = ["audit", "ours:net", "--shape", "1,5,6", "--out", "field.png", "--json", "audit.json"]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert out.startswith("causal: ")
    assert err == ""
    with Image.open("field.png") as picture:
        assert picture.format == "PNG"
    assert json.loads((here / "audit.json").read_text())["causal"]
    assert cli.main(["audit", "ours:made", "--shape", "1,5,6"]) == 0


def test_the_command_fails_if_there_are_problems(here, capsys):
    assert cli.main(["audit", "ours:leaking", "--shape", "1,5,6"]) == 1
    assert capsys.readouterr().out.startswith("NOT causal: ")


def test_the_command_takes_what_the_function_takes(here, capsys):
    weights = audited.labelled().state_dict()
    torch.save({"state_dict": weights}, "weights.pt")
    save_file(weights, "weights.safetensors")
    common = [
        "audit",
        "ours:labelled",
        "--shape",
        "1,5,6",
        "--scaled",
        "-1,1",
        "--conditions",
        "labels:int64",
    ]
    common += ["--output", "logits", "--head", "bernoulli"]
    for name in ("weights.pt", "weights.safetensors"):
        assert cli.main([*common, "--checkpoint", name]) == 0
        assert "Labelled, 1 x 5 x 6, read as logits of 2 levels" in capsys.readouterr().out


def test_the_command_takes_a_folder(here, capsys):
    model = pf.models.PixelCNN(channels=1, levels=4, hidden=6, layers=1, kernel=3)
    model.shape = (1, 4, 5)
    model.save(here / "run")
    assert cli.main(["audit", "run"]) == 0
    assert "PixelCNN, 1 x 4 x 5, read as logits of 4 levels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ours"], r"\[audit\] the model must be a folder or like package\.module:factory, got 'ours'"),
        (["absent.one:net"], r"\[audit\] cannot import 'absent\.one': No module named 'absent'"),
        (["ours:nothing"], r"\[audit\] 'ours' has no 'nothing'"),
        (["ours:number"], r"\[audit\] ours:number must make a torch\.nn\.Module, got a int"),
        (["ours:net"], r"ours:net does not say the shape of its images: give --shape, such as 3,32,32"),
        (["ours:net", "--checkpoint", "absent.pt"], r"absent\.pt: No such file or directory"),
        (
            ["ours:net", "--checkpoint", "ours.py"],
            r"\[audit\] ours\.py holds more than tensors, or is no checkpoint",
        ),
        (
            ["ours:net", "--checkpoint", "other.pt"],
            r"\[audit\] other\.pt does not fit the module: .*Missing key",
        ),
        (["ours:net", "--checkpoint", "list.pt"], r"\[audit\] list\.pt must hold a state_dict, got a list"),
        (
            ["ours:net", "--checkpoint", "bad.safetensors"],
            r"\[audit\] bad\.safetensors is truncated or no saf",
        ),
        (
            ["ours:net", "--out", "absent/field.png"],
            r"cannot write absent/field\.png: there is no directory absent",
        ),
    ],
)
def test_the_command_says_what_is_wrong(argv, message, here, capsys):
    torch.save({"a": torch.zeros(1)}, "other.pt")
    torch.save([1], "list.pt")
    (here / "bad.safetensors").write_bytes(b"none")
    assert cli.main(["audit", *argv]) == 2
    assert re.match(f"pixelfast audit: error: .*{message}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shape", "3,32"], "argument --shape: must be like 3,32,32, got '3,32'"),
        (["--shape", "3,0,32"], "argument --shape: must be like 3,32,32, got '3,0,32'"),
        (
            ["--head", "softmax"],
            "must be categorical:LEVELS, bernoulli or logistic-mixture:M[:LEVELS], got 'softmax'",
        ),
        (["--head", "categorical:1"], "[Categorical] levels must be at least 2, got 1, got 'categorical:1'"),
        (["--head", "categorical:x"], "invalid literal for int() with base 10: 'x', got 'categorical:x'"),
        (["--scaled", "1"], "argument --scaled: must be like -1,1, got '1'"),
        (["--conditions", "labels"], "argument --conditions: must be like labels:int64,..., got 'labels'"),
    ],
)
def test_a_wrong_option_is_refused(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["audit", "ours:net", *options])
    assert stop.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_heads_by_name():
    assert command._head("categorical:8") == pf.heads.Categorical(8)
    assert command._head("logistic-mixture:5:32") == pf.heads.LogisticMixture(5, 32)
    assert command._head("logistic-mixture:5") == pf.heads.LogisticMixture(5)
