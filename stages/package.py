"""Package a quantized model: one file of coded weights and what runs it, counted to the byte against the cap."""

from pgolf.codec import container
from pgolf.errors import CheckFailed
from pgolf.quant import file as quantized_file
from pgolf.store import Stage
from stages.context import StageContext


def package(context: StageContext, source: Stage) -> Stage:
    """Make the `package` stage from a `quantize` stage.

    Raises CheckFailed when what counts is over `package.cap_bytes`; then nothing is written.
    """
    settings = context.config.package
    with context.build("package", inputs={"model": source}, sections=("package",)) as build:
        if build.existing is None:
            tokenizer = source.ancestor("tokenize").file("tokenizer.model").read_bytes()
            model = container.encode(quantized_file.load(source.file("quantized.safetensors")), coder=settings.coder)
            build.writer.path("model.pgz").write_bytes(model)
            build.writer.path("tokenizer.model").write_bytes(tokenizer)
            ledger = [
                {"file": "model.pgz", "bytes": len(model), "counted": True},
                {"file": "tokenizer.model", "bytes": len(tokenizer), "counted": settings.count_tokenizer},
            ]
            total = sum(int(row["bytes"]) for row in ledger if row["counted"])
            build.metrics |= {"model_bytes": len(model), "total_bytes": total}
            build.details |= {"ledger": ledger, "cap_bytes": settings.cap_bytes}
            if total > settings.cap_bytes:
                raise CheckFailed(
                    f"the package has {total:,} bytes, {total - settings.cap_bytes:,} over the cap of "
                    f"{settings.cap_bytes:,}; make it fit with pgolf quantize --target-bytes {settings.cap_bytes}"
                )
    return build.stage
