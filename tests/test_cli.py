"""The command line: what it prints, what it writes, and how it fails."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from pixelfast import Sample, __version__, cli, demo, doctor, models

CLASSES = tuple(f"class {i}" for i in range(10))


def tiny(classes=10, shape=(1, 5, 6)):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.PixelCNN(channels=shape[0], levels=4, hidden=6, layers=1, kernel=3, classes=classes)
    model.shape = shape
    model.class_names = CLASSES if classes else ()
    return model


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny().save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory):
    """A model without classes that does not say the size of its images."""
    folder = tmp_path_factory.mktemp("plain")
    model = tiny(classes=None)
    model.shape = None
    model.save(folder)
    return str(folder)


def sampled(folder, path, *options):
    assert cli.main(["sample", folder, "--out", str(path), "--no-progress", *options]) == 0
    with np.load(path) as arrays:
        return dict(arrays)


# --- the frame ----------------------------------------------------------------------------------------------


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(
        f"    {name} " in text for name in ("train", "sample", "eval", "info", "audit", "demo", "doctor")
    )


@pytest.mark.parametrize("command", ["train", "sample", "eval", "info", "audit", "demo", "doctor"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    assert f"usage: pixelfast {command}" in capsys.readouterr().out


def test_the_module_is_the_command():
    found = subprocess.run([sys.executable, "-m", "pixelfast", "--version"], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (0, f"pixelfast {__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "pixelfast: error: the following arguments are required: command"),
        (["paint"], "pixelfast: error: argument command: invalid choice: 'paint'"),
        (["sample", "run", "--order", "random"], "pixelfast sample: error: argument --order: invalid choice"),
        (["sample", "run", "--threads", "0"], "argument --threads: must be at least 1, got 0"),
        (["sample", "run", "--size", "big"], "argument --size: must be like 28x28, got 'big'"),
    ],
)
def test_a_wrong_command_line_exits_with_2(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (ValueError("[x] wrong\n  in two lines"), 2, "pixelfast info: error: [x] wrong in two lines\n"),
        (FileNotFoundError(2, "No such file", "a.npz"), 2, "pixelfast info: error: a.npz: No such file\n"),
        (OSError(28, "No space left on device"), 2, "pixelfast info: error: No space left on device\n"),
        (MemoryError(), 2, "pixelfast info: error: MemoryError\n"),
        (KeyboardInterrupt(), 130, "pixelfast info: interrupted\n"),
    ],
)
def test_errors_are_one_line(error, status, message, monkeypatch, capsys):
    def fail(options):
        raise error

    monkeypatch.setitem(cli._COMMANDS, "info", cli._Command("", cli._info_arguments, fail))
    assert cli.main(["info", "run"]) == status
    assert capsys.readouterr().err == message


def test_a_reader_may_leave(monkeypatch):
    def fail(options):
        print("a line")
        sys.stdout.flush()

    monkeypatch.setitem(cli._COMMANDS, "info", cli._Command("", cli._info_arguments, fail))
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert cli.main(["info", "run"]) == 0


# --- sample -------------------------------------------------------------------------------------------------


def test_sample_writes_a_grid(run_folder, tmp_path, capsys):
    path = tmp_path / "grid.png"
    argv = ["sample", run_folder, "-n", "6", "--columns", "3", "--out", str(path)]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert re.match(
        r"6 images of 1x5x6 in [\d.]+ s \([\d.]+ images/s\), \d+ steps in \w+ order, [\d.]+ bits/dim -> ", out
    )
    assert err == ""  # no terminal, no progress bar
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.size == (3 * (6 * 11 + 2) + 2, 2 * (5 * 11 + 2) + 2)


def test_sample_writes_arrays_that_eval_reads(run_folder, tmp_path, capsys):
    path = tmp_path / "samples.npz"
    arrays = sampled(run_folder, path, "-n", "12", "--labels", "3,class 5,0", "--order", "raster")
    assert arrays["images"].shape == (12, 1, 5, 6)
    assert arrays["images"].dtype == np.uint8
    assert arrays["log_prob"].dtype == np.float32
    assert arrays["labels"].tolist() == [3, 5, 0] * 4
    capsys.readouterr()
    nats = -arrays["log_prob"].astype(np.float64).mean()
    for engine in ("torch", "engine"):
        argv = [
            "eval",
            run_folder,
            "--data",
            str(path),
            "--split",
            "train",
            "--engine",
            engine,
            "--batch",
            "5",
        ]
        assert cli.main(argv) == 0
        found = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
        assert found["images"] == "12 of 1x5x6, 4 levels"
        assert re.fullmatch("[0-9a-f]{64}", found["sha256"])
        assert float(found["nats"].split()[0]) == pytest.approx(nats, abs=2e-4)
        assert float(found["bits/dim"]) == pytest.approx(nats / (30 * np.log(2)), abs=1e-4)


def test_order_and_threads_change_nothing_and_seed_does(run_folder, tmp_path):
    path = tmp_path / "samples.npz"
    one = sampled(run_folder, path, "-n", "5", "--order", "raster", "--threads", "1", "--seed", "7")
    two = sampled(run_folder, path, "-n", "5", "--order", "wavefront", "--threads", "2", "--seed", "7")
    assert all((one[key] == two[key]).all() for key in one)
    assert one["labels"].tolist() == [0, 1, 2, 3, 4]  # all classes in turn
    other = sampled(run_folder, path, "-n", "5", "--seed", "8")
    assert (one["images"] != other["images"]).any()


def test_sample_shapes_the_distribution(run_folder, tmp_path):
    path = tmp_path / "samples.npz"
    likeliest = sampled(run_folder, path, "-n", "3", "--labels", "1", "--top-k", "1")
    assert (likeliest["images"] == likeliest["images"][:1]).all()
    assert (likeliest["log_prob"] == 0).all()
    nearly = sampled(run_folder, path, "-n", "3", "--labels", "1", "--temperature", "1e-4", "--top-p", "0.5")
    assert (nearly["images"] == likeliest["images"]).all()


def test_size_may_be_given(plain_folder, tmp_path):
    arrays = sampled(plain_folder, tmp_path / "samples.npz", "-n", "2", "--size", "3x7")
    assert arrays["images"].shape == (2, 1, 3, 7)
    assert "labels" not in arrays


def test_progress_is_shown_if_asked_for(run_folder, tmp_path, capsys):
    path = str(tmp_path / "samples.npz")
    assert cli.main(["sample", run_folder, "-n", "2", "--out", path, "--progress"]) == 0
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-n", "0"], r"\[sample\] n must be at least 1, got 0"),
        (["--out", "grid.bmp"], r"\[sample\] --out must end in \.png or \.npz, got 'grid\.bmp'"),
        (["--out", "absent/grid.png"], r"cannot write absent/grid\.png: there is no directory absent"),
        (["--labels", "10"], r"\[sample\] --labels must be in \[0, 10\) or of class 0, .*, got '10'"),
        (["--labels", "2,hat"], r"\[sample\] --labels must be in \[0, 10\) or of class 0, .*, got 'hat'"),
        (["--temperature", "0"], r"\[sample\] temperature must be positive and finite, got 0"),
        (["--top-k", "0"], r"\[sample\] top_k must be at least 1, got 0"),
        (["--top-p", "2"], r"\[sample\] top_p must be in \(0, 1\], got 2"),
    ],
)
def test_sample_says_what_is_wrong(options, message, run_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", run_folder, *options]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(f"pixelfast sample: error: .*{message}.*\n", error)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--labels", "1"], "[sample] the model has no classes, so it takes no --labels"),
        ([], "does not say the size of its images: give --size, such as 28x28"),
    ],
)
def test_sample_knows_what_the_model_lacks(options, message, plain_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["sample", plain_folder, *options]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_without_a_model_is_an_error(tmp_path, capsys):
    assert cli.main(["info", str(tmp_path)]) == 2
    assert "holds no config.json" in capsys.readouterr().err


def test_two_colours_make_no_picture(tmp_path, capsys):
    tiny(shape=(2, 3, 3)).save(tmp_path / "run")
    assert cli.main(["sample", str(tmp_path / "run"), "--out", str(tmp_path / "grid.png")]) == 2
    assert "a .png needs 1 or 3 colours, the model has 2: use .npz" in capsys.readouterr().err


def test_an_unwritable_path_is_found_before_the_work(monkeypatch, tmp_path):
    def work(*args, **kwargs):
        raise AssertionError("the work has begun")

    monkeypatch.setattr(models, "load", work)
    out = str(tmp_path / "absent" / "out.png")
    assert cli.main(["sample", "run", "--out", out]) == 2
    assert cli.main(["demo", "--out", out]) == 2


# --- eval and info ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--limit", "0"], "[eval] limit must be at least 1, got 0"),
        (["--batch", "0"], "[eval] batch must be at least 1, got 0"),
        (["--engine", "engine"], "[eval] the model has 10 classes, but bare has no labels"),
    ],
)
def test_eval_says_what_is_wrong(options, message, run_folder, tmp_path, capsys):
    path = tmp_path / "bare.npz"
    np.savez(path, images=np.zeros((3, 5, 6), np.uint8))
    assert cli.main(["eval", run_folder, "--data", str(path), "--split", "train", *options]) == 2
    assert message in capsys.readouterr().err


def test_info_draws_a_picture(plain_folder, tmp_path, capsys):
    out = tmp_path / "field.png"
    assert cli.main(["info", plain_folder, "--size", "3x7", "--picture", str(out)]) == 0
    with Image.open(out) as picture:
        assert min(picture.size) > 100
    assert cli.main(["info", plain_folder, "--picture", str(tmp_path / "field.txt")]) == 2
    assert "--picture must end in .png" in capsys.readouterr().err


def test_eval_quantizes_and_limits(plain_folder, tmp_path, capsys):
    path = tmp_path / "grey.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (5, 5, 6)))
    argv = ["eval", plain_folder, "--data", str(path), "--split", "train", "--limit", "2", "--threads", "1"]
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    assert "2 of 1x5x6, 4 levels" in text
    assert "the first 2" in text


def test_info_shows_the_model_and_its_plan(run_folder, capsys):
    assert cli.main(["info", run_folder]) == 0
    text = capsys.readouterr().out
    assert (
        "PixelCNN(channels=1, levels=4, hidden=6, layers=1, kernel=3, classes=10, head='categorical')" in text
    )
    assert "parameters       " in text
    assert "2 up, 2 left, 2 right" in text
    assert "multiply-adds" in text
    assert "in all" in text


# --- demo and doctor ----------------------------------------------------------------------------------------


def test_demo_draws_a_titled_grid_and_says_how_fast(monkeypatch, tmp_path, capsys):
    model = tiny()
    monkeypatch.setattr(demo.models, "load", lambda folder: model)
    path = tmp_path / "demo.png"
    assert cli.main(["demo", "--out", str(path), "--threads", "2"]) == 0
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert picture.height == 8 * (5 * 3 + 2) + 2
        assert picture.width > 8 * (6 * 3 + 2) + 2  # the titles
    out, err = capsys.readouterr()
    assert re.search(r"64 images of 5x6 in [\d.]+ s, [\d.]+ images/s: \d+ steps", out)
    assert f"picture: {path}" in out
    assert re.search(
        r"plain PyTorch loop, .* would take [\d.]+ m?s .* \(extrapolated from the fastest of 3 passes", out
    )
    assert "64/64" in err


def test_doctor_checks_the_runtimes(monkeypatch, capsys):
    monkeypatch.setattr(doctor._cpu, "isas", lambda: ["scalar"])
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert f"torch      {torch.__version__}" in text
    assert f"{8 if doctor.no_cuda() else 10} ways to draw the same images gave the same bits" in text
    assert re.search(r"cuda       (there is no GPU|pixelfast was built without CUDA|NVIDIA)", text)


def test_doctor_reports_a_difference(monkeypatch):
    class Fake:
        def sample(self, n, **options):
            return Sample(torch.randint(0, 256, (n, 64)), torch.zeros(n))

    monkeypatch.setattr(doctor, "compile_model", lambda *args, **kwargs: Fake())
    with pytest.raises(
        RuntimeError, match=r"these gave different bits: reference, raster order, 1 threads; "
    ):
        doctor.check(["scalar"])
