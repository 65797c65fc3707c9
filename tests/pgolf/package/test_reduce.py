"""A program for one run: arguments and settings put in place, what has no use gone, modules linked into one."""

import pytest

from pgolf.errors import PgolfError
from pgolf.package.arguments import settle
from pgolf.package.fold import Folder
from pgolf.package.link import link
from pgolf.package.specialize import specialize


def fold(**sources: str) -> dict[str, str]:
    return Folder().fold({name.replace("__", "."): text for name, text in sources.items()})


def test_an_argument_that_is_always_the_same_is_put_in_place():
    source = "def f(x, how='a', times=1):\n    return x if how == 'a' else times\ny = f(1, 'a')\nz = f(2)\n"
    left = Folder().fold(settle({"app": source}))["app"]
    assert left == "def f(x):\n    return x\ny = f(1)\nz = f(2)\n"


@pytest.mark.parametrize(
    "call", ["f(1, *rest)", "f(1, **rest)", "f(1, 2)", "g = f", "f(1, other)", "[f for f in (1, 2)]"]
)
def test_an_argument_that_may_differ_stays(call):
    source = f"def f(x, how=1):\n    return x, how\ny = f(1)\n{call}\n"
    assert ", how)" in settle({"app": source})["app"]


def test_branches_names_and_attributes_without_use_go():
    source = """
class A:
    def __init__(self):
        self.off = None
        self.unread = 3
        self.kept = 4

    def f(self, n):
        size, other = 5, n
        if self.off is not None or (n and False):
            return 1
        return (other + size, self.kept)
"""
    left = fold(pgolf__model__a=source)["pgolf.model.a"]
    for gone in ("off", "unread", "size", "return 1"):
        assert gone not in left
    assert "other + 5" in left


def test_a_constant_of_the_model_is_not_that_of_a_module_or_of_others():
    model = "class A:\n    def __init__(self):\n        self.factor = 1.0\n        self.gain = None\n"
    other = "from pgolf import feedback\ndef f(x, model):\n    return feedback.factor(x), x.gain, model.gain\n"
    left = fold(pgolf__model__a=model, pgolf__b=other, pgolf__feedback="def factor(x):\n    return x\n")
    assert "(feedback.factor(x), x.gain, None)" in left["pgolf.b"]


def test_settings_are_known_under_local_names_and_in_fields():
    source = """
class A:
    settings: EvaluateConfig

    def f(self):
        settings, n = (self.settings, 1)
        return settings.stride + self.settings.stride
"""
    left = specialize({"app": source}, {"evaluate": {"stride": 64}}, {})["app"]
    assert "return 64 + 64" in left


LINKED = {
    "app": "",
    "app.start": "from app import first, second as other\nfrom app.second import helper\n"
    "def main():\n    value = 5\n    return first.value() + other.value() + helper(value) + other.range(1)\n",
    "app.first": "import math\ndef value():\n    return int(math.sqrt(16))\n",
    "app.second": "import math\nCACHE = [value for value in (3,)]\ndef value():\n    return CACHE[0]\n"
    "def helper(value):\n    return value + len(list(map(lambda value: value, range(2, 3))))\n"
    "def range(a, b=0):\n    return (a, a)\n",
}


def test_linked_modules_do_what_they_did():
    linked = link({**LINKED, "app.second": LINKED["app.second"].replace("return (a, a)", "return a")}, "app.start")
    assert list(linked)[-1] == "app.start"
    assert "app" not in linked
    assert sum("import" in text for text in linked.values()) == 1
    one: dict = {}
    for text in linked.values():
        exec(text, one)
    with pytest.raises(TypeError):  # `range` of app.second is its own in there, not the builtin
        one["main"]()
    del one["second_range"]
    renamed = {name: text.replace("second_range(2, 3)", "range(2, 3)") for name, text in linked.items()}
    for text in renamed.values():
        exec(text, one)
    assert one["main"]() == 4 + 3 + 6 + 1


def test_a_module_as_a_value_cannot_be_linked():
    with pytest.raises(PgolfError, match=r"uses the module app\.a as a value"):
        link({"app": "", "app.a": "x = 1\n", "app.b": "from app import a\nprint(a)\n"}, "app.b")
