"""GBNF grammars: what llama.cpp can follow passes, what would hang, crash or print is refused first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny_gguf import tiny_parts, write

from tinyedge.errors import GrammarError
from tinyedge.structured.grammar import check_grammar

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws
object ::= "{" ws (  # a comment
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws
array  ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) )* "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws
ws ::= | " " | "\n" [ \t]{0,20}
"""

GOOD = {
    "json": JSON,
    "literal": 'root ::= "a\\n\\"\\\\\\x41\\u00e9\\U0001F600é"',
    "classes": "root ::= [^a-z\\]\\-] [a-] [-a] [\\u3040-\\u309F]",
    "windows line ends": 'root ::= a |\r\n b\r\na ::= "a"\r\nb ::= "b"\r\n',
    "a rule on the next line": 'root ::=\n  "a"\n\n# end',
    "empty alternatives": 'root ::= | a | ""\na ::= [x] |',
    "repetitions": "root ::= [a]{2} [b]{1,} [c]{0,3} [d]{2,5} [e]? [f]* [g]+ [h]{0} [i]{0,0}",
    "most beyond the limit": "root ::= [a]{1,3000}",
    "right recursion": 'root ::= "a" root | "b"',
    "unused rules": 'root ::= "a"\nother ::= "b" other',
    "any character": "root ::= .{2,3}",
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD.keys())
def test_what_llama_cpp_follows_passes(text: str) -> None:
    check_grammar(text)


BAD = {
    "empty": ("", "no rule `root`"),
    "no root": ('a ::= "b"', "no rule `root`"),
    "nothing defined": ("root ::= thing", "line 1, column 10: there is no rule 'thing'"),
    "twice": ('root ::= "a"\nroot ::= "b"', "line 2, column 1: there are two rules 'root'"),
    "no name": ('::= "a"', "line 1, column 1: the name of a rule is missing"),
    "no sign": ('root = "a"', "line 1, column 6: ::= is missing"),
    "open literal": ('root ::= "abc', "a quotation mark is not closed"),
    "open class": ("root ::= [abc", "a bracket is not closed"),
    "empty class": ("root ::= []", "the brackets are empty"),
    "open group": ('root ::= ("a"', "line 1, column 10: a parenthesis is not closed"),
    "closed group": ('root ::= "a")', "')' cannot stand here"),
    "alternative on its own line": ('root ::= "a"\n  | "b"', "line 2, column 3: the name of a rule is missing"),
    "escape": (r'root ::= "\q"', "line 1, column 11: an unknown escape"),
    "short escape": (r'root ::= "\x4"', "an unknown escape"),
    "no character": (r'root ::= "\UFFFFFFFF"', "an escape that is no character"),
    "star first": ('root ::= * "a"', "there is nothing before the repetition"),
    "no number": ("root ::= [a]{,3}", "a number of repetitions is missing"),
    "open brace": ("root ::= [a]{3", "a brace is not closed"),
    "most below least": ("root ::= [a]{5,2}", "the most repetitions are fewer than the least"),
    "too many": ("root ::= [a]{1000000}", "at most 2000 repetitions"),
    "endless digits": ("root ::= [a]{" + "9" * 100_000 + "}", "at most 2000 repetitions"),
    "repetitions of repetitions": ('root ::= ("a"?){2000}', "repetitions of repetitions"),
    "a long literal many times": ('root ::= "' + "a" * 100_000 + '"{2000}', "elements"),
    "left recursion": ('root ::= root "a" | "b"', "the rule 'root' of the grammar begins with itself"),
    "indirect": ('root ::= a\na ::= b "x"\nb ::= root', "begins with itself"),
    "hidden": ('root ::= b root "y" | "x"\nb ::= c\nc ::= "z" |', "begins with itself"),
    "a star of what may be empty": ('root ::= ("a"?)*', "begins with itself"),
    "endless": ('root ::= "a" root', "no text satisfies the grammar"),
    "no such character": ("root ::= [z-a]", "no text satisfies the grammar"),
    "nul": ('root ::= "a\0"', "a character that no text can hold"),
    "surrogate": ('root ::= "\ud800"', "a character that no text can hold"),
    "token": ("root ::= <[5]>", "not supported"),
    "not token": ("root ::= !<think>", "not supported"),
    "parentheses": ("root ::= " + "(" * 100_000 + '"a"', "nested more than 64 deep"),
    "a chain": ("\n".join(f"a{i} ::= a{i + 1}" for i in range(6000)) + '\na6000 ::= "x"\nroot ::= a0', "too deep or too often"),
    "doublings": ("\n".join(f"a{i} ::= a{i + 1} | a{i + 1}" for i in range(60)) + '\na60 ::= "x"\nroot ::= a0', "too often"),
    "stacks double with each character": ('root ::= "a" root "b" | "a" root "c" | "x"', "too ambiguous"),
    "stacks multiply at once": ('root ::= (("a"?){100}){100}', "too ambiguous"),
    "empty rules multiply": ('a ::= ("x"?){900}\nb ::= a{900}\nroot ::= b{900} "."', "too deep or too often"),
    "too long": ("#" * (1 << 21), "at most 1048576"),
}


@pytest.mark.parametrize(("text", "sentence"), BAD.values(), ids=BAD.keys())
def test_a_wrong_or_hostile_grammar_is_refused_in_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(GrammarError) as caught:
        check_grammar(text)
    assert sentence in caught.value.problem
    assert len(caught.value.problem) < 200 and "\n" not in caught.value.problem
    assert caught.value.exit_code == 24


# Draws texts of grammars that passed, in a process of its own: a crash of llama.cpp must not end the tests.
_FOLLOW = """
import random, sys, time
from tinyedge.errors import GrammarError
from tinyedge.structured.grammar import check_grammar
from tinyedge.native.context import Context, ContextSettings
from tinyedge.native.model import Model
from tinyedge.native.sampler import Sampler
from tinyedge.sampling import Sampling
import numpy as np

path, seed, *texts = sys.argv[1:]
noise = random.Random(int(seed))
draw = np.random.default_rng(int(seed))
passed = 0
with Model(path) as model, Context(model, ContextSettings(context=64, threads=1)) as context:
    context.decode(1); context.wait()
    for _ in range(600):
        text = list(noise.choice(texts))
        for _ in range(noise.randint(0, 4)):
            place = noise.randrange(len(text))
            text[place : place + noise.randint(0, 2)] = noise.choice('()[]{}|*+?".\\\\\\n ab:=-^,0123')
        text = "".join(text)
        try:
            check_grammar(text)
        except GrammarError:
            continue
        passed += 1
        begun = time.monotonic()
        with Sampler(model, Sampling(temperature=2.0, top_k=0, grammar=text, seed=passed)) as sampler:
            try:
                for _ in range(20):
                    context.logits()[:] = draw.normal(0, 4, model.vocabulary_size).tolist()
                    if model.ends_generation(sampler.sample(context)):
                        break
            except GrammarError as error:
                assert "no token" in error.problem, error
        assert time.monotonic() - begun < 20, text
print(passed)
"""


@pytest.mark.parametrize("seed", range(3))
def test_llama_cpp_reads_and_follows_whatever_passes(tmp_path: Path, seed: int) -> None:
    path = write(tmp_path / "tiny.gguf", tiny_parts())
    command = [sys.executable, "-c", _FOLLOW, str(path), str(seed), *GOOD.values()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""  # llama.cpp prints what it cannot parse
    assert int(done.stdout) > 100
