"""The benchmarks run and verify what they time. No speeds here."""

import argparse
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pixelfast import _emulated, data, models
from pixelfast.sampler import compile as compile_model
from pixelfast.train import evaluate, train

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # the benchmarks are not installed

from benchmarks import (  # noqa: E402
    cached_loop,
    compiling,
    families,
    floor,
    gpu,
    harness,
    likelihoods,
    limits,
    report,
    sampling,
    training,
)


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, which wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("kind", [models.PixelCNN, models.GatedPixelCNN])
@pytest.mark.parametrize(
    ("channels", "levels", "head", "classes", "kernel"),
    [
        (1, 5, "categorical", None, 3),
        (1, 2, "bernoulli", 4, 5),
        (3, 5, "categorical", 4, 7),
        (3, 2, "bernoulli", None, 3),
    ],
)
def test_the_cached_loop_computes_what_the_model_does(kind, channels, levels, head, classes, kernel):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(
            channels=channels, levels=levels, hidden=7, layers=3, head=head, classes=classes, kernel=kernel
        )
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        images = torch.randint(0, levels, (3, channels, 6, 5))
    labels = None if classes is None else torch.tensor([1, 3, 0])
    with torch.inference_mode():
        expected = model.network(model.scale(images), labels)
    torch.testing.assert_close(cached_loop.outputs(model, images, labels), expected, rtol=1e-5, atol=1e-5)
    drawn = cached_loop.sample(model, 3, 6, 5, labels=labels)
    assert drawn.shape == images.shape
    assert drawn.min() >= 0
    assert drawn.max() < levels


def test_the_cached_loop_draws_from_the_model():
    model = models.GatedPixelCNN(levels=3, hidden=4, layers=2, kernel=3)
    with torch.no_grad():
        model.last.weight.zero_()
        model.last.bias.copy_(torch.tensor([0.0, 50.0, 0.0]))
    assert (cached_loop.sample(model, 2, 3, 4) == 1).all()


def test_the_cached_loop_knows_its_models():
    with pytest.raises(
        ValueError, match=r"\[cached\] model must be a PixelCNN or a GatedPixelCNN, got Linear"
    ):
        cached_loop.cached(torch.nn.Linear(1, 1), 1, 2, 2)


def test_interleaved_takes_medians_in_turn():
    calls = []

    def contestant(name, figures):
        found = iter(figures)

        def measure():
            calls.append(name)
            return next(found)

        return measure

    medians = harness.interleaved({"a": contestant("a", [9, 1, 5, 2]), "b": contestant("b", [9, 4, 3, 8])}, 3)
    assert medians == {"a": 2, "b": 4}  # the first of each warms up
    assert "".join(calls) == "abababab"
    assert harness.interleaved({"a": contestant("a", [7])}, 1) == {"a": 7}
    with pytest.raises(ValueError, match=r"\[interleaved\] repeats must be at least 1, got 0"):
        harness.interleaved({}, 0)


def test_a_run_from_measurement_to_readme(tmp_path, capsys, monkeypatch):
    cases = (
        sampling.Case(models.PixelCNN, 1, 5, 8, 1, levels=4),
        sampling.Case(models.GatedPixelCNN, 3, 4, 6, 1, levels=4),
    )
    monkeypatch.setattr(sampling, "CASES", cases)
    monkeypatch.setattr(sampling, "BATCHES", (1, 2))
    parser = sampling.argparse.ArgumentParser()
    sampling.add_arguments(parser)
    out = tmp_path / "record.json"
    sampling.run(parser.parse_args(["--repeats", "1", "--threads", "1", "--no-compiled", "--out", str(out)]))
    record = json.loads(out.read_text())
    assert [(row["model"], row["batch"]) for row in record["rows"]] == [
        ("PixelCNN 5x5x1 C8 L1", 1),
        ("PixelCNN 5x5x1 C8 L1", 2),
        ("GatedPixelCNN 4x4x3 C6 L1", 1),
        ("GatedPixelCNN 4x4x3 C6 L1", 2),
    ]
    for row in record["rows"]:
        assert set(row["seconds_per_image"]) == {"pixelfast", "cached", "plain"}
        assert all(value > 0 for value in row["seconds_per_image"].values())
        assert row["multiply_adds_per_image"] > 0
        assert row["floor_per_image"] > 0
    assert record["load_before"] >= 0
    assert record["machine"]["peak_multiply_adds_per_second"] > 0
    assert set(record["versions"]) == {"pixelfast", "python", "torch", "numpy"}
    assert "GatedPixelCNN 4x4x3 C6 L1" in capsys.readouterr().out

    page = tmp_path / "page.md"
    page.write_text("before\n<!-- speeds: begin -->\nold\n<!-- speeds: end -->\nafter\n")
    parser = sampling.argparse.ArgumentParser()
    report.add_arguments(parser)
    report.run(parser.parse_args([str(out)]))
    tables = report.blocks(record)
    assert capsys.readouterr().out == "\n".join(tables.values())
    assert all(
        table.count("\n| ") == 5 for table in tables.values()
    )  # the rule and four rows, after the head
    report.run(parser.parse_args([str(out), "--into", str(page)]))
    assert (
        page.read_text() == f"before\n<!-- speeds: begin -->\n{tables['speeds']}<!-- speeds: end -->\nafter\n"
    )


