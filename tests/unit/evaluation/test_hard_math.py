"""HARDMath: formulas read and compared by their values, on problems of our own in the columns of the real file."""

import hashlib
import json
import math
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import evaluate_model, make_benchmark, make_model, rows_of, samples_of, tiny_llama
from huggingface_hub import constants

from effllm.errors import UserError
from effllm.evaluation.asymptotics.answer import boxes, formula, split
from effllm.evaluation.asymptotics.formula import NoFormulaError, value
from effllm.evaluation.asymptotics.grading import QUESTION_TYPES, example, grade
from effllm.evaluation.asymptotics.problems import judge_item


def problem(kind, answer_type, answer_val, **fields):
    empty = dict.fromkeys(("precision", *(f"{r}_{f}" for r in ("small", "large") for f in FIELDS)))
    question = f"A question of type {kind}?"
    return {**empty, "question": question, "question_type": kind, "answer_type": answer_type, "answer_val": answer_val,
            "solution": "not read", **fields}  # fmt: skip


FIELDS = ("eval_point", "analytical", "numerical")
PROBLEMS = {
    # The integral of exp(x t) from 0 to 1, at x = 20.
    "laplace": problem(
        "integral", "math_expression", r"\boxed{I(x) \approx \frac{1.0 e^{1.0 x}}{x}}",
        large_eval_point=20.0, large_numerical=str((math.exp(20) - 1) / 20),
    ),
    "regimes": problem(
        "integral", "list", r"\frac{0.5}{\epsilon^{0.75}}, \frac{0.8}{\epsilon^{0.9}}, \frac{30}{\epsilon}"
    ),
    # The departure from 1 is -x^3/18; the cube root is real on either side of 5.
    "ode": problem(
        "ODE", "list",
        "['y = 1 - \\\\frac{x^{3}}{18}\\n', '\\ny = \\\\sqrt[3]{30} (x - 5)^{\\\\frac{1}{3}} + (2.5)\\n\\n']",
        small_eval_point=0.1, small_analytical="0.99994", small_numerical="0.99994",
        large_eval_point=4.875, large_analytical="2.5 - 0.5*30**(1/3)\n", large_numerical="0.946",
    ),
    # epsilon x^3 + x^2 - 1
    "roots": problem(
        "polynomial_roots", "list", r"\left[ - \frac{1}{\epsilon}, \  -1, \  1\right]",
        small_eval_point=0.1, small_analytical="[(-10+0j), (-1+0j), (1+0j)]",
        small_numerical="[-9.89792685 -1.05747451  0.95540136]",
        large_eval_point=10.0,
        large_analytical="[(-0.23207944-0.40197338j), (-0.23207944+0.40197338j), (0.46415888+0j)]",
        large_numerical="[-0.26655265+0.39980047j -0.26655265-0.39980047j\n  0.4331053 +0.j        ]",
    ),
    "numeric": problem("nondimensionalization_numeric", "float", "0.38", precision=2),
    "symbolic": problem(
        "nondimensionalization_symbolic", "math_expression",
        r"\frac{a_{1} \left(\frac{a_{3}}{a_{2}}\right)^{\frac{7}{2}}}{a_{3}}",
    ),
}  # fmt: skip
CUBE = r"\sqrt[3]{\frac{1}{\epsilon}}"
LARGE_ROOTS = rf"[{CUBE}, {CUBE} e^{{2 i \pi / 3}}, {CUBE} e^{{-2 i \pi / 3}}]"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (r"\frac{1}{2}", 0.5), ("2x^{3}", 54), (r"-x^2 \cdot 2", -18), ("2**-1", 0.5), ("2^3^2", 512),
        (r"\sqrt[3]{-8}", -2), ("(-8)^{2/3}", 4), (r"x\left(x+1\right)", 12), (r"e^{-x}/x", math.exp(-3) / 3),
        (r"\operatorname{atan}{\left(x \right)}", math.atan(3)), (r"\sin^2 x + \cos^{2}{x}", 1),
        ("sin 2x", math.sin(6)),
        (r"\ln(x)", math.log(3)), ("1.5e-3 x", 4.5e-3), (r"1.5 \times 10^{-3}", 1.5e-3), (r"\Gamma(1)", 1),
        ("sqrt(x)*exp(x)", math.sqrt(3) * math.exp(3)), (r"\dfrac{x}{2}\,x", 4.5), ("6/2/3", 1), ("3 - -2", 5),
    ],
)  # fmt: skip
def test_formulas_have_their_value(text, wanted):
    assert value(text, {"x": 3.0}) == pytest.approx(wanted, rel=1e-12)


