"""Items of the offline benchmarks, made from the held-out text of a corpus.

Every task asks a language model to prefer what was written over what was not. The wrong choices keep the cheap
cues of the true sentence (its first and last word, its capitals, its punctuation), so that knowing the language
is what separates them. Items depend on the text and the seed alone: not on the order of documents, on the
process, or on Python's hash seed.

Each sentence belongs to one task by its own hash, and a task takes its own sentences first, so that benchmarks share
none while the text suffices. Beyond them it takes what the other tasks would take last. Every item says in `cluster`
what it was made from: the same sentence has the same cluster in every task.
"""

import hashlib
import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from effllm.errors import UserError
from effllm.evaluation.sentences import PLAIN_WORD, Sentence, prose_sentences, spelled, split_word

CHOICES = {"word_order": 4, "adjacent_swap": 2, "word_substitution": 2}
# In an order that stays: which sentences are a task's own depends on it.
SENTENCE_TASKS = ("word_order", "adjacent_swap", "word_substitution", "next_word")
MINIMUM_SUBSTITUTED_LETTERS = 3
_PREFIX_WORDS = 6
_POOL_PER_ITEM = 32
_POOL_MINIMUM = 20_000

Item = dict[str, Any]


def choice_items(
    task: str, held_out: Iterable[str], train: Callable[[], Iterable[str]], items: int, seed: int
) -> list[Item]:
    """Items of a task in `CHOICES`: {"choices": texts, "answer": index of the true one, "sentence": text, "cluster"}.

    `held_out` and `train()` are texts of documents; `train` is called once or twice, for what it shares with the
    held-out text and for the frequencies of words. `UserError` if fewer than `items` sentences serve.
    """
    pool = unseen_sentences(held_out, train(), items, seed)
    alter = _alterer(task, pool, train)
    made: list[Item] = []
    for sentence in own_first(pool, task):
        rng = _generator(seed, task, sentence.text)
        wrong = alter(sentence.text.split(), rng)
        if wrong:
            position = rng.randrange(len(wrong) + 1)
            choices = [*wrong[:position], sentence.text, *wrong[position:]]
            made.append({"choices": choices, "answer": position, **_origin(sentence)})
        if len(made) == items:
            return made
    raise too_few(task, items, len(made), "sentences")


def next_word_items(held_out: Iterable[str], train: Iterable[str], items: int, seed: int) -> list[Item]:
    """Items {"context": text that ends before the last word, "answer": that word, "sentence": text, "cluster"}.

    The context is the preceding sentence of the paragraph, if there is one, and the sentence without its last
    word; the answer is without punctuation. Only sentences that end in a plain word serve; `UserError` if they are
    fewer than `items`.
    """
    made: list[Item] = []
    for sentence in own_first(unseen_sentences(held_out, train, items, seed), "next_word"):
        *words, last = sentence.text.split()
        before, answer, _ = split_word(last)
        if not before and answer.isascii() and answer.isalpha():
            context = " ".join([sentence.preceding, *words]).strip()
            made.append({"context": context, "answer": answer, **_origin(sentence)})
        if len(made) == items:
            return made
    raise too_few("next_word", items, len(made), "sentences")


def most_common_answer_share(items: list[Item]) -> float:
    """Score of always answering the most common last word: the chance level of next_word."""
    return Counter(item["answer"] for item in items).most_common(1)[0][1] / len(items)


def document_items(held_out: Iterable[tuple[str, str]], items: int, seed: int) -> list[Item]:
    """Items {"id", "text", "cluster"}: whole documents drawn by seed from (id, text) pairs; `UserError` if too few."""
    keyed = ((_priority(seed, text), id, text) for id, text in held_out if text.strip())
    chosen = heapq.nsmallest(items, keyed)
    if len(chosen) < items:
        raise too_few("perplexity", items, len(chosen), "documents")
    return [{"id": id, "text": text, "cluster": id} for _, id, text in chosen]


def own_first(sentences: list[Sentence], task: str) -> list[Sentence]:
    """`sentences` (in drawn order) with those of `task` first, then the others' from their ends."""
    # By another hash than the order, and not by the seed: benchmarks of different seeds share the partition.
    owner = [SENTENCE_TASKS[_words_digest(sentence)[0] % len(SENTENCE_TASKS)] for sentence in sentences]
    own = [sentence for sentence, whose in zip(sentences, owner, strict=True) if whose == task]
    others = [sentence for sentence, whose in zip(sentences, owner, strict=True) if whose != task]
    return own + others[::-1]


def unseen_sentences(held_out: Iterable[str], train: Iterable[str], items: int, seed: int) -> list[Sentence]:
    """Held-out prose sentences in an order drawn by seed, each once, without those whose words occur in `train`.

    Occurrence is judged by letters and digits alone, so that other punctuation or line breaks do not hide it.
    Memory holds the first max(20000, 32 per item) of that order, however long the text is.
    """
    pool: dict[tuple[str, ...], tuple[bytes, Sentence]] = {}
    size = max(_POOL_MINIMUM, _POOL_PER_ITEM * items)
    for text in held_out:
        for sentence in prose_sentences(text):
            entry = (_priority(seed, sentence.text), sentence)
            words = tuple(spelled(sentence.text))
            # Of two sentences with the same words the earlier in the drawn order stays, whichever came first.
            pool[words] = min(pool.get(words, entry), entry, key=_order)
        if len(pool) > 2 * size:
            pool = dict(heapq.nsmallest(size, pool.items(), key=lambda item: _order(item[1])))
    seen = _occurring(set(pool), train)
    unseen = (entry for words, entry in pool.items() if words not in seen)
    return [sentence for _, sentence in heapq.nsmallest(size, unseen, key=_order)]


