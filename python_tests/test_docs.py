"""The Python blocks of the documentation run, its commands have valid options, and its links lead somewhere.

Every training takes two steps here, every recipe one.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.utils import save_image

import exml_fast as xf
from exml_fast.inversion import recipes
from exml_fast.models import create
from exml_fast.training import Loop, Training
from exml_fast.transfer import LatencyTable

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))),
]
# python_tests/test_examples.py runs these blocks with networks and images of its own.
ELSEWHERE = ("BNStatistics", "FrozenTeacher")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def without_avalanche(page: str) -> list[str]:
    """The Python blocks of a page but those that test_compat_avalanche.py runs."""
    return [code for code in blocks(page, "python") if "benchmark" not in code]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """All recipes and trainings are short, and pretrained networks are small and random."""
    timm = pytest.importorskip("timm")
    monkeypatch.setattr(
        recipes, "_RECIPES", {name: found.replace(steps=1, coarse_steps=()) for name, found in recipes._RECIPES.items()}
    )
    start, create_model = Loop.__init__, timm.create_model

    def start_short(self: Loop[Any], model: Any, loss: Any, config: Training, **options: Any) -> None:
        start(self, model, loss, config.replace(steps=2), **options)

    monkeypatch.setattr(Loop, "__init__", start_short)
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False: create_model("resnet10t", **SMALL))


SMALL: dict[str, Any] = {"pretrained": False, "pretrained_cfg_overlay": {"input_size": (3, 32, 32)}}


def shortened(code: str) -> str:
    code = re.sub(r"per_class=\d+", "per_class=1", code)
    code = re.sub(r"(?<!\w)steps=[\d_]+", "steps=2", code)
    code = re.sub(r"per_round=\d+", "per_round=2", code)
    code = re.sub(r"generate_every=\d+", "generate_every=1", code)
    code = re.sub(r"batch_size=\d+", "batch_size=2", code)
    return code


def run(code: str, names: dict[str, Any]) -> dict[str, Any]:
    names = {"xf": xf, **names}
    exec(shortened(code), names)
    return names


def networks() -> Iterator[torch.nn.Module]:
    import timm

    while True:
        yield timm.create_model("any")


def test_a_loss_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/training.md", "python")
    teacher, student = create("lenet5"), create("lenet5_half")
    found = run(code, {"teacher": teacher.eval(), "student": student})
    result = found["result"]
    assert set(result.history) == {"step", "loss", "kl", "overconfidence"} and result.model is not student


@pytest.mark.parametrize("page", ["docs/tour.md", "docs/deep_inversion.md"])
def test_images_and_students(page: str, short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    import timm

    made = networks()
    teacher, student, judge = next(made), next(made), next(made)
    (tmp_path / "photos").mkdir()
    for number in range(4):
        save_image(torch.rand(3, 40, 40), tmp_path / "photos" / f"{number}.png")
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=10
    )
    vit.pretrained_cfg = teacher.pretrained_cfg
    spec = xf.InputSpec.of(teacher)
    result = xf.invert(teacher, classes=[1, 2], per_class=1, steps=1)
    names = {
        "teacher": teacher, "student": student, "judge": judge, "images": result, "result": result, "spec": spec,
        "model": teacher, "vit": vit, "photos": spec.prepare(torch.rand(8, 3, 32, 32)),
    }  # fmt: skip
    skipped = (*ELSEWHERE, "zskd", "ExpertStream", "random-images")
    ran = [run(code, names) for code in blocks(page, "python") if not any(word in code for word in skipped)]
    assert len(ran) >= 2


@pytest.mark.parametrize("page", ["docs/tour.md", "docs/transfer.md"])
def test_impressions(page: str, short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("art", reason="needs the extra attacks")
    monkeypatch.chdir(tmp_path)
    for name in ("china", "flower"):
        save_image(torch.rand(3, 40, 40), tmp_path / f"{name}.jpg")
    code, *others = (code for code in blocks(page, "python") if "zskd" in code or "Photographs" in code)
    spec = xf.InputSpec(1, (32, 32), (0.0,), (1.0,))
    data = xf.data.load("digits")
    few = dataclasses.replace(data, test=xf.data.Split(data.test.images[:4], data.test.labels[:4]))
    names = {
        "teacher": create("lenet5", activation="relu"), "student": create("lenet5_half", activation="relu"),
        "spec": spec, "target_images": torch.rand(8, 1, 32, 32), "data": few,
    }  # fmt: skip
    found = run(code.replace("epsilon=0.3", "epsilon=0.3, steps=1"), names)
    assert isinstance(found["student"], torch.nn.Module)
    for code in others:
        assert isinstance(
            run(code, {**names, "transfer": xf.transfer, "torch": torch})["taught"].model, torch.nn.Module
        )


def test_generators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, fast = blocks("docs/generators.md", "python")
    tiny = "steps=2, batch_size=4, width=2, precision='float32'"
    names = {
        "teacher": create("slim_resnet18", width=2).eval(),
        "spec": xf.InputSpec(3, (8, 8), (0.5,) * 3, (0.2,) * 3),
    }
    found = run(re.sub(r"(?<!\w)steps=\d+", tiny, code), names)
    assert found["images"].shape == (64, 3, 8, 8) and found["taught"] is not names["teacher"]
    names |= {"student": create("slim_resnet18", width=2), "torch": torch}
    found = run(fast.replace("width=32", "width=2, warmup=1, batch_size=4").replace("make(256", "make(4"), names)
    assert found["images"].shape == (4, 3, 8, 8)


def test_compression(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_pruning")
    monkeypatch.chdir(tmp_path)
    # Measured times depend on other load.
    monkeypatch.setattr(LatencyTable, "_measured", lambda self, layer, outputs, inputs: float(outputs * inputs))
    spec = xf.InputSpec(3, (32, 32), (0.5,) * 3, (0.2,) * 3)
    teacher = xf.Expert.wrap(
        create("cifar_resnet", depth=8), spec, range(10), architecture="cifar_resnet", arguments={"depth": 8}
    )
    smaller, by_latency, saved, quantized = blocks("docs/compression.md", "python")
    names = run(smaller.replace("0.2, target", "0.05, batch_size=4, target"), {"teacher": teacher})
    assert names["small"] is names["result"].model
    names["result"] = run(by_latency.replace("0.4, target", "0.01, batch_size=4, target"), names)["result"]
    saved = saved.replace('"depth": 20', '"depth": 8')
    loaded = xf.Expert.load(run(saved, {**names, "spec": spec})["expert"] and tmp_path / "small").model
    assert xf.models.widths_of(loaded) == names["result"].widths
    pytest.importorskip("torchao")
    quantized = quantized.replace('"depth": 20', '"depth": 8').replace("result.compiled()", "result.model")
    again = run(quantized.replace('"small"', '"int8"'), names)
    assert torch.equal(again["network"](names["images"].images), again["logits"])


def test_streams_of_experts(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = without_avalanche("docs/ex_model.md") + [c for c in blocks("docs/tour.md", "python") if "continual" in c]
    whole = found[0].replace('load("mnist", "data")', 'load("digits")').replace('"experts")', '"experts", epochs=1)', 1)
    (tmp_path / "photos").mkdir()
    save_image(torch.rand(3, 40, 40), tmp_path / "photos" / "a.png")
    method = 'method("model-inversion", variant="mnist", buffer_size=20'
    names = run(whole.replace('method("model-inversion", variant="mnist"', method), {})
    result = names["result"]
    assert result.expert.classes == tuple(range(10))
    for code in found[1:]:
        code = code.replace('variant="mnist", steps', 'variant="mnist", buffer_size=20, steps')
        run(code, {"images": torch.rand(10, 1, 32, 32), "stream": names["stream"]})
    assert (tmp_path / "ex-model" / "card.json").is_file()


def test_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/catalogue.md", "python")
    expert = xf.continual.train_expert(xf.data.load("digits"), epochs=1).expert
    names = ("zebra", "tomcat", *expert.card.class_names[2:])
    expert = xf.Expert(expert.model, dataclasses.replace(expert.card, class_names=names))
    xf.Catalogue("catalogue").add(expert, "street-signs")
    ran = run(code, {"expert": expert})
    assert len(ran["small"]) == 2 and ran["problems"] == {}


def test_bringing_your_own(short: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = networks()
    pixels, labels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) % 2
    data = xf.data.LabelledImages(pixels.repeat(8, 1, 1, 1), labels.repeat(8))
    names: dict[str, Any] = {"teacher": next(made), "student": next(made), "pixels": pixels}
    names |= {"train_set": data, "test_set": data, "result": xf.invert(names["teacher"], [1, 2], per_class=1, steps=1)}
    for code in blocks("docs/bringing_your_own.md", "python"):
        if not any(word in code for word in ("lightning", "transformers")):
            names |= run(code, names)
    assert names["expert"].units == (0, 1) and (tmp_path / "board").is_dir()


def test_class_incremental_learners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, own = without_avalanche("docs/class_incremental.md")
    small = code.replace("in_channels=1", "in_channels=1, width=2").replace("epochs=10", "epochs=1, batch_size=64")
    names: dict[str, Any] = {"xf": xf}
    exec(small, names)
    assert len(names["result"].tasks) == 5 and (tmp_path / "run" / "incremental.pt").is_file()
    exec(own.replace("epochs=10", "epochs=1, batch_size=64"), names)
    first, second, *_ = xf.continual.class_incremental.tasks_of(names["data"], "b0-5")
    assert names["taught"].learn(first) and names["taught"].learn(second).history["learn/features"]


def test_the_table_of_class_incremental_methods_is_complete() -> None:
    methods = xf.continual.class_incremental.METHODS
    page = (ROOT / "docs/class_incremental.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]+) \| [^|]+ \|$", page, re.MULTILINE))
    sources = dict(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| ([^|]+) \|$", page, re.MULTILINE))
    for name, method in methods.items():
        assert sources[name] == method.source
        assert method.real == ("real" in rows[name] or rows[name] == "all images"), name


def commands(page: str) -> list[str]:
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [line.strip().replace("$t", "table1") for line in lines if line.strip().startswith("exml-fast ")]


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands_have_valid_options(page: str) -> None:
    typer = pytest.importorskip("typer")
    from exml_fast.cli.app import app

    for line in commands(page):
        command: Any = typer.main.get_command(app)
        words = shlex.split(line, comments=True)[1:]
        while hasattr(command, "list_commands"):
            assert words and words[0] in command.list_commands(None), line
            command, words = command.get_command(None, words[0]), words[1:]
        command.make_context(line, words)


def anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text()):
        if target.startswith("http"):
            continue
        path, _, fragment = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), target
        if fragment:
            assert fragment in map(anchor, re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)), target


@pytest.mark.parametrize("page", PAGES[:2] + PAGES[3:])
def test_files_that_the_pages_name_exist(page: str) -> None:
    places = (ROOT, ROOT / "exml_fast", ROOT / "exml_fast" / "reproduction" / "presets")
    for name in re.findall(r"`([\w./\-]+/[\w.\-]+\.(?:py|toml|h|cpp|sh))`", (ROOT / page).read_text()):
        assert any((place / name).exists() for place in places), name
    for name in re.findall(r"`(test_\w+\.py)`", (ROOT / page).read_text()):
        assert (ROOT / "python_tests" / name).exists(), name


def test_the_lines_of_the_readme(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("README.md", "python")
    (shown,) = blocks("README.md", "text")
    run(code.replace("epochs=20", "epochs=1").replace("generate_every=200", "generate_every=1"), {})
    names = [line.split(":")[0] for line in capsys.readouterr().out.splitlines()]
    assert names == [line.split(":")[0] for line in shown.splitlines()]
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130


@pytest.mark.slow
def test_the_readme_shows_what_its_lines_print(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("README.md", "python")
    (shown,) = blocks("README.md", "text")
    exec(code, {})
    accuracies = [float(value) for value in re.findall(r"([\d.]+)%", capsys.readouterr().out)]
    expected = [float(value) for value in re.findall(r"([\d.]+)%", shown)]
    assert accuracies == pytest.approx(expected, abs=2.0)


def test_how_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = "\n".join(blocks("docs/howto.md", "python")).replace("epochs=20", "epochs=1")
    code = code.replace('{"steps": 200, "buffer_size": 200}', '{"steps": 2, "buffer_size": 20, "batch_size": 8}')
    found = run(code, {})
    assert found["images"].history["contrast"].isfinite().all() and len(found["images"]) == 10
    assert found["ex_model"].classes == tuple(range(10))


def test_notebooks_are_stored_without_outputs() -> None:
    found = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
    assert len(found) >= 2
    for notebook in found:
        for cell in json.loads(notebook.read_text())["cells"]:
            assert not cell.get("outputs") and cell.get("execution_count") is None, notebook


def test_a_notebook_becomes_a_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat", reason="needs the extra docs")
    pytest.importorskip("ipykernel", reason="needs the extra docs")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from notebook_pages import write_page

    cells = [
        nbformat.v4.new_markdown_cell("# Title"),
        nbformat.v4.new_code_cell("import sys\nprint('seen')\nprint('unseen', file=sys.stderr)\n6 * 7"),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    page = write_page(tmp_path / "a.ipynb").read_text()
    assert page.startswith("# Title") and "```text\nseen\n```" in page and "```text\n42\n```" in page
    assert "\nunseen" not in page


def test_what_leaks(short: None) -> None:
    (code,) = blocks("docs/privacy.md", "python")
    digits = xf.data.load("digits")
    names = {
        "digits": digits,
        "teacher": xf.continual.train_expert(digits, arguments={"batch_norm": True}, epochs=1).expert,
    }
    found = run(code, {**names, "student": names["teacher"]})["found"]
    assert set(found.loss) == {"teacher", "student"} and not found.copies


def test_every_page_is_in_the_site() -> None:
    listed = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or re.search(rf"^(.* <)?{page.stem}>?$", listed, re.MULTILINE), page.name
    for page in (ROOT / "docs" / "api").glob("*.md"):
        assert page.stem == "index" or f"\n{page.stem}\n" in (ROOT / "docs/api/index.md").read_text(), page.name
