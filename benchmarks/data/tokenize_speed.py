"""Documents per second of pgolf's tokenizing and of SentencePiece alone with two threads, in one run.

    python benchmarks/data/tokenize_speed.py DOCUMENTS [--megabytes N] [--tokenizer FILE.model]

SentencePiece alone is its own batch call on documents that are already in memory; pgolf's figure is for what the stage
does: batches, BOS, the check that every document decodes to itself, uint16, shards on disk, and (second row) reading
and unpacking the file. The two take turns, three times each; the best of each counts; processor
seconds are given too, since they hold on a busy machine. `--megabytes` repeats the
documents (numbered, so that none is the same) to that size, streamed, and reports the peak memory.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pgolf import data
from pgolf.config import TokenizerConfig
from pgolf.tokens import encode, shards, tokenizer


def stream(documents: Iterator[bytes] | list[bytes], used: tokenizer.Tokenizer) -> tuple[float, int, int]:
    start = time.perf_counter()
    count = size = 0
    with tempfile.TemporaryDirectory() as folder, shards.ShardWriter(Path(folder), "x", 100_000_000) as writer:
        for batch in encode.encode_documents(used, documents, threads=2):
            writer.write(batch.tokens)
            count += batch.documents
            size += batch.bytes
    return time.perf_counter() - start, count, size


def repeated(path: str, size: int) -> Iterator[bytes]:
    produced = round_number = 0
    while produced < size:
        for document in data.documents(data.source(path)):
            text = b"%d " % round_number + document
            produced += len(text)
            yield text
            if produced >= size:
                return
        round_number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("documents")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--caseops", action="store_true")
    parser.add_argument("--megabytes", type=int, default=0)
    parser.add_argument("--limit", type=int, default=12_000, help="documents of the comparison")
    arguments = parser.parse_args()
    found = data.documents(data.source(arguments.documents))
    documents = [document for document, _ in zip(found, range(arguments.limit), strict=False)]
    if arguments.tokenizer:
        used = tokenizer.Tokenizer.open(arguments.tokenizer)
    else:
        used = tokenizer.train(documents, TokenizerConfig(caseops=arguments.caseops))
    if arguments.megabytes:
        del documents
        seconds, count, size = stream(repeated(arguments.documents, arguments.megabytes * 1_000_000), used)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(
            f"{size:,} bytes, {count:,} documents in {seconds:.1f} s ({count / seconds:,.0f}/s), peak {peak:,.0f} MiB"
        )
        return
    texts = [document.decode() for document in documents]
    alone, ours, alone_cpu, ours_cpu = [], [], [], []
    for _ in range(3):
        start, cpu = time.perf_counter(), time.process_time()
        used.sp.encode(texts, num_threads=2)
        alone.append(time.perf_counter() - start)
        alone_cpu.append(time.process_time() - cpu)
        cpu = time.process_time()
        ours.append(stream(documents, used)[0])
        ours_cpu.append(time.process_time() - cpu)
    start = time.perf_counter()
    reader = data.documents(data.source(arguments.documents))
    stream((document for document, _ in zip(reader, range(arguments.limit), strict=False)), used)
    with_reading = time.perf_counter() - start
    count = len(documents)
    print(f"sentencepiece alone, 2 threads  {count / min(alone):8,.0f} documents/s")
    print(f"processor seconds: sentencepiece {min(alone_cpu):.2f}, pgolf {min(ours_cpu):.2f}")
    for name, seconds in (("pgolf", min(ours)), ("pgolf with reading the file", with_reading)):
        print(f"{name:<30}  {count / seconds:8,.0f} documents/s  {min(alone) / seconds:.0%}")


if __name__ == "__main__":
    main()
