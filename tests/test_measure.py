"""The scripts that measure: they run, and what they print is what the runs say."""

import os
import re
import subprocess
import sys

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from benchsuite.cli import main
from benchsuite.measure import activations, cacl_lite, precision, records, serving, steps


def convolutions(emulate, autocast=True):
    source = torch.Generator().manual_seed(0)
    x, *weights = (torch.randn(shape, generator=source) for shape in ((4, 3, 12, 12), (16, 3, 3, 3), (8, 16, 3, 3), (16,)))
    first, second, bias = (w.requires_grad_() for w in weights)
    with precision.emulated(emulate), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = F.conv2d(F.relu(F.conv2d(x, first, bias)), second)
    out.float().square().mean().backward()
    return [out.detach(), first.grad, second.grad, bias.grad]


def test_emulated_bf16_convolutions_are_native_ones_up_to_the_order_of_their_sums():
    pairs = list(zip(convolutions(True), convolutions(False), convolutions(False, autocast=False), strict=True))
    assert pairs[0][0].dtype == pairs[0][1].dtype == torch.bfloat16
    for emulated, native, fp32 in pairs:
        assert (emulated - native).abs().max() <= 2**-7 * fp32.abs().max()  # one unit in the last place of the largest value
        assert (emulated - native).abs().mean() < 0.5 * (fp32 - native).abs().mean()
    original = F.conv2d
    with precision.emulated():
        assert F.conv2d is not original
    assert F.conv2d is original


@pytest.mark.parametrize("method", ["cacl", "cacl-cp", "cacl-tucker"])
def test_the_cacl_table_prunes_more_at_a_higher_energy_drop(method, monkeypatch, capsys):
    words = f"--method {method} --protocol split-digits --tier smoke --tasks 2 --sparsity-weights 1 --orthogonality-weights 1"
    monkeypatch.setattr(sys, "argv", ["cacl_lite", *words.split(), "--energy-drops", "1e-5", "0.3", "--energy-drop", "0.3"])
    cacl_lite.main()
    out = capsys.readouterr().out
    sizes = [float(size) for size in re.findall(r"([\d.]+) of individual", out)]
    assert len(sizes) == 4  # two rows of the first task's table, and two tasks
    assert sizes[0] > sizes[1] == pytest.approx(sizes[2])
    assert re.search(r"task 2: .* above zero", out)


def test_the_precision_table_pairs_the_seeds(monkeypatch, capsys, tmp_path):
    words = f"--protocol split-digits --tier smoke --tasks 2 --seeds 1 2 --emulate --results {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["precision", *words.split()])
    precision.main()
    out = capsys.readouterr().out
    assert len(re.findall(r"bf16: ACC", out)) == len(re.findall(r"fp32: ACC", out)) == 2
    assert "n = 2" in out
    assert (tmp_path / "emulated").is_dir()


@pytest.mark.parametrize("base", ["finetune", "cacl"])
def test_the_table_of_steps_has_every_method_early_and_late(base, monkeypatch, capsys):
    words = "--protocol split-digits --tasks 2 3 --rounds 1 --steps 1 --set batch_size=16"
    monkeypatch.setattr(sys, "argv", ["steps", *words.split(), "--relative-to", base])
    steps.main()
    rows = {line[:27].strip(): line[27:].split() for line in capsys.readouterr().out.splitlines()[2:]}
    assert set(rows) >= {"finetune", "ewc", "packnet", "hat", "cacl", "individual-svd", "individual-svd recovery"}
    assert all(float(value) > 0 for row in rows.values() for value in row)
    assert rows[base][:2] == ["1.000", "1.000"]


def test_the_table_of_served_models_has_every_form_beside_the_dense_network(monkeypatch, capsys, tmp_path):
    words = ["--protocol", "split-digits", "--tier", "smoke", "--set", "tasks=2", "--set", "epochs=1", "--seed", "1"]
    files = [tmp_path / f"{name}.safetensors" for name in ("finetune", "cacl-cp")]
    for file in files:
        assert main(["run", *words, "--method", file.stem, "--results", str(tmp_path)]) == 0
        assert main(["export", *map(str, tmp_path.rglob(f"{file.stem}/*/record.json")), "--output", str(file)]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["serving", *map(str, files), "--batches", "1", "3", "--rounds", "1", "--steps", "1"])
    serving.main()
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[:-3] for row in rows] == [["dense"], ["finetune", "served"], *(["cacl-cp", form] for form in serving.FORMS)]
    assert rows[0][-2:] == ["1.000", "1.000"]
    macs = {tuple(row[:-3]): float(row[-3]) for row in rows}
    assert macs["cacl-cp", "composed"] == macs["dense",] == macs["finetune", "served"]
    assert macs["cacl-cp", "served"] <= min(macs["cacl-cp", "composed"], macs["cacl-cp", "chain"])
    assert macs["cacl-cp", "chain"] != macs["cacl-cp", "composed"]


def test_the_table_of_activations_has_every_variant_beside_the_unmodified_step(monkeypatch, capsys, tmp_path):
    words = f"--protocol split-digits --epochs 1 --batches 2 --rounds 1 --steps 1 --output {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["activations", *words.split()])
    activations.main()
    frame = pd.read_csv(tmp_path / "activations.csv").set_index("variant")
    assert list(frame.index) == list(activations.VARIANTS)
    plain = frame.loc["unmodified"]
    assert (plain["held_ratio"], plain["error"], plain["time"]) == (1, 0, 1)
    exact = frame[frame.index.str.startswith("exact") | frame.index.isin(["hosvd 1", "svd 1"])]
    assert (exact["error"] < 1e-6).all()
    assert (exact["held"] < plain["held"]).all()
    hosvd = frame.loc[[f"hosvd {e:g}" for e in activations.EPSILONS]]
    assert hosvd["formula"].is_monotonic_increasing
    assert (hosvd["held"] >= hosvd["formula"]).all()
    assert 0 < hosvd["error"]["hosvd 0.95"] < hosvd["error"]["hosvd 0.5"] < 1
    assert frame["held"]["hosvd 0.8, plain ReLU"] > 2 * frame["held"]["hosvd 0.8"]
    assert frame["error"]["hosvd 0.8, factors by SVD"] == pytest.approx(frame["error"]["hosvd 0.8"], rel=1e-3)
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".csv", ".pdf", ".png"}
    assert "| hosvd 0.8 |" in (tmp_path / "activations.md").read_text()


def test_what_the_user_can_mend_is_one_line(tmp_path):
    command = [sys.executable, "-m", "benchsuite.measure.steps", "--data-dir", str(tmp_path)]
    environment = {**os.environ, "BENCHSUITE_CACHE": str(tmp_path)}
    for words, expected in (([], "cifar-100-python"), (["--set", "batch_size"], "--set takes name=value")):
        done = subprocess.run([*command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("benchsuite: error: ")
        assert expected in done.stderr


def test_records_are_made_up_and_ranked(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["records", "--records", "60"])
    records.main()
    said = capsys.readouterr().out
    assert said.startswith("60 records, 2 rows")
    assert re.search(r"both +[0-9.]+ s \([0-9.]+ s of a core\), peak [0-9]+ MB", said)
