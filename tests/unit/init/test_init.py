"""What `effllm init` writes is valid, short and the user's own; what it cannot write is said in a sentence."""

import json
import math
import os
import re
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file

from effllm.cli import main
from effllm.errors import UserError
from effllm.init.budget import fit
from effllm.init.catalog import chosen_benchmarks, chosen_precisions
from effllm.init.recipes import RECIPES
from effllm.init.recipes.recipe import Draft, Drafts
from effllm.init.size import Cut, Size
from effllm.init.wishes import Wishes
from effllm.models.costs import training_flops
from effllm.models.costs.shapes import shape_of
from effllm.planning.estimate import Assumptions
from effllm.planning.plan import plan_of
from effllm.stages.graph import Graph
from effllm.study import Study, load_study
from tests.hub.fixtures import hub, waits  # noqa: F401
from tests.hub.server import Hub
from tests.json_lines import write_lines
from tests.unit.models.foreign import write_model

PIN = "8faed761d45a263340a0528343f099c05c9a4323"
H100 = "NVIDIA H100 80GB HBM3"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local model of 4,096 positions with a chat template, whose width 96 no group of 64 or 128 divides."""
    path = tmp_path_factory.mktemp("models") / "My Model"
    write_model(path, hidden_size=96, intermediate_size=128, max_position_embeddings=8192)
    (path / "chat_template.jinja").write_text("{{ messages }}")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"instruction": f"Add {n} and 1.", "output": str(n + 1)} for n in range(60)]
    return write_lines(tmp_path_factory.mktemp("data") / "mine.jsonl", rows)


def init(*words: str | Path) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["init", *map(str, words)])
    assert ended.value.code == 0


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    """The one sentence of a refusal."""
    with pytest.raises(SystemExit) as ended:
        main(["init", *map(str, words)])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in said and len(said.splitlines()) == 1
    return said


def check(path: Path) -> Study:
    """`effllm check` passes, no line is cut off, and the text is small."""
    with pytest.raises(SystemExit) as ended:
        main(["check", str(path)])
    assert ended.value.code == 0
    lines = path.read_text().splitlines()
    assert len(lines) <= 40 and lines[0].startswith("# ")
    return load_study(path)


def test_what_is_written_passes_the_check_whatever_was_asked_for(tmp_path: Path, model: Path, data: Path) -> None:
    path = tmp_path / "mine.yaml"
    models = ([str(model)], [f"Qwen/Qwen2.5-1.5B-Instruct@{PIN}", str(model)])
    devices = (None, "cpu", H100)
    compared = product(
        [None, "int4"], models, [None, "bfloat16", "int4,float16"], [None, "none", "bbh,word-order"], devices
    )
    # Every fifth: five divides no number of choices, so each pair of choices comes up.
    asked = [(*words, None) for words in compared if words[0] is None or words[2] is None][::5]
    asked += [("tune", names, None, None, device, data) for names, device in product(models, devices)]
    asked += [("attention", names, None, None, device, None) for names, device in product([[], models[0]], devices)]
    asked += [("pretrain", [], None, None, device, None) for device in devices]
    budgets = ([], ["--hours", "0.9", "--results", str(tmp_path)], ["--hours", "30", "--gpus", "8"])
    for number, (recipe, names, precisions, benchmarks, device, file) in enumerate(asked):
        options = {"--recipe": recipe, "--precisions": precisions, "--benchmarks": benchmarks, "--device": device}
        words = [word for option, value in options.items() if value for word in (option, value)]
        words += [word for name in names for word in ("--model", name)] + (["--data", str(file)] if file else [])
        # Three divides no number of choices but the devices', which the fours between shift.
        budget = budgets[(number + number // 4) % 3][: 2 if device == "cpu" else None]
        init(*words, *budget, "--force", "-o", path)
        study = check(path)
        wishes = Wishes(path, True, recipe, (), (), (), benchmarks != "none", None, device)
        if table := study.tables.table9:
            assert len(table.models) == len(names) if recipe != "attention" else 4
        if recipe in (None, "int4") and table:
            assert table.precisions == (precisions.split(",") if precisions else chosen_precisions(wishes))
            given = [] if benchmarks == "none" else (benchmarks or "").split(",")
            assert table.benchmarks == (given if benchmarks else chosen_benchmarks(wishes))


@pytest.mark.parametrize("hours", [1, 100])
def test_the_plan_of_what_is_written_is_within_the_budget(hours: float, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    budget = ("--hours", hours, "--device", H100, "--assume-mfu", "0.4", "--results", tmp_path)
    init("--recipe", "pretrain", *budget, "-o", path)
    study = check(path)
    plan = plan_of(Graph(study, str(tmp_path)), ["table6"], device=H100, assumptions=Assumptions(mfu=0.4))
    taken_h = sum(node.device_s.value for node in plan.nodes if node.device_s and node.device_s.value) / 3600
    # One after the other, and half of the budget is used, of which more than 60 h would take a larger backbone.
    assert 0.45 * min(hours, 60) < taken_h <= hours
    words = study.pretraining["gqa"].architecture.plain()["hidden_size"]
    assert words == {1: 512, 100: 1024}[hours]
    assert study.pretraining["gqa"].optimizer.learning_rate == pytest.approx(0.768 / words, rel=0.03)


def test_every_sample_is_counted_for_a_budget(tmp_path: Path, model: Path) -> None:
    data = write_lines(
        tmp_path / "mine.jsonl", [{"prompt": f"Add {n} and 1.", "response": str(n)} for n in range(1100)]
    )
    path = tmp_path / "mine.yaml"
    budget = ("--hours", "1", "--device", H100, "--results", tmp_path)
    init("--recipe", "tune", "--model", model, "--data", data, *budget, "-o", path)
    assert check(path).instructions["mine"].maximum_samples == 1100
    assert "unknown" not in path.read_text(), "the plan knows every node"


def test_what_harms_least_is_cut_first_and_the_rest_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan(graph: Draft, *_: object, **__: object) -> SimpleNamespace:
        size = Size(**json.loads(graph.sections[0]))
        # 100 windows of 1 s, 100 documents of 1 s.
        seconds = 10 * (10 if size.repeats is None else size.repeats) + (size.documents or 100)
        known = SimpleNamespace(value=seconds)
        return SimpleNamespace(
            wall_s=known, wall_least_s=seconds, wont_fit={}, risks={}, device=None, nodes=[], graph=graph
        )

    monkeypatch.setattr("effllm.init.budget.plan_of", plan)
    monkeypatch.setattr("effllm.init.budget.Graph", lambda study, results: study)
    cuts = [
        Cut("repeats", 10, (8, 6, 4), lambda count: f"{count} windows"),
        Cut("documents", None, (75, 50, 25), lambda count: f"{count} documents"),
    ]
    drafts = Drafts(lambda size: Draft([], [json.dumps(vars(size))], ["table9"]), cuts)

    def cut(seconds: float) -> list[str]:
        wishes = Wishes(Path("x"), False, None, (), (), (), True, None, None, hours=seconds / 3600)
        return list(fit(wishes, drafts, lambda draft: draft).cut)  # type: ignore[arg-type,return-value]

    assert cut(200) == []
    assert cut(170) == ["6 windows instead of 10"]
    assert cut(120) == ["4 windows instead of 10", "75 documents instead of all"]
    # 50 documents leave room for more windows than the fewest.
    assert cut(111) == ["6 windows instead of 10", "50 documents instead of all"]
    with pytest.raises(UserError, match=r"--hours 0.0166667: the smallest .* takes 65 s .*, 5 s too many"):
        cut(60)


def test_two_models_take_few_lines_and_are_read(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "mine.yaml"
    names = ("--model", f"Qwen/Qwen2.5-1.5B-Instruct@{PIN}", "--model", model)
    init(*names, "--precisions", "bfloat16,int4", "--benchmarks", "ifeval,mmlu-pro", "-o", path)
    text = path.read_text()
    study = check(path)
    assert list(study.models) == ["qwen2.5-1.5b-instruct", "my-model"]
    assert study.models["qwen2.5-1.5b-instruct"].source.plain()["revision"] == PIN
    # By its name, for its files are not here; the other one by its template.
    assert all(entry.chat is not None for entry in study.models.values())
    assert study.precision_of("my-model", "int4").plain()["group_size"] == 32
    weights = sum(math.prod(tensor.shape) for tensor in load_file(model / "model.safetensors").values())
    assert f"llama, {weights:,} parameters in bfloat16, untied head, a chat template" in text
    # The study names how it came to be: the same words write the same text.
    command = re.search(r"effllm (init .*)", " ".join(text.replace("\n# ", " ").splitlines()[:1]))
    assert command and "'" in command[1], "a path with a space is quoted"


def test_paths_are_written_without_detours(
    tmp_path: Path, model: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    relative = [os.path.relpath(path) for path in (model, data)]
    init("--recipe", "tune", "--device", "cpu", "--model", relative[0], "--data", relative[1], "-o", "../mine.yaml")
    assert f"study={tmp_path / 'mine.yaml'} " in capsys.readouterr().out
    study = check(tmp_path / "mine.yaml")
    assert [entry.source.plain()["path"] for entry in study.models.values()] == [str(model)]
    assert study.instructions["mine"].source.plain()["paths"] == [str(data)]


def test_the_same_study_is_written_again_and_only_if_told_to(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    init("--model", model, "-o", path)
    before = path.read_text()
    assert "exists" in refused(capsys, "--model", model, "-o", path) and path.read_text() == before
    path.write_text("")
    init("--model", model, "-o", path, "--force")
    assert path.read_text() == before


def test_runs_of_different_cost_get_the_same_flops(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    init("--recipe", "pretrain", "-o", path)
    runs = check(path).pretraining
    spent = {
        id: run.max_steps * run.global_batch_size * training_flops(shape_of(run.architecture, 32768), 2048)
        for id, run in runs.items()
    }
    assert set(spent) == {"gqa", "mqa", "mla", "nsa", "moe"}
    assert max(spent.values()) / min(spent.values()) < 1.001


def test_the_shape_of_a_model_is_taken(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "mine.yaml"
    init("--recipe", "attention", "--model", model, "-o", path)
    runs = check(path).pretraining
    assert {(run.architecture.hidden_size, run.architecture.vocab_size) for run in runs.values()} == {(96, 320)}
    assert {getattr(run.architecture, "attention", None) for run in runs.values()} == {"gqa", "mqa", "mla", "nsa"}


def test_the_commit_of_the_hub_is_pinned(tmp_path: Path, hub: Hub, model: Path) -> None:  # noqa: F811
    files = {path.name: path.read_bytes() for path in model.iterdir() if path.is_file()}
    commit = hub.add("model", "me/Small", files)
    path = tmp_path / "mine.yaml"
    init("--model", "me/Small", "--benchmarks", "ifeval", "-o", path)
    study = check(path)
    assert study.models["small"].source.plain() == {"kind": "hub", "repo": "me/Small", "revision": commit}
    assert study.precision_of("small", "int4").plain()["group_size"] == 32 and "GB of weights" in path.read_text()
    assert not hub.asked(r"GET cdn"), "no weights are fetched"
    plan = plan_of(Graph(study, str(tmp_path)), ["table9"], device=H100)
    assert "the shape of me/Small is not known" not in str(plan)


@pytest.mark.parametrize(
    ("left_out", "parts"),
    [("model.safetensors", ["no safetensors"]), ("tokenizer_config.json", ["no tokenizer_config.json"])],
)
def test_what_a_repository_lacks_is_said_now(
    left_out: str,
    parts: list[str],
    tmp_path: Path,
    hub: Hub,  # noqa: F811
    model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.add("model", "me/x", {p.name: p.read_bytes() for p in model.iterdir() if p.is_file() and p.name != left_out})
    said = refused(capsys, "--model", "me/x", "-o", tmp_path / "mine.yaml")
    assert all(part in said for part in parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--model", "/nowhere/x"], ["--model /nowhere/x", "is not a directory"]),
        (["--model", "no name"], ["no directory, and no name on the hub", "owner/name"]),
        (["--model", "me/x"], ["me/x@COMMIT", "HF_HUB_OFFLINE"]),
        (["--model", "me/x@main"], ["'main' is no commit", "40 hexadecimal digits"]),
        (["--model", "me/x:main"], ["'main' is no commit", "https://huggingface.co/me/x/commits/main"]),
        (["--model", ""], ["--model is empty"]),
        (["--model", "{unset}"], ["config.json is empty"]),
        (["--model", "{adapter}"], ["is an adapter alone", "merge the adapter"]),
        (["--model", "{ggufs}"], ["holds GGUF files", "safetensors"]),
        (["--model", "{ggufs}/x.gguf"], ["is a GGUF file", "a directory"]),
        (["--model", "{empty}"], ["has no config.json"]),
        (["--model", "{bare}"], ["holds no *.safetensors"]),
        (["--model", "{wordless}"], ["no tokenizer_config.json"]),
        (["--model", "{short}"], ["reads 128 tokens at most", "inference.workloads"]),
        (["--model", "{model}", "--benchmarks", "mmlu"], ["'mmlu'", "did you mean 'mmlu-pro'?", "docs/init.md"]),
        (["--model", "{model}", "--benchmarks", "MMLU-Pro"], ["it is called 'mmlu-pro'"]),
        (["--model", "{model}", "--benchmarks", "leaderboard_bbh"], ["it is called 'bbh'"]),
        (["--model", "{model}", "--benchmarks", "bbh,,ifeval"], ["empty name"]),
        (["--model", "{model}", "--precisions", "int4x"], ["'int4x'", "did you mean 'int4'?"]),
        (["--model", "{model}", "--precisions", "int4,int4"], ["'int4' is given twice"]),
        (["--model", "{model}", "--device", "RTX"], ["nobody knows a 'RTX'", "leave it out"]),
        (["--model", "{model}", "--model", "{model}"], ["is given twice"]),
        ([], ["--model is missing"]),
        *(
            (["--recipe", "pretrain", "--hours", hours], [f"--hours {hours}", "above 0", "such as 24"])
            for hours in ("0", "-1", "nan", "inf")
        ),
        (["--recipe", "pretrain", "--hours", "1", "--gpus", "0"], ["--gpus 0", "from 1 to 1,024"]),
        (["--recipe", "pretrain", "--hours", "1", "--gpus", "5000"], ["--gpus 5000", "from 1 to 1,024"]),
        (["--recipe", "pretrain", "--hours", "1", "--assume-mfu", "40"], ["--assume-mfu 40", "such as 0.4"]),
        (["--recipe", "pretrain", "--gpus", "2"], ["--gpus 2 means nothing", "--hours"]),
        (["--recipe", "pretrain", "--device", "cpu", "--hours", "1", "--gpus", "2"], ["--gpus 2", "--device cpu"]),
        (
            ["--recipe", "pretrain", "--device", H100, "--assume-mfu", "0.4", "--hours", "0.01"],
            ["--hours 0.01: the smallest version", "too many: give more hours"],
        ),
        (["--recipe", "int4", "--model", "{model}", "--precisions", "int4"], ["--precisions means nothing to"]),
        (["--recipe", "pretrain", "--model", "{model}"], ["--model means nothing to --recipe pretrain"]),
        (["--recipe", "tune", "--model", "{model}"], ["--data is missing"]),
        (["--recipe", "tune", "--model", "{model}", "--data", "x.jsonl"], ["x.jsonl is no file"]),
        (
            ["--recipe", "tune", "--model", "{model}", "--data", "{odd}"],
            ["the columns 'a', 'b'", "prompt and response"],
        ),
        (
            ["--recipe", "tune", "--model", "{model}", "--data", "{few}"],
            ["3 of its first 1,000 rows", "40 are the fewest"],
        ),
        (
            ["--recipe", "tune", "--model", "{model}", "--data", "{seen}"],
            ["images in its column 'image'", "docs/vision-language.md"],
        ),
        (["--recipe", "attention", "--model", f"me/x@{PIN}"], ["its shape is not known here"]),
        (["--recipe", "attention", "--model", "{model}", "--model", "{short}"], ["the shape of one model"]),
        (["--model", "{model}", "-o", "{empty}"], ["is a directory"]),
        (["--model", "{model}", "-o", "{empty}/a/b.yaml"], ["there is no directory"]),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    words: list[str], parts: list[str], tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"model": model, **{name: tmp_path / name for name in ("empty", "bare", "wordless", "short")}}
    places |= {name: tmp_path / f"{name}.jsonl" for name in ("odd", "few", "seen")}
    places["empty"].mkdir()
    for name, file in (("unset", "config.json"), ("adapter", "adapter_config.json"), ("ggufs", "x.gguf")):
        places[name] = tmp_path / name
        places[name].mkdir()
        (places[name] / file).touch()
    for path in model.glob("[mt]*"):
        (places["unset"] / path.name).write_bytes(path.read_bytes())
    write_lines(places["odd"], [{"a": "x", "b": "y"}] * 60)
    write_lines(places["few"], [{"prompt": "x", "response": "y"}] * 3)
    write_lines(places["seen"], [{"prompt": "x", "response": "y", "image": "1.png"}] * 60)
    for name, left_out in (("bare", "model.safetensors"), ("wordless", "tokenizer_config.json"), ("short", "")):
        places[name].mkdir()
        for path in model.iterdir():
            if path.name != left_out:
                (places[name] / path.name).write_bytes(path.read_bytes())
    config = places["short"] / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 128}))
    given = [word.format_map(places) for word in words]
    output = [] if "-o" in given else ["-o", tmp_path / "mine.yaml"]
    said = refused(capsys, *given, *output)
    assert all(part in said for part in parts), said
    assert not list(tmp_path.glob("**/*.yaml"))


def test_every_recipe_says_what_it_is_for() -> None:
    """Each has a preset that builds on nothing but presets, and a budget by which the report recommends."""
    folder = Path(__file__).parents[3] / "config" / "presets" / "recipes"
    assert {path.stem for path in folder.glob("*.yaml")} == set(RECIPES)
    for path in folder.glob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        assert content["budgets"] and json.dumps(content.get("extends", "presets/")).count("presets/") == 1
