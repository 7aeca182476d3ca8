"""The items of the offline benchmarks against their definitions."""

import os
import random
import subprocess
import sys
from collections import Counter

import pytest

from effllm.errors import UserError
from effllm.evaluation.held_out import (
    CHOICES,
    SENTENCE_TASKS,
    choice_items,
    document_items,
    frequency_band,
    most_common_answer_share,
    next_word_items,
    unseen_sentences,
    word_counts,
)
from effllm.evaluation.sentences import MAXIMUM_WORDS, MINIMUM_WORDS, is_prose, prose_sentences, spelled, split_word


def items_of(task, texts, count=100, seed=0):
    held_out, train = texts
    if task == "next_word":
        return next_word_items(held_out, train, count, seed)
    return choice_items(task, held_out, lambda: train, count, seed)


def wrong_choices(item):
    return [choice for index, choice in enumerate(item["choices"]) if index != item["answer"]]


@pytest.mark.parametrize("task", CHOICES)
def test_the_answer_is_the_true_sentence_and_the_choices_differ(texts, task):
    held_out = {sentence.text for text in texts[0] for sentence in prose_sentences(text)}
    for item in items_of(task, texts):
        assert item["choices"][item["answer"]] == item["sentence"]
        assert item["sentence"] in held_out
        assert len(set(item["choices"])) == CHOICES[task]


def test_word_order_keeps_the_words_and_the_cues_at_both_ends(texts):
    for item in items_of("word_order", texts):
        true = item["sentence"].split()
        for choice in wrong_choices(item):
            words = choice.split()
            assert Counter(words) == Counter(true)
            assert (words[0], words[-1]) == (true[0], true[-1])


def test_adjacent_swap_exchanges_exactly_one_pair_of_different_neighbours(texts):
    for item in items_of("adjacent_swap", texts):
        true, words = item["sentence"].split(), wrong_choices(item)[0].split()
        differing = [index for index, (left, right) in enumerate(zip(true, words, strict=True)) if left != right]
        assert len(differing) == 2
        left, right = differing
        assert right == left + 1
        assert (words[left], words[right]) == (true[right], true[left])
        assert true[left].lower() != true[right].lower()
        assert left > 0
        assert right < len(true) - 1


def test_word_substitution_replaces_one_word_by_another_of_its_frequency_band_in_its_case(texts):
    held_out, train = texts
    counts = word_counts([sentence.text for sentence in unseen_sentences(held_out, train, 100, 0)], train)
    for item in items_of("word_substitution", texts):
        true, words = item["sentence"].split(), wrong_choices(item)[0].split()
        ((old, new),) = [pair for pair in zip(true, words, strict=True) if pair[0] != pair[1]]
        (before, old_core, after), (new_before, new_core, new_after) = split_word(old), split_word(new)
        assert (before, after) == (new_before, new_after)
        assert old_core.lower() != new_core.lower()
        assert old_core[0].isupper() == new_core[0].isupper()
        old_count, new_count = counts[old_core.lower()], counts[new_core.lower()]
        assert frequency_band(old_count) == frequency_band(new_count)
        assert 0.5 < new_count / old_count < 2


def test_next_word_context_and_answer_make_up_the_sentence(texts):
    for item in items_of("next_word", texts):
        rebuilt = f"{item['context']} {item['answer']}"
        assert item["sentence"].startswith(rebuilt[rebuilt.rindex(item["sentence"][:20]) :])
        assert item["answer"].isalpha() and not item["context"].endswith(" ")


def test_next_word_gives_the_sentence_before_as_context():
    document = (
        "The first sentence of this paragraph says very little indeed. "
        "The second one follows it and ends in a word of some interest."
    )
    (item,) = [item for item in next_word_items([document], [], 2, 0) if item["answer"] == "interest"]
    assert item["context"] == document.removesuffix(" interest.")


def test_next_word_chance_is_the_score_of_the_constant_answer(texts):
    items = items_of("next_word", texts)
    scores = {word: sum(item["answer"] == word for item in items) / len(items) for word in {i["answer"] for i in items}}
    assert most_common_answer_share(items) == max(scores.values())


@pytest.mark.parametrize("task", CHOICES)
def test_guessing_scores_the_chance_level(texts, task):
    items, rng = items_of(task, texts), random.Random(1)
    guesses = 20_000
    right = sum(
        item["answer"] == rng.randrange(len(item["choices"])) for item in (rng.choice(items) for _ in range(guesses))
    )
    chance = 1 / CHOICES[task]
    assert abs(right / guesses - chance) < 4 * (chance * (1 - chance) / guesses) ** 0.5


@pytest.mark.parametrize("task", CHOICES)
def test_no_position_of_the_answer_is_favoured(texts, task):
    items = [item for seed in range(10) for item in items_of(task, texts, seed=seed)]
    chance = 1 / CHOICES[task]
    for position in range(CHOICES[task]):
        share = sum(item["answer"] == position for item in items) / len(items)
        assert abs(share - chance) < 4 * (chance * (1 - chance) / len(items)) ** 0.5


