"""`effllm fetch`: what a study needs from the hub, before it runs and without a network afterwards."""

import hashlib
import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from effllm.cli import main
from effllm.data import corpus, tokenizer
from effllm.data.settings import Corpus
from effllm.errors import UserError
from effllm.planning.fetch import find_needs, pending, run
from effllm.planning.plan import plan_of
from effllm.runtime import stage
from effllm.stages import STAGES
from effllm.stages.graph import Graph
from effllm.study import parse_study
from tests.hub.fixtures import hub, waits  # noqa: F401
from tests.hub.server import Corrupt, Hub, Reset, Status, Truncate

README = b"""---
configs:
- config_name: all
  data_files: [{split: train, path: all/*}]
- config_name: sample
  data_files: [{split: train, path: sample/*}]
---
"""
CDN = "GET cdn "


@pytest.fixture(autouse=True)
def _nothing_in_the_hubs_cache() -> None:
    """The cache of `hub` is empty by itself, and this module fills it."""


def parquet(first: int, count: int) -> bytes:
    rows = [
        {
            "text": f"Document {number} of {number * 7919 % 10_007} words.",
            "id": f"{number}",
            "dump": "d",
            "url": "u",
            "file_path": "f",
            "language": "en",
            "language_score": 0.9,
            "token_count": 50,
            "score": 3.0,
            "int_score": 3,
        }
        for number in range(first, first + count)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def tokenizer_files(directory: Path) -> dict[str, bytes]:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="<unk>").save_pretrained(directory)
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.fixture
def graph(hub: Hub, tiny: dict[str, Any], tmp_path: Path) -> Graph:  # noqa: F811
    """Table 3 with one row, whose corpus and tokenizer come from the hub."""
    files = {
        "README.md": README,
        "all/other.parquet": parquet(5000, 10),
        "sample/0.parquet": parquet(0, 300),
        "sample/1.parquet": parquet(300, 300),
    }
    text = hub.add("dataset", "owner/text", files)
    words = hub.add("model", "owner/words", tokenizer_files(tmp_path / "words") | {"model.safetensors": b"weights"})
    source = {"kind": "hub", "repo": "owner/text", "name": "sample", "revision": text}
    tiny["corpora"] = {"text": {"source": source, "held_out_fraction": 0.2}}
    tiny["tokenizers"] = {"words": {"kind": "hub", "repo": "owner/words", "revision": words}}
    tiny["tokens"] = {"text": {"corpus": "text", "tokenizer": "words"}}
    tiny["pretraining"] = {"gqa-0.3m": tiny["pretraining"]["gqa-0.3m"] | {"tokens": "text"}}
    tiny["tables"] = {"table3": {"rows": [{"method": "GQA", "parameters": "0.3M", "runs": ["gqa-0.3m"]}]}}
    for key in ("orders", "instructions", "models", "methods", "finetuning", "tuning", "precisions", "benchmarks"):
        tiny.pop(key, None)
    del tiny["evaluation"]["divergence_from"]
    return Graph(parse_study(tiny, "test"), str(tmp_path / "results"))


def build(graph: Graph, name: str) -> dict[str, Any]:
    programs = {"corpus": corpus.build, "tokenizer": tokenizer.build}
    stage_name, _, id = name.partition("/")
    output = Path(graph.results) / name
    built = stage.run(
        STAGES[stage_name], programs[stage_name], spec=graph.spec(stage_name, id), inputs={}, output=output
    )
    return built.manifest.payload


