"""Settings of test-time training. Every method scores text before it learns from it."""

from dataclasses import dataclass

from pgolf.errors import PgolfError

OPTIMIZERS = ("sgd", "adam")
SCHEDULES = ("constant", "cosine")
ROLES = ("all", "attn", "mlp", "embed", "control")
MAPS = ("attn.c_q", "attn.c_k", "attn.c_v", "attn.proj", "mlp.fc", "mlp.proj")
"""Linear maps of a block, by the end of their names."""


@dataclass(frozen=True)
class TttConfig:
    method: str = "sgd"
    """`sgd`: weights learn chunk by chunk over the stream; `lora`: adapters per document; `in-place`: the last MLP's
    down-projection as fast weights; `phased`: `lora` with global steps on scored documents between its phases."""
    seconds: float = 0.0
    """Wall clock of the whole evaluation: learning stops when what is left is needed for scoring; refused before it
    starts when scoring alone would take longer. 0: no cap."""
    chunk_tokens: int = 64
    """Targets scored between two updates. Up to `evaluate.stride` it is dynamic evaluation (arXiv 1709.07432) and the
    scoring forward is the learning one; the records take 32,768 on a stream a hundred times as long."""
    epochs: int = 1
    """Passes over a chunk once it is scored (the records: 3); more than one only for chunks of several windows."""
    optimizer: str = "adam"
    """`adam` without momentum, or `sgd` with momentum 0.9 and clipping at 1 (the records')."""
    lr: float = 3e-4
    """Learning rate of the global weights."""
    beta2: float = 0.999
    """Decay of adam's second moment."""
    decay: float = 0.1
    """`sgd`: decay toward the initial weights per step (as in dynamic evaluation). A memory of about one document
    scored better than a permanent one."""
    schedule: str = "constant"
    """`constant`, or `cosine` to zero over the chunks (the records')."""
    weights: tuple[str, ...] = ("all",)
    """Roles of the weights that learn: `all`, or some of `attn`, `mlp`, `embed`, `control`."""
    output_lr: tuple[float, ...] = (1.0, 1.5, 1.0, 0.5)
    """Learning rates of the output's fast weights, by length of their context (0 to 3 tokens); they learn token by
    token and are reset at every document. Empty: off."""
    output_stream_lr: tuple[float, ...] = (0.13, 0.5, 0.6)
    """Learning rates of the fast weights that are never reset, by length of their context (1 to 3 tokens)."""
    mixing_lr: float = 0.0
    """`sgd` with fast output weights: learning rate of the context mixing over them (0.005 on held-out text of the
    mini track); 0: off."""
    lora_rank: int = 8
    """Rank of the adapters."""
    lora_alpha: float = 16.0
    """Adapters are multiplied by alpha / rank."""
    lora_lr: float = 6e-3
    """Learning rate of the adapters (adam, betas 0 and 0.99, as in record 2026-04-27)."""
    lora_decay: float = 0.0
    """Weight decay of the adapters, times the rate a step (adamw; #2135: 2)."""
    lora_without: tuple[str, ...] = ()
    """Maps that get no adapters, such as `attn.c_q` and `attn.c_v` (PR #1953)."""
    lora_chunks: tuple[tuple[int, ...], ...] = ()
    """Chunks by the document's length, `[below, chunk]` with the shortest first; `chunk_tokens` beyond. The newest
    records: [[256, 8], [2000, 24]] and 48."""
    lora_documents: int = 32
    """Number of documents adapted side by side, each with separate adapters."""
    in_place_lr: float = 0.003
    """Rate of the fast weights, whose gradients are divided by their root mean square."""
    phases: int = 3
    """`phased`: number of groups of documents between which the global weights learn from all scored text (PR #1626:
    3)."""
    phase_share: float = 0.0
    """`phased`: share of the documents that comes before the last phase, divided evenly among the others (#2135: 0.05).
    0: all phases alike."""

    def __post_init__(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise PgolfError(f"ttt.{name} is {getattr(self, name)!r}; choose one of {', '.join(known)}")
        wrong = [role for role in self.weights if role not in ROLES]
        if wrong or not self.weights:
            raise PgolfError(f"ttt.weights holds {wrong or 'nothing'}; choose from {', '.join(ROLES)}")
        unknown = [name for name in self.lora_without if name not in MAPS]
        if unknown:
            raise PgolfError(f"ttt.lora_without holds {unknown}; choose from {', '.join(MAPS)}")
        lengths = [pair[0] for pair in self.lora_chunks]
        if any(len(pair) != 2 or min(pair) < 1 for pair in self.lora_chunks) or lengths != sorted(set(lengths)):
            raise PgolfError(
                f"ttt.lora_chunks is {[*map(list, self.lora_chunks)]}; give pairs [below, chunk] of whole numbers from "
                "1 on, with increasing lengths"
            )
        for name in ("chunk_tokens", "lora_rank", "lora_documents", "phases"):
            if getattr(self, name) < 1:
                raise PgolfError(f"ttt.{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("seconds", "epochs", "lr", "lora_lr", "lora_decay", "in_place_lr"):
            if getattr(self, name) < 0:
                raise PgolfError(f"ttt.{name} is {getattr(self, name)}; it must be at least 0")
        if self.mixing_lr and (self.method != "sgd" or not (self.output_lr or self.output_stream_lr)):
            raise PgolfError(
                f"ttt.mixing_lr is {self.mixing_lr:g}, but contexts are mixed over the fast output weights of sgd "
                "alone; set ttt.method and ttt.output_lr so, or ttt.mixing_lr = 0"
            )
        for name, most in (("output_lr", 4), ("output_stream_lr", 3)):
            rates = getattr(self, name)
            if len(rates) > most or min(rates, default=0.0) < 0:
                raise PgolfError(f"ttt.{name} is {list(rates)}; give at most {most} rates, none negative")
        if not 0.0 <= self.decay < 1.0 or not 0.0 <= self.beta2 < 1.0:
            raise PgolfError("ttt.decay and ttt.beta2 must lie in [0, 1)")
        if not 0.0 <= self.phase_share < 1.0:
            raise PgolfError(f"ttt.phase_share is {self.phase_share:g}; it must lie in [0, 1)")
