"""The examples in the documentation run, and its links lead somewhere."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import pixelfast as pf

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]


def blocks(page):
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_readme_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = blocks("README.md")[0]
    small = code.replace("hidden=64, layers=12", "hidden=4, layers=1")
    assert small != code
    images = torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8)
    names = {"images": images, "labels": torch.arange(64) % 10}
    exec(small, names)
    out = names["out"]
    assert out.images.shape == (64, 1, 28, 28)
    assert out.images.dtype == torch.uint8
    assert out.log_prob.shape == (64,)
    assert torch.equal(names["sampler"].log_prob(out.images, labels=names["labels"]), out.log_prob)
    assert "multiply-adds" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["config.json", "model.safetensors"]


def test_the_readme_takes_anybodys_module():
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.above, self.last = nn.Conv2d(3, 8, (2, 3)), nn.Conv2d(8, 100, 1)

        def forward(self, x):
            return self.last(self.above(F.pad(x, (1, 1, 2, -1))).relu())

    code = blocks("README.md")[1]
    names = {"pf": pf, "module": Module()}
    exec(code, names)
    assert names["sampler"].shape == (3, 32, 32)


def test_the_contributing_example_runs(capsys):
    code = blocks("CONTRIBUTING.md")[0]
    exec(code, {})
    assert "layers.2" in capsys.readouterr().out


def steady(text):
    """Without what differs between machines, and line breaks with it."""
    return re.sub(r"[\d.]+(e-\d+)? (m?s|min|nats)\b", "some", " ".join(text.split()))


def test_the_audit_prints_what_its_page_says(capsys):
    text = (ROOT / "docs/audit.md").read_text(encoding="utf-8")
    code, check = blocks("docs/audit.md")
    report, leak = re.findall(r"```\n((?:NOT )?causal.*?)```\n", text, re.DOTALL)
    names = {}
    torch.manual_seed(0)
    exec(code, names)
    assert steady(capsys.readouterr().out) == steady(report)
    exec(check, names)
    exec(code.replace('MaskedConv2d("A"', 'MaskedConv2d("B"'), names)
    assert steady(capsys.readouterr().out).startswith(steady(leak))
    with pytest.raises(AssertionError, match="Sequential is not causal"):
        exec(check, names)


def test_the_example_of_a_condition_runs():
    (code,) = (b for b in blocks("docs/bring-your-own-model.md") if "class Bottom" in b)
    names = {}
    exec(code, names)
    assert names["bottom"].shape == (8, 1, 8, 8)
    assert names["sampler"].verify() < 1e-4


def test_the_recurrent_layer_of_the_page_on_training():
    names = {}
    exec(next(b for b in blocks("docs/training.md") if "class RowLayer" in b), names)
    layer = names["RowLayer"](4)
    x = torch.randn(1, 4, 5, 5)
    changed = x.clone()
    changed[:, :, 2, 2] += 1
    before, after = layer(x), layer(changed)
    assert torch.equal(before[:, :, :2], after[:, :, :2])
    assert (before != after)[:, :, 3, 1:4].any((0, 1)).all()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith("https://"):
            assert ((ROOT / page).parent / target).exists(), target
