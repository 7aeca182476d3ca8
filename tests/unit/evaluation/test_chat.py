"""Prompts in a chat template: those of the harness's own command line, and its scores to the last digit."""

import json

import pytest
from conftest import END, evaluate_model, make_benchmark, make_model, samples_of, tiny_llama
from test_begin_of_text import llama3
from test_command_line import by_itself  # noqa: F401
from test_harness import hub, settings  # noqa: F401

from effllm.errors import UserError
from effllm.evaluation.command_line import command_line
from effllm.models.loading import load_tokenizer
from effllm.results.evaluation import Evaluation

BEGIN, TURN = "<|begin_of_text|>", "<0x1e>"
TEMPLATE = (
    "{{ bos_token }}{{ strftime_now('%d %b %Y') }}\n"
    "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SYSTEM = "--be brief,\nand right"
TASKS = {"leaderboard_mmlu_pro": "acc", "leaderboard_ifeval": "prompt_level_strict_acc"}


@pytest.fixture(scope="module")
def instruct(root, texts):
    """A model whose tokenizer writes conversations, and whose files name the end of a turn as an end."""
    tokenizer = llama3(texts[1][:20])
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN]})
    tokenizer.chat_template = TEMPLATE
    ends = {"eos_token_id": [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(TURN)]}
    return make_model(root, "instruct.fp32", tiny_llama(tokenizer, seed=9), tokenizer, ends)


@pytest.fixture
def benchmarks(root, hub):  # noqa: F811
    return {task: make_benchmark(root, f"{task}-chat", settings(task, TASKS[task], limit=2)) for task in TASKS}


def options(multiturn=True, system=None):
    return {"fewshot_as_multiturn": multiturn, "system_instruction": system}


@pytest.mark.parametrize(
    ("task", "chat"),
    [
        ("leaderboard_mmlu_pro", None),
        ("leaderboard_mmlu_pro", options()),
        ("leaderboard_mmlu_pro", options(multiturn=False, system=SYSTEM)),
        pytest.param("leaderboard_ifeval", options(), marks=pytest.mark.slow),
    ],
)
def test_the_harness_by_itself_prompts_and_scores_alike(
    root,
    benchmarks,
    instruct,
    by_itself,  # noqa: F811
    tmp_path,
    task,
    chat,
):
    artifact = evaluate_model(tmp_path, instruct, benchmarks[task], chat=chat)
    scored = Evaluation.read(artifact.directory)
    for stage in ("quantize", "benchmark"):
        (tmp_path / stage).symlink_to(root / stage)
    results = by_itself(command_line(artifact.directory, tmp_path / "tasks"))[task]
    assert {key: figures.value for key, figures in scored.metrics.items()} == {
        key: results[key] for key in scored.metrics
    }
    (file,) = (tmp_path / "output").rglob("samples_*.jsonl")
    alone = [json.loads(line) for line in file.read_text().splitlines()]
    assert [item["filtered_resps"] for item in alone] == [
        # The log of the harness holds numbers as text.
        [[str(value) for value in answer] if isinstance(answer, list) else answer for answer in item["answers"]]
        for item in samples_of(artifact)
    ]
    prompt = alone[0]["arguments"]["gen_args_0"]["arg_0"]
    shots = 5 if task == "leaderboard_mmlu_pro" else 0
    if chat is None:
        assert BEGIN not in prompt and "<user>" not in prompt and scored.chat is None
    else:
        assert prompt.startswith(f"{BEGIN}26 Jul 2024\n") and prompt.endswith("<assistant>")
        assert prompt.count(BEGIN) == 1 and (f"<system>{SYSTEM}" in prompt) == bool(chat["system_instruction"])
        assert prompt.count("<user>") == (shots + 1 if chat["fewshot_as_multiturn"] else 1)
        ends = load_tokenizer(instruct.directory / "model").convert_tokens_to_ids([END, TURN])
        assert scored.chat.end_token_ids == ends and not scored.ignored_generation_settings


def test_a_prompt_in_a_template_begins_once_and_ends_open(instruct, benchmarks):
    from effllm.evaluation.evaluate import Config, load

    lm, _ = load(instruct, Config.model_validate({"protocol": {"batch_size": 2}, "chat": options()}))
    text = lm.apply_chat_template([{"role": "user", "content": "Who?"}])
    begin = lm.tokenizer.bos_token_id
    assert lm.tok_encode(text).count(begin) == 1
    ids, mask = lm.tok_batch_encode([text, text + " longer"])
    assert [(row == begin).sum() for row in ids] == [1, 1] and mask[1].all()


def test_a_model_without_a_template_or_with_one_that_refuses_is_told_so(root, model, benchmarks, texts, tmp_path):
    with pytest.raises(UserError, match=r"models\.random\.chat: the tokenizer has no chat template"):
        evaluate_model(tmp_path, model, benchmarks["leaderboard_ifeval"], chat=options())
    tokenizer = llama3(texts[1][:20])
    tokenizer.chat_template = "{{ raise_exception('no turns of yours') }}"
    refusing = make_model(root, "refusing.fp32", tiny_llama(tokenizer), tokenizer)
    failed = evaluate_model(tmp_path, refusing, benchmarks["leaderboard_ifeval"], chat=options())
    assert failed.manifest.status == "unsupported" and "no turns of yours" in failed.manifest.reason
