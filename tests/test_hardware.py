"""Tests of which recipe fits which GPUs, of its settings there, and of the
messages when something is missing.

    python -m pytest tests/test_hardware.py
"""
import dataclasses
import os
import re
import sys
import types

import huggingface_hub
import pytest
import torch

from runtime import hardware
from simko import Config
from tests.workers import ROOT

RECIPES = {recipe.name: recipe for recipe in hardware.RECIPES}
SMALL, NEXT, MIDDLE, PAPER = (
    "qwen2.5-0.5b", "qwen2.5-1.5b", "llama3.2-3b", "qwen2.5-math-7b")
NEXT_LORA, MIDDLE_LORA, PAPER_LORA = f"{NEXT}-lora", f"{MIDDLE}-lora", f"{PAPER}-lora"
MEMORY = {7.6: {1: 148.8, 2: 88.0, 4: 57.6, 8: 42.4},
          3.2: {1: 69.6, 2: 44.0, 4: 31.2, 8: 24.8},
          1.5: {1: 39.0, 2: 27.0, 4: 21.0, 8: 18.0},
          0.5: {1: 21.0, 2: 17.0, 4: 15.0, 8: 14.0}}  # GB, computed by hand
LORA_MEMORY = {7.6: {1: 46.2, 2: 36.7, 4: 31.95, 8: 29.575},
               3.2: {1: 26.4, 2: 22.4, 4: 20.4, 8: 19.4},
               1.5: {1: 18.75, 2: 16.875, 4: 15.9375, 8: 15.46875},
               0.5: {1: 14.25, 2: 13.625, 4: 13.3125, 8: 13.15625}}
DEFAULT = {24: {1: NEXT_LORA, 2: MIDDLE_LORA, 4: MIDDLE_LORA, 8: MIDDLE_LORA},
           40: {1: MIDDLE_LORA, 2: PAPER_LORA, 4: PAPER_LORA, 8: PAPER_LORA},
           48: {1: PAPER_LORA, 2: PAPER_LORA, 4: PAPER_LORA, 8: PAPER},
           80: {1: PAPER_LORA, 2: PAPER_LORA, 4: PAPER, 8: PAPER},
           141: {1: PAPER_LORA, 2: PAPER, 4: PAPER, 8: PAPER}}
BOXES = [(card_gb, cards) for card_gb in DEFAULT for cards in (1, 2, 4, 8)]


def expected_memory(recipe):
    """Returns {cards: GB} of a recipe, computed by hand."""
    table = LORA_MEMORY if recipe.name.endswith("-lora") else MEMORY
    return table[recipe.parameters]


@pytest.mark.parametrize("recipe", hardware.RECIPES, ids=lambda r: r.name)
def test_memory_is_the_formula_of_the_docs(recipe):
    for cards, expected in expected_memory(recipe).items():
        assert hardware.memory_gb(recipe, cards) == pytest.approx(expected)


def test_each_recipe_has_a_row_with_and_without_lora():
    full = [name for name in RECIPES if not name.endswith("-lora")]
    assert [*RECIPES] == full + [f"{name}-lora" for name in full]


@pytest.mark.parametrize("card_gb, cards", BOXES)
def test_the_default_is_the_largest_recipe_that_fits(card_gb, cards):
    box = [card_gb] * cards
    chosen, reason = hardware.choose(box, login=True)
    assert chosen.name == DEFAULT[card_gb][cards]
    assert chosen.name in reason and hardware.describe(box) in reason
    full = any(MEMORY[size][cards] <= card_gb for size in MEMORY)
    only_adapters = chosen.name.endswith("-lora")
    assert ("to train all weights" in reason) == (full and only_adapters)
    for recipe in hardware.RECIPES:
        fits = expected_memory(recipe)[cards] <= card_gb
        assert hardware.fits(recipe, box) == fits
        assert recipe.parameters <= chosen.parameters or not fits
        if fits and recipe.parameters == chosen.parameters:  # LoRA only if it must be
            assert recipe.name.endswith("-lora") or not chosen.name.endswith("-lora")


@pytest.mark.parametrize("card_gb, cards", BOXES)
def test_the_default_needs_no_login_where_there_is_none(card_gb, cards):
    chosen, reason = hardware.choose([card_gb] * cards, login=False)
    if DEFAULT[card_gb][cards] == MIDDLE_LORA:
        assert chosen.name in (NEXT, NEXT_LORA)
        assert f"{MIDDLE_LORA} would fit after `hf auth login`" in reason
    else:
        assert chosen.name == DEFAULT[card_gb][cards]
        assert "login" not in reason and MIDDLE not in reason


