"""Starting several processes: what they are told."""

from cli.launch import without_option


def test_worker_processes_do_not_get_the_nproc_option() -> None:
    arguments = ["train", "--nproc", "2", "--run", "nproc", "--set", "model.dim=64"]
    assert without_option(arguments, "--nproc") == ["train", "--run", "nproc", "--set", "model.dim=64"]
    assert without_option(["train", "--nproc=2"], "--nproc") == ["train"]
