"""The sampler's memory does not grow with the corpus."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from effllm.data.schema import SCHEMA

_DOCUMENTS_PER_FILE = 20_000
# Measured: 55 MiB, of which the digests of 100,000 texts take about 13 and the index of held-out 5-grams, full by then,
# about 34. The rest is memory that the allocators keep, which depends on how threads take turns.
# A sampler that held texts, batches or shards would need the 160 MB that come in addition.
_GROWTH_LIMIT_MIB = 128
_MEASURE = """
import json, sys
from pathlib import Path
from effllm.data.corpus import sample
from effllm.data.sources.files import FilesSource
from effllm.data.settings import Corpus

output, *paths = map(Path, sys.argv[1:])
source = {"kind": "files", "paths": ["unused.jsonl"]}
config = Corpus.model_validate({"source": source, "sample_fraction": 0.99, "held_out_fraction": 0.05})
summary = sample(FilesSource(paths), config, output, output)
# Not ru_maxrss, which a process inherits from the one that started it.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps([summary.seen, int(peak.split()[1]) / 1024]))
"""


def write_file(path, number):
    """20,000 documents of 2,000 characters, words of two, that hardly compress: 40 MB of text."""
    random = np.random.default_rng(number)
    texts = [random.bytes(667).hex(" ")[:2000] for _ in range(_DOCUMENTS_PER_FILE)]
    columns = {field.name: pa.nulls(_DOCUMENTS_PER_FILE, field.type) for field in SCHEMA}
    columns["text"] = texts
    columns["id"] = [f"{number}/{index}" for index in range(_DOCUMENTS_PER_FILE)]
    columns["token_count"] = [1400] * _DOCUMENTS_PER_FILE
    pq.write_table(pa.table(columns, schema=SCHEMA), path, row_group_size=2000)
    return path


@pytest.mark.slow
def test_peak_memory_grows_by_less_than_128_mib_while_the_text_grows_from_40_to_200_mb(tmp_path):
    paths = [write_file(tmp_path / f"{number}.parquet", number) for number in range(5)]
    peaks = {}
    for count in (1, 5):
        output = tmp_path / f"output-{count}"
        output.mkdir()
        argv = [sys.executable, "-c", _MEASURE, output, *paths[:count]]
        documents, peaks[count] = json.loads(
            subprocess.run(argv, check=True, capture_output=True).stdout.splitlines()[-1]
        )
        assert documents == count * _DOCUMENTS_PER_FILE
    assert peaks[5] - peaks[1] < _GROWTH_LIMIT_MIB, peaks