def too_few(task: str, asked: int, available: int, what: str) -> UserError:
    """The sentence for a benchmark that asks for more items than its corpus gives."""
    return UserError(
        f"benchmark.items: {asked} items of {task} were asked for and the held-out text gives {available} "
        f"suitable {what}; set items to at most {available}, raise the corpus's held_out_fraction or take a "
        "larger corpus."
    )


def _origin(sentence: Sentence) -> Item:
    return {"sentence": sentence.text, "cluster": _words_digest(sentence).hex()}


def _words_digest(sentence: Sentence) -> bytes:
    """What two sentences with the same words have in common, whatever their punctuation."""
    return hashlib.blake2b(" ".join(spelled(sentence.text)).encode(), digest_size=8).digest()


def _order(entry: tuple[bytes, Sentence]) -> tuple[bytes, str, str]:
    return entry[0], entry[1].text, entry[1].preceding


def _occurring(sentences: set[tuple[str, ...]], texts: Iterable[str]) -> set[tuple[str, ...]]:
    """Those of `sentences` whose words stand in one of `texts` in a row; linear in the words of the texts."""
    by_prefix: dict[tuple[str, ...], list[tuple[str, ...]]] = defaultdict(list)
    for words in sentences:
        by_prefix[words[:_PREFIX_WORDS]].append(words)
    found: set[tuple[str, ...]] = set()
    for text in texts:
        running = spelled(text)
        for start, prefix in enumerate(zip(*(running[offset:] for offset in range(_PREFIX_WORDS)), strict=False)):
            for words in by_prefix.get(prefix, ()):
                if tuple(running[start : start + len(words)]) == words:
                    found.add(words)
    return found


def _alterer(task: str, pool: list[Sentence], train: Callable[[], Iterable[str]]) -> Callable[..., list[str]]:
    if task == "word_order":
        return _shuffles
    if task == "adjacent_swap":
        return _swap
    return Substitution(word_counts((sentence.text for sentence in pool), train()))


def _shuffles(words: list[str], rng: random.Random) -> list[str]:
    """Three different orders of the words between the first and the last, none of them the true one."""
    made: dict[tuple[str, ...], None] = {}
    for _ in range(50):
        middle = words[1:-1]
        rng.shuffle(middle)
        if middle != words[1:-1]:
            made[(words[0], *middle, words[-1])] = None
        if len(made) == CHOICES["word_order"] - 1:
            return [" ".join(order) for order in made]
    return []


def _swap(words: list[str], rng: random.Random) -> list[str]:
    """The sentence with two neighbours exchanged: different words, without punctuation, not first or last."""
    positions = [
        position
        for position in range(1, len(words) - 2)
        if PLAIN_WORD.fullmatch(words[position])
        and PLAIN_WORD.fullmatch(words[position + 1])
        and words[position].lower() != words[position + 1].lower()
    ]
    if not positions:
        return []
    left = rng.choice(positions)
    return [" ".join([*words[:left], words[left + 1], words[left], *words[left + 2 :]])]


class Substitution:
    """Replaces one word by another of the same frequency band, in the same case and punctuation."""

    def __init__(self, counts: Counter[str]):
        self._counts = counts
        bands: dict[int, list[str]] = defaultdict(list)
        for word in sorted(counts):
            if len(word) >= MINIMUM_SUBSTITUTED_LETTERS:
                bands[frequency_band(counts[word])].append(word)
        self._bands = bands

    def __call__(self, words: list[str], rng: random.Random) -> list[str]:
        """The altered sentence in a list, or an empty list if no word has a companion in its band."""
        positions = [position for position, word in enumerate(words) if self._companions(split_word(word)[1])]
        if not positions:
            return []
        position = rng.choice(positions)
        before, core, after = split_word(words[position])
        other = rng.choice([word for word in self._companions(core) if word != core.lower()])
        return [" ".join([*words[:position], before + _in_case_of(core, other) + after, *words[position + 1 :]])]

    def _companions(self, core: str) -> list[str]:
        """The band of `core`, itself included, if it holds another word too."""
        word = core.lower()
        regular = core.isascii() and core.isalpha() and core in (word, word.capitalize(), word.upper())
        if not regular or len(core) < MINIMUM_SUBSTITUTED_LETTERS or word not in self._counts:
            return []
        band = self._bands[frequency_band(self._counts[word])]
        return band if len(band) > 1 else []


def frequency_band(count: int) -> int:
    """The octave of a count: words in one band differ in frequency by less than a factor of two."""
    return count.bit_length() - 1


def word_counts(*sources: Iterable[str]) -> Counter[str]:
    """How often each ASCII-letter word occurs in the sources, in lower case, as words stand between spaces."""
    counts: Counter[str] = Counter()
    for texts in sources:
        for text in texts:
            cores = (split_word(word)[1] for word in text.split())
            counts.update(core.lower() for core in cores if core.isascii() and core.isalpha())
    return counts


def _in_case_of(model: str, word: str) -> str:
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word.capitalize() if model[0].isupper() else word


def _generator(seed: int, task: str, text: str) -> random.Random:
    return random.Random(hashlib.blake2b(f"{seed}\0{task}\0{text}".encode(), digest_size=16).digest())


def _priority(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}\0{text}".encode(), digest_size=16).digest()