def test_families_from_measurement_to_page(tmp_path, capsys, monkeypatch):
    tiny = {"hidden": 4, "layers": 1}
    made = (
        families._grey("rows", models.RowLSTM, **tiny),
        families._grey("scales", models.MultiScale, model="PixelCNN", **tiny),
        families._grey("tokens", models.PixelTransformer, hidden=8, layers=1, heads=2, height=4, width=4),
    )
    monkeypatch.setattr(families, "FAMILIES", [replace(family, size=4) for family in made])
    parser = families.argparse.ArgumentParser()
    families.add_arguments(parser)
    out = tmp_path / "record.json"
    families.run(parser.parse_args(["--repeats", "1", "--threads", "1", "--out", str(out)]))
    record = json.loads(out.read_text())
    assert [(row["model"], row["batch"]) for row in record["rows"]] == [
        (name, n) for name in ("rows", "scales", "tokens") for n in families.BATCHES
    ]
    for row in record["rows"]:
        cached = {"cached"} if row["model"] == "tokens" else set()
        assert set(row["seconds_per_image"]) == {"pixelfast", "plain"} | cached
        assert all(value > 0 for value in row["seconds_per_image"].values())
    (table,) = report.blocks(record).values()
    assert table.count("\n| ") == 7
    assert "tokens" in capsys.readouterr().out


def test_families_are_verified(monkeypatch):
    model = families._grey("rows", models.RowLSTM, hidden=4, layers=1).model()
    sampler = compile_model(model, shape=(1, 4, 4))
    families.verify(model, sampler)
    model.last.bias.data += 3.0
    with pytest.raises(ValueError, match="log probabilities differ from the model's"):
        families.verify(model, sampler)


def test_training_from_measurement_to_page(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "MODELS", {"rows": lambda: models.RowLSTM(levels=2, hidden=2, layers=1)})
    monkeypatch.setattr(training, "SIZE", 3)
    parser = training.argparse.ArgumentParser()
    training.add_arguments(parser)
    out = tmp_path / "record.json"
    training.run(parser.parse_args(["--repeats", "1", "--threads", "1", "--out", str(out)]))
    record = json.loads(out.read_text())
    assert all(record["rows"][0]["seconds_per_step"][way] > 0 for way in training.WAYS)
    (table,) = report.blocks(record).values()
    assert table.count("\n| ") == 2


