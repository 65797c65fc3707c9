"""Mistakes that a person makes: each is answered by one line that says what is wrong, where, and what to do."""

import pytest
from typed import pgolf, snapshot

# The words typed (RUN: the artifacts folder of a finished run `tiny`; HERE: an empty folder) and what the answer says.
MISTAKES = (
    ("trian", ["trian", "Did you mean 'train'?"]),
    ("train --iteration 5", ["--iteration", "--iterations"]),
    ("train --iterations many", ["--iterations", "must be a whole number"]),
    ("train --presset demo", ["--presset", "--preset"]),
    ("train --preset dmeo", ["'dmeo'", "did you mean demo?", "mini"]),
    ("train --set train.iteratons=5", ["train.iteratons", "did you mean train.iterations?"]),
    ("train --set iterations=5", ["iterations", "did you mean train.iterations?"]),
    ("train --set vocabsize=5", ["vocabsize", "vocab_size?"]),
    ("train --set train.iterations", ["write it as section.key=value"]),
    ("train --set train.iterations=abc", ["train.iterations must be a whole number"]),
    ("config trian.seconds", ["'trian.seconds'", "did you mean train.seconds?"]),
    ("help quantise", ["'quantise'", "did you mean quantize?"]),
    ("quantize --target-bytes 16XB", ["16XB", "16MB"]),
    ("quantize --method gptqq", ["quantize.method is 'gptqq'", "gptq"]),
    ("audit --evaluator slide", ["slide", "sliding or ttt"]),
    ("inspect --run tyni", ["no run 'tyni'", "did you mean tiny?"]),
    ("quantize --run nosuch", ["no run 'nosuch'", "its runs: tiny", "pgolf run"]),
    ("share tyni", ["no run 'tyni'", "did you mean tiny?"]),
    ("report nosuch", ["no run 'nosuch'", "its runs: tiny"]),
    ("inspect --run ../etc", ["'../etc'", "not a path"]),
    ("inspect --run=", ["--run ''", "name of a folder"]),
    ("runs --sort byts", ["'byts'", "did you mean bytes?"]),
    ("package --from RUN/tiny/train", ["holds a train stage", "needs quantize"]),
    ("eval-sliding --from RUN/tiny/tokenize", ["holds a tokenize stage", "train"]),
    ("eval-sliding --documents nofile.jsonl", ["nofile.jsonl does not exist"]),
    ("submission nosuch --name a --author b --github-id c", ["no run 'nosuch'", "its runs: tiny"]),
    ("submission tiny --name a --author b --github-id c", ["tiny has no package", "pgolf package --run tiny"]),
    ("submission tiny --name a --author b", ["Missing option '--github-id'"]),
    ("clean nosuch", ["no variant 'nosuch'"]),
    ("sample --top-p 2", ["top_p is 2", "at most 1"]),
    ("sample --count 0", ["0 continuations", "at least 1"]),
    ("compare tiny tiny", ["holds no eval-ttt", "evaluate it first"]),
    ("verify RUN/tiny/quantize", ["RUN/tiny/quantize", "not a package"]),
    ("verify RUN/tiny --tolerance -1", ["--tolerance is -1", "at least 0"]),
    ("verify RUN/tiny --cap -1", ["--cap", "'-1' is not a number of bytes"]),
    ("compress /", ["cannot read /", "name a file"]),
    ("budget --png HERE/t.jsonl", ["t.jsonl", "ends in .png"]),
    ("budget --png HERE/t.png", ["t.png exists", "--force"]),
    ("budget --from HERE/t.jsonl", ["t.jsonl", "not a model.pgz"]),
    ("eval-sliding --documents=", ["the name of a document file is empty"]),
    ("eval-sliding --documents /dev/null", ["/dev/null is neither a file nor a folder"]),
    ("submission tiny --name a --author b --github-id c --out=", ["--out", "the name is empty"]),
    ("compress HERE/t.jsonl --output HERE/t.jsonl --force", ["t.jsonl is the input itself"]),
    ("train --nproc 0", ["--nproc", "at least 1"]),
)
_RUNLESS = {"trian", "config", "help", "runs", "share", "submission", "compare", "verify", "report"}


@pytest.mark.parametrize(("typed", "says"), MISTAKES)
def test_every_mistake_has_an_answer_of_one_line(made, tmp_path, monkeypatch, typed, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text('{"text": "hello"}\n')
    (tmp_path / "t.png").write_text("somebody's")
    words = [word.replace("RUN", str(made)).replace("HERE", str(tmp_path)) for word in typed.split()]
    if words[0] not in ("trian", "help", "verify", "config"):
        words += ["--artifacts", str(made)]
    if words[0] not in _RUNLESS and "--run" not in typed:
        words += ["--run", "tiny"]
    before = snapshot(made), snapshot(tmp_path)
    result = pgolf(*words)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.output
    assert lines[0].startswith("pgolf: ")
    for text in says:
        assert text.replace("RUN", str(made)) in lines[0], lines[0]
    assert (snapshot(made), snapshot(tmp_path)) == before