def test_benchmarks_share_no_sentence_while_the_text_suffices_and_few_beyond(texts):
    held_out, train = texts
    available = len(unseen_sentences(held_out, train, 10, 0))

    def clusters(count, seeds):
        return [
            {item["cluster"] for item in items_of(task, texts, count, seed)}
            for task, seed in zip(SENTENCE_TASKS, seeds, strict=True)
        ]

    for seeds in ((0, 0, 0, 0), (0, 1, 2, 3)):
        few = clusters(available // 8, seeds)
        assert len(set.union(*few)) == sum(map(len, few)) == 4 * (available // 8)
    # Two of four tasks that want more than their quarters: they meet only once both have taken all the rest.
    many = [{item["cluster"] for item in items_of(task, texts, available // 3)} for task in ("word_order", "next_word")]
    assert len(many[0] & many[1]) < available // 8


def test_a_cluster_is_the_sentence_whatever_the_task_and_the_punctuation(texts):
    by_cluster = {}
    for task in SENTENCE_TASKS:
        for item in items_of(task, texts):
            by_cluster.setdefault(item["cluster"], set()).add(tuple(spelled(item["sentence"])))
    assert all(len(words) == 1 for words in by_cluster.values())
    assert len({words for (words,) in by_cluster.values()}) == len(by_cluster)


@pytest.mark.parametrize("task", [*CHOICES, "next_word"])
def test_no_item_stands_in_the_training_text(texts, task):
    train = [" " + " ".join(spelled(text)) + " " for text in texts[1]]
    for item in items_of(task, texts):
        words = " " + " ".join(spelled(item["sentence"])) + " "
        assert not any(words in text for text in train)


def test_a_sentence_of_the_training_text_is_left_out_whatever_its_punctuation():
    kept = "The keeper of the light walks down the hill at dawn."
    seen = "The master of the ship, who is old, sleeps in the afternoon."
    train = ["so the master of the ship\n   who is OLD sleeps in the afternoon and snores"]
    sentences = unseen_sentences([f"{kept} {seen}"], train, 5, 0)
    assert [sentence.text for sentence in sentences] == [kept]


def test_items_repeat_with_the_seed_and_change_with_it(texts):
    first, again, other = (items_of("word_order", texts, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert [item["sentence"] for item in first] != [item["sentence"] for item in other]


@pytest.mark.parametrize("task", [*CHOICES, "next_word"])
def test_items_do_not_depend_on_the_order_of_documents(texts, task):
    held_out, train = texts
    assert items_of(task, texts) == items_of(task, (held_out[::-1], train[::-1]))


def test_items_are_the_same_in_processes_with_different_hash_seeds(texts, tmp_path):
    program = (
        "import json, sys, pydoc_data.topics as t\n"
        "from effllm.evaluation.held_out import choice_items\n"
        "topics = [text for _, text in sorted(t.topics.items())]\n"
        "train = topics[1::4]\n"
        "print(json.dumps(choice_items('word_substitution', topics[::4], lambda: train, 50, 3)))\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            check=True,
        ).stdout
        for hash_seed in ("0", "1")
    }
    assert len(outputs) == 1


def test_documents_are_drawn_by_seed_and_not_by_order(texts):
    pairs = [(str(index), text) for index, text in enumerate(texts[0])]
    drawn = document_items(pairs, 5, 0)
    assert drawn == document_items(pairs[::-1], 5, 0)
    assert all(dict(pairs)[item["id"]] == item["text"] for item in drawn)
    assert drawn != document_items(pairs, 5, 1)


def test_too_few_items_are_refused_with_both_numbers_and_the_remedy(texts):
    with pytest.raises(UserError, match=r"items: 9999 items of adjacent_swap .* gives \d+ .* larger corpus"):
        items_of("adjacent_swap", texts, count=9999)
    with pytest.raises(UserError, match="9999 items of next_word"):
        items_of("next_word", texts, count=9999)
    with pytest.raises(UserError, match="gives 2 suitable documents"):
        document_items([("a", "x"), ("b", "y"), ("c", "  ")], 3, 0)


@pytest.mark.parametrize(
    "text",
    [
        "for i in range(10): print(i) and then go on with the next number.",
        "this sentence has no capital at its beginning and is a fragment.",
        "The sentence has no end mark and was cut out of something",
        "Too short to say much.",
        "Call foo(bar) with the name of the file you want to read now.",
        "The values are x = 1 and y = 2 in all of the cases shown here.",
        "1 2 3 4 5 6 7 8 9 10.",
    ],
)
def test_code_tables_and_fragments_are_no_prose(text):
    assert not is_prose(text)


def test_sentences_are_cut_from_prose_and_not_from_code_or_lists():
    document = (
        "The statement binds a name to a new value in this scope. It does not, e.g. in loops, copy\n"
        "the value that was bound to the name before.\n\n"
        "   >>> this_is = code(1)\n\n"
        "* An entry of a list that is long enough to look like a sentence.\n"
    )
    found = list(prose_sentences(document))
    assert [sentence.text for sentence in found] == [
        "The statement binds a name to a new value in this scope.",
        "It does not, e.g. in loops, copy the value that was bound to the name before.",
    ]
    assert [sentence.preceding for sentence in found] == ["", found[0].text]
    assert all(MINIMUM_WORDS <= len(sentence.text.split()) <= MAXIMUM_WORDS for sentence in found)