def test_likelihoods_from_runs_to_page(tmp_path):
    images = (np.random.default_rng(0).random((40, 3, 4)) < 0.3).astype(np.uint8)[:, None]
    path = tmp_path / "set.npz"
    np.savez(path, train_images=images[:30], test_images=images[30:], levels=2)
    dataset = data.load(path)
    for kind in (models.PixelCNN, models.LSTM2d):
        model = kind(levels=2, hidden=4, layers=1, head="bernoulli")
        train(model, dataset, out=tmp_path / kind.__name__, epochs=2, batch=8, progress=False)
    parser = likelihoods.argparse.ArgumentParser()
    likelihoods.add_arguments(parser)
    out = tmp_path / "record.json"
    runs = [str(tmp_path / name) for name in ("PixelCNN", "LSTM2d")]
    likelihoods.run(parser.parse_args([*runs, "--data", str(path), "--repeats", "1", "--out", str(out)]))
    record = json.loads(out.read_text())
    for row, published in zip(record["rows"], (81.30, None), strict=True):
        want = evaluate(models.load(tmp_path / row["model"]), data.load(path, split="test"), progress=False)
        assert row["nats"] == pytest.approx(want.nats)
        assert row["published_nats"] == published
        assert row["training"]["images"] == 2 * 30
    tables = report.blocks(record)
    assert tables["likelihoods"].count("\n| ") == 3
    assert tables["commands"].count("pixelfast train") == 2


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (
            "/opt/bin/python -m pixelfast train --data /data/mnist --out=/runs/a --lr 1e-3",
            "pixelfast train --data mnist --out a --lr 1e-3",
        ),
        ("pixelfast train --model row-lstm", "pixelfast train --model row-lstm"),
    ],
)
def test_commands_without_the_paths_of_a_machine(command, shown):
    assert likelihoods._portable(command) == shown


@pytest.mark.parametrize("name", training.MODELS)
def test_all_ways_to_train_agree(name, monkeypatch):
    torch.manual_seed(0)
    model, images = training.MODELS[name](), torch.randint(0, 2, (1, 1, 3, 4))
    training.verify(model, images)
    monkeypatch.setitem(
        training.WAYS, "fronts", lambda *given, **options: training.by_front(*given, **options) * 1.1
    )
    with pytest.raises(ValueError, match="fronts and the op differ"):
        training.verify(model, images)


def test_a_busy_machine_is_noted(monkeypatch, capsys):
    monkeypatch.setattr(harness.os, "getloadavg", lambda: (3.14159, 0.0, 0.0), raising=False)
    assert harness.load() == 3.14
    assert "warning: the machine is busy (load 3.1)" in capsys.readouterr().out
    monkeypatch.setattr(harness.os, "getloadavg", lambda: (0.1, 0.0, 0.0), raising=False)
    assert harness.load() == 0.1
    assert capsys.readouterr().out == ""


def test_an_unwritable_record_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "CASES", None)
    parser = sampling.argparse.ArgumentParser()
    sampling.add_arguments(parser)
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        sampling.run(parser.parse_args(["--out", str(tmp_path / "absent" / "record.json")]))


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ("scoring", "sampling and scoring differ"),
        ("model", "the engine's log probabilities differ from the model's"),
        ("cached", "the cached loop's outputs differ from the model's"),
    ],
)
def test_verify_refuses_what_is_wrong(spoiled, message, monkeypatch):
    model = sampling.Case(models.PixelCNN, 1, 4, 8, 1, levels=4).model()
    sampler = compile_model(model, shape=(1, 4, 4))
    sampling.verify(model, sampler)
    if spoiled == "scoring":
        monkeypatch.setattr(sampler, "log_prob", lambda images: torch.zeros(len(images)))
    elif spoiled == "model":
        model.last.bias.data[0] += 3.0
    else:
        monkeypatch.setattr(cached_loop, "outputs", lambda model, images: torch.zeros(2, 4, 4, 4))
    with pytest.raises(ValueError, match=message):
        sampling.verify(model, sampler)


def test_report_wants_markers():
    with pytest.raises(ValueError, match=r"\[report\] there are no markers <!-- speeds: begin --> and"):
        report.insert("no markers here", {"speeds": "table"})
    with pytest.raises(ValueError, match=r"there are no tables of 'peers'"):
        report.blocks({"question": "peers"})


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0123, "12.3 ms"), (1.5, "1.5 s"), (90.0, "90 s"), (150.0, "2.5 min")]
)
def test_duration(seconds, text):
    assert sampling.duration(seconds) == text


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("README.md", ["speeds"]),
        ("docs/performance.md", ["limits", "parts", "sizes", "contestants", "compiling", "netket", "skew"]),
        ("docs/models.md", ["families", "training", "likelihoods", "commands"]),
    ],
)
def test_pages_have_markers_for_the_tables(page, names):
    text = (ROOT / page).read_text(encoding="utf-8")
    for name in names:
        assert "a table" in report.insert(text, {name: "a table\n"})