@pytest.mark.parametrize("card_gb, cards", BOXES)
def test_engine_and_trainer_fit_beside_each_other_in_the_rollout(card_gb,
                                                                 cards):
    for recipe in hardware.RECIPES:
        size = recipe.parameters
        if not hardware.fits(recipe, [card_gb] * cards):
            continue
        share = hardware.engine_memory(recipe, cards, card_gb)
        trainer = (2.5 if recipe.name.endswith("-lora") else 12) * size / cards
        assert share <= Config.gpu_memory_utilization
        assert share * card_gb + trainer <= card_gb - 4
        # The engine has room for its weights and at least 5 GB of cache.
        assert share * card_gb >= 2 * size + 5


def test_the_formula_is_above_what_one_card_showed():
    """On an H100, updates of 16,384 tokens needed 3.05 and 4.61 GiB in addition
    to weights, gradients and optimizer."""
    for name, size, gib in ((SMALL, 0.494, 3.05), (NEXT, 1.54, 4.61)):
        shown = 16 * size + gib * 2**30 / 1e9
        recipe = dataclasses.replace(RECIPES[name], parameters=size)
        assert shown < hardware.memory_gb(recipe, 1) < shown + 12


def test_hours_scale_with_the_cards():
    for recipe in hardware.RECIPES:
        one = hardware.hours(recipe, 1)
        for cards in (2, 4, 8):
            assert hardware.hours(recipe, cards) == pytest.approx(one / cards)


def test_the_docs_show_the_formula_s_figures():
    page = (ROOT / "docs" / "cost.md").read_text()
    for recipe in hardware.RECIPES:
        row = re.search(rf"^\| `{recipe.name}` \|.*$", page, re.M).group()
        memory = hardware.memory_gb(recipe, recipe.cards)
        hours = hardware.hours(recipe, recipe.cards)
        seconds = 3600 * hours / recipe.steps
        assert row.endswith(f"| {memory:.0f} on {recipe.cards} "
                            f"| {hours:.1f} ({seconds:.0f}) |")


def test_the_list_has_every_recipe(capsys):
    hardware.main(["list"])
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[1:-1]]
    assert names == ["laptop", *RECIPES]
    assert "42 on 8" in lines[2] and "11.8 hours" in lines[2]
    adapted = lines[2 + [*RECIPES].index(PAPER_LORA)]
    assert "46 on 1" in adapted and "94.8 hours" in adapted
    assert "LoRA is our addition, not the paper's" in lines[-1]


def test_without_a_card_or_without_room_it_is_the_laptop_s():
    chosen, reason = hardware.choose([], login=True)
    assert chosen is None and "PyTorch sees no GPU" in reason
    chosen, reason = hardware.choose([8.6], login=True)
    assert chosen is None
    assert "no other fits 1 GPU of 9 GB: qwen2.5-0.5b-lora needs about 14 GB" in reason
    for old, is_laptop in (["Tesla V100"] * 2, True), (["Tesla V100"], False):
        chosen, reason = hardware.choose([84.9] * 2, login=True, old=old)
        assert (chosen is None) == is_laptop == ("Tesla V100 does not" in reason)


def test_a_token_of_the_hub_is_a_login(monkeypatch, capsys):
    monkeypatch.setattr(hardware, "pytorch_cards", lambda: [40.0])
    for token, name in (("hf_abc", MIDDLE_LORA), (None, NEXT)):
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
        hardware.main(["plan", "--force"])
        assert capsys.readouterr().out.startswith(f"{name} 1 ")


def test_the_size_of_a_card_is_in_gb(monkeypatch):
    card = types.SimpleNamespace(total_memory=85.5e9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    assert hardware.pytorch_cards() == [85.5] * 2


def test_cards_from_compute_capability_8_0_on_compute_in_bfloat16(monkeypatch):
    capabilities = {
        "V100": (7, 0), "T4": (7, 5), "A100": (8, 0), "RTX 3090": (8, 6), "H100": (9, 0)}
    names = [*capabilities]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda card: names[card])
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda card: capabilities[names[card]])
    assert hardware.too_old() == ["V100", "T4"]


def test_the_smallest_of_unequal_cards_decides(capsys):
    box = [84.9, 84.9, 25.3, 84.9]
    assert hardware.choose(box, login=True)[0].name == MIDDLE_LORA
    assert hardware.describe(box) == (
        "4 GPUs of 25 GB (the smallest decides; the largest has 85 GB, and "
        "CUDA_VISIBLE_DEVICES can hide the others)")
    hardware.print_plan(RECIPES[PAPER], "Why.", [141.0, 92.0], None, force=True)
    assert capsys.readouterr().out.startswith(f"{PAPER} 2 0.46\n")


