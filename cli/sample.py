"""`pgolf sample`: text that a model writes."""

import itertools
from typing import Annotated

import typer

from cli.common import Common, command

_EXAMPLES = ('pgolf sample "The function" --tokens 40', "pgolf sample --count 3 --temperature 1.0 --seed 7")


def add_to(app: typer.Typer) -> None:
    @command(app, "sample", ("artifacts", "run", "source", "name", "device", "threads", "json", "debug"), _EXAMPLES)
    def sample(
        common: Common,
        prompt: Annotated[str, typer.Argument(metavar="PROMPT", help="Beginning of the text; it may be empty.")] = "",
        tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 200,
        temperature: Annotated[float, typer.Option(help="Below 1 safer, above 1 bolder; 0: likeliest.")] = 0.8,
        top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this much.")] = 0.95,
        seed: Annotated[int, typer.Option(help="The same seed gives the same text.")] = 0,
        count: Annotated[int, typer.Option(help="So many texts at once.")] = 1,
    ) -> None:
        """Let a model continue a text. It writes as the text it was trained on does.

        It is the run's quantized model, or the newest before it; --from names any stage that holds one.
        """
        from cli.screen import activity, plain, say_json, write
        from pgolf.generate import Sampling
        from pgolf.saved import front

        settings = Sampling(tokens, temperature, top_p, seed)
        context, source = common.prepare("eval-sliding")  # the model that an evaluation would score
        with context.reporter.progress("load the model"):
            model = front.of_stage(source, context.runtime)
            pieces = model.stream(prompt, settings, count)
            first = next(pieces, None)
        texts = [prompt] * max(count, 0)
        if not common.json:
            activity.end()
            write(plain(prompt))
        for row, text in itertools.chain(() if first is None else (first,), pieces):
            texts[row] += text
            if row == 0 and not common.json:
                write(plain(text))
        if common.json:
            say_json({"path": str(model.stage.path), "texts": texts})
            return
        write("\n")
        for text in texts[1:]:
            write(plain(f"---\n{text}\n"))