@pytest.mark.parametrize(
    "name",
    ["sampling", "limits", "compiling", "netket", "skew", "families", "training", "likelihoods"],
)
def test_records_become_tables(name):
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.exists() and not (ROOT / ".git").exists():
        pytest.skip("a source distribution has no records")
    pages = "".join(
        (ROOT / page).read_text(encoding="utf-8")
        for page in ("README.md", "docs/performance.md", "docs/models.md")
    )
    for table in report.blocks(json.loads(path.read_text())).values():
        if not table.startswith("```"):  # commands
            assert table.startswith("| ")
            assert re.search(r"(Measured|Timed) 20\d\d-", table)
            assert "fp32 peak was measured" in table
        assert table in pages  # nobody has written figures by hand


def test_the_command_lists_its_questions():
    argv = [sys.executable, "-m", "benchmarks", "--help"]
    found = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0
    assert re.search(r"sampling\s+How long does an image take\?", found.stdout)
    assert re.search(r"report\s+Write the tables", found.stdout)


def test_compiling(monkeypatch, tmp_path, capsys):
    tiny = lambda: models.PixelCNN(layers=2, hidden=4, levels=3)  # noqa: E731
    monkeypatch.setattr(compiling, "CASES", {"tiny": (tiny, (1, 4, 4))})
    options = argparse.Namespace(quick=True, repeats=1, out=str(tmp_path / "compiling.json"))
    compiling.run(options)
    (row,) = json.loads((tmp_path / "compiling.json").read_text())["rows"]
    seconds = row["seconds"]
    assert seconds["first"] == pytest.approx(seconds["export"] + seconds["beyond"])
    assert min(seconds.values()) > 0
    assert row["parameters"] == sum(p.numel() for p in tiny().parameters())
    assert "tiny" in capsys.readouterr().out


def test_compiling_refuses_a_second_export(monkeypatch):
    made = iter(
        (models.PixelCNN(layers=2, hidden=4, levels=3), models.PixelCNN(layers=3, hidden=4, levels=3))
    )
    monkeypatch.setattr(compiling, "CASES", {"two": (lambda: next(made), (1, 4, 4))})
    with pytest.raises(ValueError, match=r"\[compiling\] two was exported again"):
        compiling.measure("two", 1)


# --- floor and limits -------------------------------------------------------------------------------------


def peaks(multiply_adds=100.0, bandwidths=(40.0, 20.0, 8.0), caches=(1000, 4000)):
    return floor.Peaks(multiply_adds, bandwidths, caches)


def test_the_floor_is_the_larger_of_products_and_weights():
    work = floor.Work(np.array([0, 0, 0]), np.array([1, 10, 100]), np.array([50]))
    found = floor.seconds(work, peaks(), 1)
    assert found["multiply_adds"] == pytest.approx(111 * 50 / 100)
    reading = [200 / 8, 200 / 40, 200 / 40]  # the first time from memory
    assert found["weights"] == pytest.approx(sum(reading))
    assert found["floor"] == pytest.approx(sum(map(max, reading, [0.5, 5.0, 50.0])))
    assert floor.seconds(work, peaks(), 10)["floor"] == pytest.approx(25 + 50 + 500)
    assert floor.seconds(work, peaks(), 1, word=2)["weights"] == pytest.approx(sum(reading) / 2)


def test_weights_live_where_what_was_read_since_fits():
    ops = np.array([0, 1, 0, 2, 0, 1])
    work = floor.Work(ops, np.ones(6, int), np.array([100, 120, 900]))
    assert work.lives((1000, 5000), 4).tolist() == [2, 2, 0, 2, 1, 1]
    assert work.lives((1000, 4000), 4).tolist() == [2, 2, 0, 2, 1, 2]
    assert work.lives((500, 4000), 1).tolist() == [2, 2, 0, 2, 1, 1]


def test_work_is_what_a_schedule_launches():
    model = models.PixelCNN(levels=2, hidden=4, layers=1).eval()
    sampler = compile_model(model, shape=(1, 4, 5))
    work = floor.Work.of(sampler.schedule)
    assert (work.positions * work.weights[work.ops]).sum() == sampler.multiply_adds


