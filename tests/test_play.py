"""Tests of docs/play.html in a real browser: its numbers are correct, its controls have labels,
and it loads nothing."""
import html
import json
import math
import random
import re
import shutil
import subprocess

import pytest
import torch

import simko
from tests.workers import ROOT

PAGE = ROOT / "docs" / "play.html"
BROWSER = (
    shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome"))
needs_chromium = pytest.mark.skipif(
    not BROWSER,
    reason="no Chromium is installed (Debian: apt-get install chromium)")

# Sets the page's inputs as a person would, and reads the numbers that the page then shows.
DRIVER = """
<pre id="found"></pre>
<script>
const all = selector => [...document.querySelectorAll(selector)];
const numbers = selector => all(selector + " data").map(shown => Number(shown.value));
const texts = selector => all(selector + " data").map(shown => shown.textContent);
const found = {rows: [], unlabelled: 0, presets: []};
for (const s of SETTINGS_OF_THE_TEST) {
  for (const [name, value] of Object.entries(s)) {
    const choices = all(`input[name=${name}]`);
    if (name === "logits") {
      all(".logit").forEach((input, i) => { input.value = value[i]; });
    } else if (choices.length) {
      choices.find(input => input.value === value.toString()).checked = true;
    } else {
      document.getElementById(name).value = value;
    }
  }
  document.getElementById("alpha").dispatchEvent(new Event("input", {bubbles: true}));
  found.rows.push({
    before: numbers(".before"),
    push_grpo: numbers(".push-grpo"),
    push_simko: numbers(".push-simko"),
    after_grpo: numbers(".after-grpo"),
    after_simko: numbers(".after-simko"),
    ranks: numbers("#ranks"),
    shown: texts(".before"),
    state: document.getElementById("state").textContent,
  });
}
document.getElementById("reset").click();
for (const option of document.getElementById("preset").options) {
  option.selected = true;
  document.getElementById("preset").dispatchEvent(new Event("change"));
  found.presets.push([option.value, numbers(".before")]);
}
const labelled = input => input.labels.length || input.ariaLabel;
found.unlabelled = all("input, select").filter(input => !labelled(input)).length;
document.getElementById("found").textContent = JSON.stringify(found);
</script>
"""


def random_settings(count):
    """Yields random settings within the range of the page's sliders. Among them the gate and the
    clip both act and do not act, and the sampled token has any rank."""
    rng = random.Random(0)
    for _ in range(count):
        yield {
            "logits": [round(rng.uniform(-4, 3), 2) for _ in range(8)],
            "sampled": rng.randrange(8),
            "sign": rng.choice([1, -1]),
            "old": rng.choice(["renewed", "kept"]),
            "gamma": round(rng.uniform(0.5, 1.5), 2),
            "alpha": round(0.005 * rng.randrange(101), 3),
            "K": rng.randint(1, 8),
            "lambda": round(1 + 0.05 * rng.randrange(41), 2),
            "tau": rng.choice([0, 0, 1.2]),
            "steps": rng.randint(1, 30),
            "size": round(rng.uniform(0.1, 2), 1),
        }


def fixed_settings():
    """Yields settings in which each part of the objective is known to have an effect."""
    plain = {
        "logits": [2, 1, 0.5, 0, -0.5, -1, -1.5, -2],
        "sampled": 0,
        "sign": 1,
        "old": "renewed",
        "gamma": 1,
        "alpha": 0.3,
        "K": 3,
        "lambda": 1.5,
        "tau": 0,
        "steps": 5,
        "size": 1,
    }
    yield plain
    yield plain | {"sampled": 5}            # the sampled token is not in the top K
    yield plain | {"sign": -1}              # lambda acts
    yield plain | {"sign": -1, "sampled": 1}
    yield plain | {"tau": 2.08}             # the gate is closed
    yield plain | {"old": "kept", "gamma": 1.3}              # the clip stops both
    yield plain | {"old": "kept", "gamma": 0.6, "sign": -1}  # the clip stops GRPO alone
    yield plain | {"old": "kept", "steps": 40}               # the clip stops the steps


SETTINGS = [*fixed_settings(), *random_settings(20)]


def push(z, s, log_old, alpha, lambda_top1):
    """Returns the direction in which training moves the logits: minus the gradient of its loss."""
    z = z.clone().requires_grad_()
    log_pi = z.log_softmax(-1)
    advantage = torch.tensor(float(s["sign"]))
    logp = log_pi[s["sampled"]]
    entropy = -(log_pi.exp() * log_pi).sum().detach()
    gate = entropy > s["tau"]
    topk = log_pi.topk(s["K"]).values
    is_rank_1 = logp >= topk[0]
    ratio = simko.simko_ratio(
        logp, log_old, topk, is_rank_1, advantage, gate, alpha, lambda_top1)
    simko.clipped_loss(ratio, advantage, 0.2, 0.2).backward()
    return -z.grad


def expected(s):
    """Returns the numbers that the page should show for the settings."""
    def best(z):
        """Returns the log-probs of the five most probable tokens."""
        return z.log_softmax(-1).topk(5).values

    start = torch.tensor(s["logits"], dtype=torch.float64)
    kept = s["old"] == "kept"
    first_old = start.log_softmax(-1)[s["sampled"]]
    if kept:
        first_old = first_old - math.log(s["gamma"])
    found = {"before": start.softmax(-1)}
    ranks = [best(start)]
    for name, settings in (("grpo", (0, 1)), ("simko", (s["alpha"], s["lambda"]))):
        z = start
        found[f"push_{name}"] = push(z, s, first_old, *settings)
        for _ in range(s["steps"]):
            log_old = first_old if kept else z.log_softmax(-1)[s["sampled"]]
            z = z + s["size"] * push(z, s, log_old, *settings)
        found[f"after_{name}"] = z.softmax(-1)
        ranks.append(best(z))
    found["ranks"] = torch.stack(ranks, 1).flatten()
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Returns the numbers that the page shows for SETTINGS, from one start of the browser."""
    folder = tmp_path_factory.mktemp("play")
    driver = DRIVER.replace("SETTINGS_OF_THE_TEST", json.dumps(SETTINGS))
    page = PAGE.read_text(encoding="utf-8").replace("</body>", driver + "</body>")
    copy = folder / "play.html"
    copy.write_text(page, encoding="utf-8")
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--dump-dom",
        copy.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    text = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    assert text and text[1], f"the page did not run: {done.stderr[-2000:]}"
    return json.loads(html.unescape(text[1]))


@needs_chromium
def test_the_page_shows_what_autograd_finds(found):
    assert len(found["rows"]) == len(SETTINGS) >= 20
    for s, row in zip(SETTINGS, found["rows"]):
        for name, want in expected(s).items():
            assert row[name] == pytest.approx(want.tolist(), rel=0, abs=1e-6), (name, s)


@needs_chromium
def test_the_page_says_whether_the_gate_and_the_clip_act(found):
    states = [row["state"] for row in found["rows"]]
    for s, row, state in zip(SETTINGS, found["rows"], states):
        entropy = -sum(p * math.log(p) for p in row["before"])
        assert ("gate is open" in state) == (entropy > s["tau"])
        for name, method in (("GRPO", "grpo"), ("SimKO", "simko")):
            stopped = f"clip stops {name}" in state or "clip stops both" in state
            assert stopped == (not any(row[f"push_{method}"]))
    for text in ("open", "closed", "stops both", "stops GRPO"):
        assert any(text in state for state in states), f"no setting shows: {text}"


@needs_chromium
def test_what_is_written_is_what_was_computed(found):
    for row in found["rows"]:
        assert row["shown"] == [f"{value:.4f}" for value in row["before"]]


@needs_chromium
def test_every_control_has_a_label_and_every_preset_its_shape(found):
    assert found["unlabelled"] == 0
    presets = dict(found["presets"])
    assert len(presets) == 4
    token = json.loads((ROOT / "docs" / "walkthrough.json").read_text())["first_token_log_pi"]
    top = sorted((math.exp(value) for value in token), reverse=True)[:8]
    assert presets["the token of walkthrough.md"] == pytest.approx(top, rel=0.01, abs=1e-4)
    assert presets["sharp"][0] > 0.9
    assert max(presets["flat"]) < 0.2
    for p in presets["two-way fork"][:2]:
        assert 0.4 < p < 0.6


def test_the_page_needs_no_other_file_and_no_network():
    text = PAGE.read_text(encoding="utf-8")
    loads = r"https?:|\bsrc=|<link|@import|url\(|fetch\(|XMLHttpRequest|import\("
    assert not re.search(loads, text)