HOSTILE = [
    "9^{9^{9^{9}}}", "9**9**9**9", "2^{2^{2^{2^{2^{2^{2}}}}}}", "99999!", "(" * 5_000 + "1" + ")" * 5_000, "[" * 9_000,
    r"\frac" * 2_000, r"\sqrt" * 3_000, "sin " * 2_500, "-" * 9_999, "^" * 9_999, "e" * 9_999, "a" * 9_999, "9" * 9_999,
    "__import__('os').system('true')", "().__class__", "lambda: 0", r"\text{" * 2_000, r"\text{" + "1" * 9_000,
    "+O" + " " * 9_000, "x" * 20_000, "{" * 5_000, r"\pm" * 3_000, r"\int_0^1 x dx", r"\sum_{n} n", "1/0", "0^{-1}",
    "exp(exp(exp(9)))", "gamma(-1)", "log(0)", r"\infty", "nan", "inf", "", "y", "1e999",
]  # fmt: skip


def test_hostile_text_is_no_formula_and_costs_no_time():
    start = time.process_time()
    for text in HOSTILE:
        with pytest.raises(NoFormulaError):
            value(formula(text), {"x": 1.0} if text != "x" * 20_000 else {"x": 2.0})
        for row in PROBLEMS.values():
            for answer in (text, f"[{text}], [{text}]"):
                assert not any(grade(row, f"\\boxed{{{answer}}}"))
    assert time.process_time() - start < 5