@pytest.mark.parametrize("name, box, words", [
    (PAPER, [25.3], ["about 149 GB on one GPU (16 x 7.6 / 1 + 2 x 7.6 + 12)",
                     "1 GPU of 25 GB", f"Choose {NEXT_LORA}, which fits"]),
    (PAPER, [84.9], [f"Choose {PAPER_LORA}, which fits"]),
    ("logic", [42.3] * 4, ["about 58 GB on each of 4 GPUs (16 x 7.6 / 4",
                           "4 GPUs of 42 GB", "Choose logic-lora"]),
    (SMALL, [], ["no GPU that can be used", "Choose laptop, a tiny model", "docs/forking.md"])])
def test_a_recipe_that_cannot_fit_is_refused(name, box, words, capsys):
    with pytest.raises(SystemExit) as stop:
        hardware.check_fit(RECIPES[name], box)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    for part in [f"train.sh: error: {name} needs", *words, "--force"]:
        assert part in error


def test_what_a_plan_says(monkeypatch, capsys):
    """The first line is for train.sh, the second for the user."""
    pages = {"SC_PHYS_PAGES": 3 * 10**7, "SC_PAGE_SIZE": 5000}
    monkeypatch.setattr(os, "sysconf", pages.get)
    box = [84.9] * 8
    hardware.print_plan(RECIPES[PAPER], "Why.", box, None, force=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [PAPER, "8"]
    for part in ("Why. It is estimated to take", "42 GB on each of 8 GPUs", "11.8 hours",
                 "30 GB of main memory for the export (this machine has 150)"):
        assert part in second
    box = [84.9]
    hardware.print_plan(RECIPES[MIDDLE], "Why.", box, None, force=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [MIDDLE, "1", "0.5"]
    hardware.print_plan(RECIPES[PAPER_LORA], "Why.", box, None, force=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [PAPER_LORA, "1"]
    assert "46 GB on one GPU (2.5 x 7.6 / 1 + 2 x 7.6 + 12)" in second
    assert "15 GB of main memory for the export" in second
    # Nothing is left for the engine where the recipe does not fit.
    hardware.print_plan(RECIPES[PAPER], "Why.", [25.3], None, force=True)
    assert capsys.readouterr().out.splitlines()[0].split() == [PAPER, "1"]
    hardware.print_plan(RECIPES[SMALL], "Why.", [], None, force=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [SMALL, "0"]
    assert second == "Why. PyTorch sees no GPU here, so nothing is predicted."


def test_nothing_is_predicted_for_a_model_of_another_size(monkeypatch, capsys):
    box = [25.3]
    monkeypatch.setattr(hardware, "nvidia_smi", lambda: (box, "580.159"))
    hardware.main(["check", "--recipe", PAPER, "--model", "my/model"])
    hardware.print_plan(RECIPES[PAPER], "Why.", box, "my/model", force=True)
    first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [PAPER, "1"]
    assert second == ("Why. The size of my/model is not known, so nothing is "
                      "predicted.")


def program(folder, name, text):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("output, cards", [
    ("echo '81559, 580.159'; echo '81559, 580.159'", [85.52] * 2),
    ("echo '[N/A], 580.159'", [float("inf")]),
    ("echo 'NVIDIA-SMI has failed'; exit 9", [])])
def test_nvidia_smi(output, cards, tmp_path, monkeypatch):
    program(tmp_path, "nvidia-smi", output)
    monkeypatch.setenv("PATH", str(tmp_path))
    found, driver = hardware.nvidia_smi()
    assert found == pytest.approx(cards, rel=1e-3)
    assert driver == ("580.159" if cards else None)


@pytest.mark.parametrize("driver, noted", [
    ("550.54.15", True), ("579.1", True), ("580.65.06", False), ("[N/A]", False), (None, False)])
def test_an_old_driver_is_noted_before_anything_is_installed(driver, noted, monkeypatch, capsys):
    monkeypatch.setattr(hardware, "nvidia_smi", lambda: ([], driver))
    hardware.main(["check", "--recipe", "laptop"])
    printed = capsys.readouterr().out
    assert printed.startswith(f"note: the driver is {driver}.") == noted
    assert printed.count("\n") == noted


def test_a_recipe_that_cannot_fit_is_refused_before_anything_is_installed(monkeypatch, capsys):
    monkeypatch.setattr(hardware, "nvidia_smi", lambda: ([84.9] * 8, "580.65.06"))
    hardware.main(["check", "--recipe", PAPER])
    monkeypatch.setattr(hardware, "nvidia_smi", lambda: ([25.3], "580.65.06"))
    with pytest.raises(SystemExit):
        hardware.main(["check", "--recipe", PAPER])
    assert "this machine has 1 GPU of 25 GB" in capsys.readouterr().err
    hardware.main(["check", "--recipe", PAPER, "--force"])


def test_no_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.nvidia_smi() == ([], None)


@pytest.fixture
def build_tools(tmp_path, monkeypatch):
    """Simulates a machine with neither a compiler nor Python.h. Returns the
    folders (programs, headers)."""
    programs, headers = tmp_path / "programs", tmp_path / "headers"
    programs.mkdir()
    headers.mkdir()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.setattr(hardware.sysconfig, "get_paths",
                        lambda scheme: {"include": str(headers)})
    return programs, headers


def test_packages_that_vllm_needs_on_cpus(build_tools, monkeypatch):
    programs, headers = build_tools
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"
    monkeypatch.delenv("CXX", raising=False)
    found = set()

    def load(name):
        if name not in found:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(hardware.ctypes, "CDLL", load)
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    assert hardware.missing_for_vllm_on_cpus() == ["g++", python, "libnuma1"]
    program(programs, "g++", "")
    (headers / "Python.h").touch()
    assert hardware.missing_for_vllm_on_cpus() == ["libnuma1"]
    monkeypatch.setattr(hardware.sys, "platform", "darwin")
    assert hardware.missing_for_vllm_on_cpus() == ["g++"]
    program(programs, "clang++", "")
    assert hardware.missing_for_vllm_on_cpus() == []
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    found.add("libnuma.so.1")
    assert hardware.missing_for_vllm_on_cpus() == []
    monkeypatch.setenv("CXX", str(programs / "c++"))  # which does not exist
    assert hardware.missing_for_vllm_on_cpus() == ["g++"]


def test_packages_that_triton_needs(build_tools, monkeypatch, capsys):
    programs, headers = build_tools
    python = f"python{sys.version_info[0]}.{sys.version_info[1]}-dev"
    assert hardware.missing_for_triton() == ["gcc", python]
    with pytest.raises(SystemExit):
        hardware.check_compiler()
    error = capsys.readouterr().err
    assert f"apt install gcc {python}" in error and error.count("\n") == 1
    program(programs, "clang", "")
    assert hardware.missing_for_triton() == [python]
    (headers / "Python.h").touch()
    assert hardware.missing_for_triton() == []
    hardware.check_compiler()
    # Debian's scheme names a folder in /usr/local, where Triton does not look.
    monkeypatch.setattr(hardware.sysconfig, "get_default_scheme", lambda: "posix_local")
    monkeypatch.setattr(hardware.sysconfig, "get_paths", {
        "posix_prefix": {"include": str(headers)}, "posix_local": {"include": "/nowhere"}}.get)
    assert hardware.missing_for_triton() == []
    program(programs, "gcc", "")
    monkeypatch.setenv("CC", str(programs / "cc"))  # which does not exist
    assert hardware.missing_for_triton() == ["gcc"]
    program(programs, "cc", "")
    assert hardware.missing_for_triton() == []


def pretended_torch(cuda):
    return types.SimpleNamespace(
        __version__="2.13.0", version=types.SimpleNamespace(cuda=cuda))


@pytest.mark.parametrize("cuda, visible, words", [
    ("13.0", None, ["2 GPUs but PyTorch sees none:", "driver is 470.57",
                    "PyTorch 2.13.0 was built for CUDA 13.0"]),
    ("13.0", "1", ["CUDA_VISIBLE_DEVICES is '1'", "470.57"]),
    ("13.0", "GPU-1", ["CUDA_VISIBLE_DEVICES is 'GPU-1'", "470.57"]),
    ("13.0", "0,2", ["is '0,2'): unset the variable, or use numbers below 2"]),
    (None, None, ["was built only for CPUs", "Delete .venv"])])
def test_cards_that_only_nvidia_smi_sees(cuda, visible, words, tmp_path,
                                         monkeypatch, capsys):
    program(tmp_path, "nvidia-smi", "echo '81559, 470.57'; "
                                    "echo '81559, 470.57'")
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.defpath)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(SystemExit) as stop:
        hardware.check_driver(pretended_torch(cuda))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    for part in words:
        assert part in error


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_cards_may_be_hidden(hidden, tmp_path, monkeypatch):
    program(tmp_path, "nvidia-smi", "echo '81559, 470.57'")
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.defpath)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    hardware.check_driver(pretended_torch("13.0"))