def test_limits_from_measurement_to_tables(tmp_path, capsys, monkeypatch):
    tiny = sampling.Case(models.PixelCNN, 1, 5, 4, 1, levels=3)
    monkeypatch.setattr(limits, "CASES", (tiny,))
    monkeypatch.setattr(limits, "SMALL", tiny)
    monkeypatch.setattr(limits, "SIZES", (tiny,))
    monkeypatch.setattr(limits, "BATCHES", (1, 16))
    monkeypatch.setattr(floor, "measure", peaks)
    parser = limits.argparse.ArgumentParser()
    limits.add_arguments(parser)
    out = tmp_path / "limits.json"
    limits.run(parser.parse_args(["--repeats", "1", "--threads", "2", "--out", str(out)]))
    record = json.loads(out.read_text())
    for row in record["rows"]:
        assert [s["batch"] for s in row["speed"]] == [1, 16]
        assert all(s["seconds"] > 0 and s["over_floor"] > 0 for s in row["speed"])
        assert all(sum(s["shares"].values()) == pytest.approx(1) for s in row["shares"])
        assert all({o["auto"], "5"} <= set(o["seconds"]) for o in row["orders"])  # 5: raster
        assert all(m["working_nbytes"] > m["ring_nbytes"] > 0 for m in row["memory"])
    assert record["sizes"][0]["ns_per_pixel"] > 0
    assert set(report.blocks(record)) == {"limits", "parts", "sizes"}
    assert "over floor" in capsys.readouterr().out


def test_gpu_from_measurement_to_table(tmp_path, capsys, monkeypatch):
    tiny = sampling.Case(models.PixelCNN, 1, 4, 4, 1, levels=3)
    monkeypatch.setattr(gpu, "CASES", ((tiny, (1, 2)),))
    monkeypatch.setattr(gpu, "CONVOLUTIONS", ((4, 1, 2),))
    monkeypatch.setattr(gpu, "TRAINING", ((4, 1, 3, 1),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    parser = gpu.argparse.ArgumentParser()
    gpu.add_arguments(parser)
    out = tmp_path / "gpu.json"
    options = ["--backend", "emulated", "--repeats", "1", "--teams", "1", "2", "--out", str(out)]
    gpu.run(parser.parse_args(options))
    record = json.loads(out.read_text())
    assert record["backend"] == "emulated"
    assert set(record["training"][0]["seconds"]) == {"kernels", "twin"}
    assert set(record["launch_seconds"]) == {"1 blocks", "2 blocks"}
    assert set(record["convolutions"][0]["seconds"]) == {"1x2", "2x3"}
    ways = {f"{team} blocks{far}" for team in (1, 2) for far in ("", ", none resident")}
    assert [set(row["seconds"]) for row in record["rows"]] == [{*ways, "chosen", "bf16", "cpu"}] * 2
    assert all(e["cycles"] > 0 for row in record["rows"] for e in row["estimates"])
    assert "over launches" in capsys.readouterr().out
    other = compile_model(models.PixelCNN(levels=3, hidden=5), shape=tiny.shape)
    with pytest.raises(ValueError, match="emulated and cpu draw different images"):
        gpu.verify(compile_model(tiny.model(), shape=tiny.shape, backend="emulated"), other)


def test_a_training_step_is_by_the_kernels(monkeypatch):
    calls = []
    for name in ("forward", "input_grad", "weight_grad"):
        work = getattr(gpu.Kernels, name)
        counted = lambda *args, name=name, work=work: calls.append(name) or work(*args)  # noqa: E731
        monkeypatch.setattr(gpu.Kernels, name, counted)
    gpu.training_step(_emulated, 4, 1, 3, 1, "cpu", 1)
    assert set(calls) == {"forward", "input_grad", "weight_grad"}


def test_gpu_says_that_nothing_was_measured(monkeypatch):
    monkeypatch.setattr(gpu.runtimes, "no_cuda", lambda: "there is no GPU, or no driver for it")
    parser = gpu.argparse.ArgumentParser()
    gpu.add_arguments(parser)
    with pytest.raises(ValueError, match="not measured: there is no GPU"):
        gpu.run(parser.parse_args([]))
    for module in (sampling, training):
        parser = gpu.argparse.ArgumentParser()
        module.add_arguments(parser)
        with pytest.raises(ValueError, match="not measured: there is no GPU"):
            module.run(parser.parse_args(["--device", "cuda"]))