@pytest.mark.parametrize("row", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_s_own_answer_is_right_and_text_without_a_box_is_not(row):
    assert all(grade(row, f"So the answer is {example(row)}."))
    assert not any(grade(row, example(row).replace("boxed", "text")))
    assert not any(grade(row, r"\boxed{7.7e7}")) and not any(grade(row, ""))


@pytest.mark.parametrize(
    ("name", "answer", "regimes"),
    [
        ("laplace", r"I(x) = \frac{e^x - 1}{x}", [True]),
        ("laplace", r"1.08 e^{x} x^{-1} + O(x^{-2})", [True]),
        ("laplace", r"I(x) \sim \frac{e^x}{x} \text{ for large } x", [True]),
        ("laplace", r"1.3 \frac{e^x}{x}", [False]),
        ("laplace", r"\frac{e^x}{\sqrt{x}}", [False]),
        ("laplace", r"-\frac{e^x}{x}", [False]),
        ("regimes", r"[0.5 \epsilon^{-3/4}, 0.81\epsilon^{-0.9}, 30/\epsilon]", [True, True, True]),
        ("regimes", r"0.5 \epsilon^{-0.75}; 0.8 \epsilon^{-0.95}; 40/\epsilon", [True, False, False]),
        ("regimes", r"0.5 \epsilon^{-0.75}, 30/\epsilon", [False, False, False]),
        ("ode", r"[y = 1 - x**3/18, y = (30(x-5))**(1/3) + 2.5]", [True, True]),
        ("ode", r"\left[y(x) = 1 - x^3/17.5,\ y(x) = 0.95\right]", [True, True]),
        ("ode", r"[y = 1, y = (30(x-5))^{1/2} + 2.5]", [False, False]),
        ("ode", r"[y = 1 - x^3/12, y = -6/(x-5)]", [False, False]),
        ("ode", r"[y = 1 - x^2/18, y = (30(x-5))^{1/3}]", [False, False]),
        ("roots", rf"[\pm 1, -1/\epsilon], {LARGE_ROOTS}", [True, True]),
        ("roots", rf"x = [1, -1, -1/\epsilon] }} \text{{ and }} \boxed{{ {LARGE_ROOTS}", [True, True]),
        ("roots", rf"[1, -1, 1/\epsilon], {LARGE_ROOTS}", [False, True]),
        ("roots", rf"[1, -1, -1/\epsilon], [{CUBE}]", [True, False]),
        ("roots", rf"[1, 1, -1/\epsilon], {LARGE_ROOTS.replace('2 i', '1.5 i')}", [False, False]),
        ("numeric", r"\epsilon \approx 0.40", [True]),
        ("numeric", r"\frac{3}{8}", [True]),
        ("numeric", "0.43", [False]),
        ("symbolic", r"\epsilon = a_1 a_2^{-7/2} a_3^{5/2}", [True]),
        ("symbolic", r"a1*a3**(5/2)/a2**(7/2)", [True]),
        ("symbolic", r"1.01 a_1 a_2^{-7/2} a_3^{5/2}", [False]),
        ("symbolic", r"a_1 a_2^{-5/2} a_3^{5/2}", [False]),
    ],
)  # fmt: skip
def test_right_answers_in_other_words_and_wrong_constants_and_powers(name, answer, regimes):
    row = PROBLEMS[name]
    text = f"First \\boxed{{0}}, but then\n\\boxed{{{answer}}}\nand no more."
    assert grade(row, text) == regimes
    share = sum(regimes) / len(regimes)
    assert judge_item(row, [text]) == {"within_10_percent": float(share == 1), "regimes_within_10_percent": share}


def test_boxes_and_lists_are_taken_apart():
    assert boxes(r"\boxed{a \boxed{b}} \boxed {c_{1}} \boxed{open") == [r"a \boxed{b}", "c_{1}"]
    assert boxes(r"\boxed{ \boxed{in}") == ["in"]
    assert split(r"\left[ \frac{1}{f(a, b)}, \ -1,\, 2\right]") == [r"\frac{1}{f(a, b)}", r"\ -1", r"\, 2"]


def write(folder, problems):
    file = folder / "problems.json"
    file.write_text(json.dumps(problems))
    return file


def test_a_model_is_asked_and_scored_from_a_local_file(root, tokenizer, tmp_path):
    file = write(tmp_path, PROBLEMS)
    settings = {"kind": "hard_math", "source": {"kind": "file", "path": str(file)}, "new_tokens": 8, "limit": 5}
    benchmark = make_benchmark(root, "hard-math", settings, files=[file])
    described = benchmark.json("benchmark.json")
    assert described["items"] == 5 and "this project's own" in described["source"]["grading"]
    assert described["source"]["problems"] == {"integral": 2, "ODE": 1, "nondimensionalization_numeric": 1,
                                               "polynomial_roots": 1}  # fmt: skip
    assert all(all(grade(row, row["right_answer"])) for row in rows_of(benchmark))
    model = make_model(root, "asked.fp32", tiny_llama(tokenizer, seed=4), tokenizer)
    evaluation = evaluate_model(root, model, benchmark)
    scores = evaluation.json("evaluation.json")
    assert (scores["score"], scores["kind"], scores["metric"]) == (0.0, "hard_math", "within_10_percent,none")
    assert len(samples_of(evaluation)) == 5 and all(len(sample["answers"]) == 1 for sample in samples_of(evaluation))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"question_type": "essay"}, "'essay' is not known; use one of"),
        ({"answer_val": None}, "answer_val is not a text"),
        ({"large_numerical": None}, "cannot be graded"),
        ({"large_eval_point": None}, "cannot be graded"),
        ({"answer_val": r"\boxed{\int f}"}, "cannot be graded"),
    ],
)
def test_a_problem_that_cannot_be_graded_is_named(tmp_path, change, sentence):
    row = PROBLEMS["laplace"] | change
    file = write(tmp_path, {"odd": row})
    with pytest.raises(UserError, match=f"problem 'odd'.*{sentence}"):
        make_benchmark(
            tmp_path, "x", {"kind": "hard_math", "source": {"kind": "file", "path": str(file)}}, files=[file]
        )


def test_an_address_is_pinned_by_the_digest(tmp_path, waits, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    content = json.dumps([PROBLEMS["numeric"]]).encode()
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(dict(self.headers))
            status = 503 if len(asked) == 1 else 404 if "missing" in self.path else 200
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content if status == 200 else b"")

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def fetch(name, digest):
        url = f"http://127.0.0.1:{server.server_port}/{name}.json"
        source = {"kind": "url", "url": url, "sha256": digest}
        return make_benchmark(tmp_path / name / digest[:4], name, {"kind": "hard_math", "source": source})

    right = hashlib.sha256(content).hexdigest()
    try:
        assert fetch("mini", right).json("benchmark.json")["source"]["sha256"] == right
        assert waits == [1] and all("authorization" not in {key.lower() for key in headers} for headers in asked)
        with pytest.raises(UserError, match=f"has the SHA-256 {right} and not {'0' * 64}; name the commit"):
            fetch("mini", "0" * 64)
        with pytest.raises(UserError, match="answers 404; correct the address"):
            fetch("missing", "1" * 64)
    finally:
        server.shutdown()
        server.server_close()


def test_every_type_of_question_is_in_these_tests():
    assert {row["question_type"] for row in PROBLEMS.values()} == set(QUESTION_TYPES)