def test_what_was_fetched_is_all_that_the_targets_need_without_a_network(
    graph: Graph,
    hub: Hub,  # noqa: F811
    waits: list[float],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hub.fault(CDN, Reset(after=1000))
    hub.fault(CDN, Truncate(after=2000))
    hub.fault(CDN, Corrupt())
    assert run(graph, []) == 0
    assert "2 repositories" in capsys.readouterr().out
    assert hub.asked("other.parquet") == [] and hub.asked("GET .*resolve.*safetensors") == []
    hub.heal()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    offline = {name: build(graph, name) for name in ("corpus/text", "tokenizer/words")}
    assert hub.requests == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    elsewhere = Graph(graph.study, str(tmp_path / "elsewhere"))
    assert {name: build(elsewhere, name) for name in offline} == offline


def test_of_a_corpus_with_a_token_budget_only_what_it_takes_is_fetched(
    graph: Graph,
    hub: Hub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Each file has 300 documents of 50 tokens, a fifth of them held out."""
    monkeypatch.setattr("effllm.stages.corpus._READ_AT_ONCE", 1)
    for budget, taken in ((8000, ["0"]), (13_500, ["0", "1"])):
        hub.heal()
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / f"cache{budget}"))
        text = graph.study.model_dump(mode="json", exclude_none=True)["corpora"]["text"] | {"maximum_tokens": budget}
        study = graph.study.model_copy(update={"corpora": {"text": Corpus.model_validate(text)}})
        limited = Graph(study, str(tmp_path / f"results{budget}"))
        at_most = plan_of(limited, ["corpus/text"], fetch=True).download_b
        assert at_most.by_basis == {"computed": at_most.value}
        assert run(limited, []) == 0
        fetched = {path for request in hub.asked(CDN) if (path := request.path.split("?")[0]).endswith(".parquet")}
        assert sorted(path[-9] for path in fetched) == taken
        assert "corpus/text: at most 3 files, " in (said := capsys.readouterr().out)
        assert f"corpus/text: {1 + len(taken)} of 3 files, " in said
        assert at_most.value >= sum(need.size_b for need in find_needs(limited, pending(limited, ["corpus/text"])))
        assert list((tmp_path / f"results{budget}" / ".scratch").glob("fetch-*")) == []
        if budget == 8000:
            # Without a network, and on more cores than there are files of it.
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
            monkeypatch.setenv("OMP_NUM_THREADS", "2")
            payload = build(limited, "corpus/text")
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setenv("OMP_NUM_THREADS", "1")
            monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
            assert build(Graph(study, str(tmp_path / "online")), "corpus/text") == payload


def test_a_second_call_fetches_nothing_and_a_broken_one_is_taken_up(
    graph: Graph,
    hub: Hub,  # noqa: F811
    waits: list[float],  # noqa: F811
) -> None:
    hub.fault("GET cdn .*1.parquet", Status(503), times=99)
    with pytest.raises(Exception, match=r"sample/1.parquet of the dataset owner/text cannot be fetched"):
        run(graph, [])
    hub.heal()
    assert run(graph, []) == 0
    assert [request.path.split("?")[0][-9:] for request in hub.asked(CDN)] == ["1.parquet"]
    hub.heal()
    assert run(graph, []) == 0
    assert hub.asked(CDN) == []


def test_what_is_built_is_not_fetched(graph: Graph, hub: Hub) -> None:  # noqa: F811
    build(graph, "corpus/text")
    assert [node.name for node in pending(graph, ["table3"])] == ["tokenizer/words"]
    build(graph, "tokenizer/words")
    assert pending(graph, ["table3"]) == []


def test_what_is_gated_or_missing_is_said_before_anything_is_fetched(
    graph: Graph,
    hub: Hub,  # noqa: F811
    waits: list[float],  # noqa: F811
) -> None:
    hub.repository("datasets", "owner/text").access = "gated"
    hub.fault("/resolve/.*token", Status(403, {"X-Error-Code": "GatedRepo"}), times=99)
    with pytest.raises(Exception, match=r"corpus/text: the dataset owner/text is gated") as raised:
        run(graph, [])
    assert "\nerror: tokenizer/words: tokenizer" in str(raised.value) and "is gated" in str(raised.value)
    assert hub.asked(CDN) == [] and waits == []


def test_an_offline_run_says_which_file_was_not_fetched(
    graph: Graph,
    hub: Hub,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run(graph, [])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (need,) = find_needs(graph, pending(graph, ["corpus/text"]))
    lost = need.repository.cached(next(file for file in need.files if file.path == "sample/1.parquet"))
    lost.unlink()
    with pytest.raises(
        Exception, match=r"sample/1.parquet of owner/text at .* is not in the hub's cache .*effllm fetch"
    ):
        build(graph, "corpus/text")


def test_the_command_ends_with_2_where_the_hub_refuses(
    hub: Hub,  # noqa: F811
    waits: list[float],  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["fetch", "--study", "config/paper.yaml", "--results", str(tmp_path / "results"), "corpus/fineweb-edu"])
    assert ended.value.code == 2
    assert "error: corpus/fineweb-edu: the dataset HuggingFaceFW/fineweb-edu does not exist" in capsys.readouterr().err


def test_a_plan_knows_the_bytes_to_download_from_the_hubs_list(graph: Graph, hub: Hub) -> None:  # noqa: F811
    # Not the table: the shape of its model would be asked for too, of another hub.
    targets = ["corpus/text", "tokenizer/words"]
    without = plan_of(graph, targets).download_b
    assert without.value is None and without.unknown == {"sizes are the hub's to tell: give --fetch": 2}
    expected = sum(need.size_b for need in find_needs(graph, pending(graph, targets)))
    known = plan_of(graph, targets, fetch=True).download_b
    assert known.value == expected and known.nodes == 2 and known.by_basis == {"computed": expected}
    assert hub.asked("GET .*parquet") == []
    run(graph, [])
    assert plan_of(graph, targets, fetch=True).download_b.value == 0


def test_a_file_at_an_address_is_fetched_once_and_its_size_known_before(
    hub: Hub,  # noqa: F811
    waits: list[float],  # noqa: F811
    tiny: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = b'{"problems": "are not read here"}'
    commit = hub.add("dataset", "owner/problems", {"mini.json": content}, lfs=())
    url = f"{hub.endpoint}/datasets/owner/problems/resolve/{commit}/mini.json"

    def graph_with(url: str, digest: str) -> Graph:
        tiny["benchmarks"]["mine"] = {"kind": "hard_math", "source": {"kind": "url", "url": url, "sha256": digest}}
        return Graph(parse_study(tiny, "test"), str(tmp_path / "results"))

    digest, targets = hashlib.sha256(content).hexdigest(), ["benchmark/mine"]
    graph = graph_with(url, digest)
    assert plan_of(graph, targets, fetch=True).download_b.value == len(content)
    assert [request.method for request in hub.requests] == ["HEAD"]
    with pytest.raises(
        UserError, match=r"benchmark/mine: benchmark.source: .*gone.json answers 404; correct the address"
    ):
        run(graph_with(url.replace("mini", "gone"), digest), targets)
    with pytest.raises(UserError, match=f"has the SHA-256 {digest} and not {'1' * 64}"):
        run(graph_with(url, "1" * 64), targets)
    hub.heal()
    hub.fault("GET .*mini", Status(503))
    assert run(graph, targets) == 0
    assert f"benchmark/mine: {url}, 0.000 MB" in capsys.readouterr().out
    assert plan_of(graph, targets, fetch=True).download_b.value == 0
    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    address = STAGES["benchmark"].address(graph.study, "mine")
    assert address is not None
    address.fetch(tmp_path / "problems.json")
    assert (tmp_path / "problems.json").read_bytes() == content and len(hub.requests) == asked
    address.into_cache().write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"is not in the hub's cache .*effllm fetch"):
        address.into_cache()
