"""Every error a user can meet, each with its own exit code and a remedy.

The command line prints one sentence, `error: PROBLEM; REMEDY`, and leaves with `exit_code`. Codes 0 to 2 and 130 have their
usual meanings (success, unforeseen failure, wrong usage, interrupted), so ours start at 3.
"""

from __future__ import annotations

from typing import ClassVar


class TinyEdgeError(Exception):
    """What was found and what was expected (`problem`), and what the user can do (`remedy`)."""

    exit_code: ClassVar[int] = 1
    default_remedy: ClassVar[str] = "run the command again with --debug to see where it happened"

    def __init__(self, problem: str, remedy: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy or self.default_remedy

    def __str__(self) -> str:
        return f"{self.problem}; {self.remedy}"


class CheckpointError(TinyEdgeError):
    """A checkpoint that is missing, truncated, or not in a format we read."""

    exit_code = 3
    default_remedy = "copy or download the checkpoint again and check its size"


class UnsafePickleError(TinyEdgeError):
    """A pickle that asks for anything but tensors, storages and plain containers."""

    exit_code = 4
    default_remedy = "do not load this file elsewhere either unless you trust its origin; ask for safetensors instead"


class UnsupportedArchitectureError(TinyEdgeError):
    """A model family that no row of the architecture table describes."""

    exit_code = 5
    default_remedy = "convert it with a tool that knows this family"


class TokenizerError(TinyEdgeError):
    """No tokenizer, one that cannot be read, or one that disagrees with the embedding."""

    exit_code = 6
    default_remedy = "put tokenizer.model or tokenizer.json beside the weights"


class TensorMismatchError(TinyEdgeError):
    """A tensor that is missing, unexpected, or of another shape than the configuration says."""

    exit_code = 7
    default_remedy = "check that the configuration belongs to these weights"


class WeightValueError(TinyEdgeError):
    """A weight that is NaN or infinite, or does not fit the requested type."""

    exit_code = 8
    default_remedy = "take an earlier checkpoint: training diverged or the file is damaged"


class OutputError(TinyEdgeError):
    """An output path that cannot be written."""

    exit_code = 9
    default_remedy = "choose another path with -o"


class DiskSpaceError(TinyEdgeError):
    """Not enough free disk for the output."""

    exit_code = 10
    default_remedy = "free some space or choose another disk with -o"


class GGUFError(TinyEdgeError):
    """A GGUF file that is damaged, truncated, or of a version we do not read."""

    exit_code = 11
    default_remedy = "copy or download the file again, or make it anew with `tinyedge quantize`"


class BackendError(TinyEdgeError):
    """A backend that is not compiled in or whose device is not present."""

    exit_code = 12
    default_remedy = "use --backend auto"


class MemoryFitError(TinyEdgeError):
    """Weights, KV cache and compute buffers that cannot fit free memory."""

    exit_code = 13
    default_remedy = "use a smaller --ctx or a smaller quantization type"


class NativeError(TinyEdgeError):
    """llama.cpp refused or failed, or the installed library lacks what we need."""

    exit_code = 14
    default_remedy = "run again with --verbose to see llama.cpp's own messages"


class PromptError(TinyEdgeError):
    """A prompt that cannot be used: unreadable, not UTF-8, or longer than the context."""

    exit_code = 15
    default_remedy = "shorten the prompt or raise --ctx"


class ModelNotFoundError(TinyEdgeError):
    """A model path that does not exist or is neither a GGUF file nor a checkpoint."""

    exit_code = 16
    default_remedy = "give a .gguf file, a checkpoint folder, `demo`, or the name of a model that `tinyedge pull` fetched"


class SelfCheckError(TinyEdgeError):
    """Quantization kernels whose error is out of the stored bounds: a miscompiled library."""

    exit_code = 17
    default_remedy = "rebuild llama-cpp-python without extra compiler flags"


class BoardError(TinyEdgeError):
    """A board that no row of boards.toml describes, or something that board's system does not have."""

    exit_code = 18
    default_remedy = "`tinyedge boards` lists the boards"


class BuildError(TinyEdgeError):
    """A wheel or a bundle that could not be built: no compiler, a build that failed, a download that did not come."""

    exit_code = 19
    default_remedy = "read the log named above"


class WheelError(TinyEdgeError):
    """A wheel file that is missing, damaged, or not a wheel of llama-cpp-python."""

    exit_code = 20
    default_remedy = "build it with `tinyedge wheel --board NAME`"


class ProofError(TinyEdgeError):
    """A wheel that failed its proof: it would not run as it should on the board it is meant for."""

    exit_code = 21
    default_remedy = "do not put it on a board; build it anew with `tinyedge wheel --board NAME`"


class NotEmulatedError(TinyEdgeError):
    """A wheel whose files are right but that was not run: no emulator for its processor is here."""

    exit_code = 22
    default_remedy = "install one (Debian, Ubuntu: apt install qemu-user-static) and run `tinyedge wheel verify`"


class TemplateError(TinyEdgeError):
    """A chat template that cannot be parsed, raises, or takes too long."""

    exit_code = 23
    default_remedy = "give another template with --template FILE"


class GrammarError(TinyEdgeError):
    """A JSON schema or a GBNF grammar that cannot be read or that no text satisfies."""

    exit_code = 24
    default_remedy = "correct the schema or the grammar"


class DraftError(TinyEdgeError):
    """A draft model that cannot guess for this one: another vocabulary."""

    exit_code = 25
    default_remedy = "take a draft model of the same family, or --lookup, which needs none"


class AdapterError(TinyEdgeError):
    """A LoRA adapter that does not belong to the model."""

    exit_code = 26
    default_remedy = "give an adapter that was trained on this model"


class SessionError(TinyEdgeError):
    """A session file that belongs to another model or is none."""

    exit_code = 27
    default_remedy = "name another file with --session"


class HubError(TinyEdgeError):
    """A download that the hub refused or that did not come whole."""

    exit_code = 28
    default_remedy = "run the command again: it goes on where it stopped"


class OfflineError(TinyEdgeError):
    """Something that needs the network while --offline or HF_HUB_OFFLINE forbids it."""

    exit_code = 29
    default_remedy = "run `tinyedge pull` while online"


class EngineBusyError(TinyEdgeError):
    """An engine that generates already and was asked for more by another thread or from within."""

    exit_code = 30
    default_remedy = "end the first stream, or open a second engine"


class ImatrixError(TinyEdgeError):
    """An importance matrix that is damaged, belongs to another model, holds no counts, or is missing where a type needs it."""

    exit_code = 31
    default_remedy = "make one with `tinyedge imatrix MODEL --text FILE` and give it with --imatrix"


class VerificationError(TinyEdgeError):
    """A GGUF file that did not pass `tinyedge verify`."""

    exit_code = 32
    default_remedy = "make the file again with `tinyedge quantize`"


class RequantizeError(TinyEdgeError):
    """A file that is quantized already and would lose quality a second time."""

    exit_code = 33
    default_remedy = "give the original checkpoint, or accept the loss with --allow-requantize"


class ResultFileError(TinyEdgeError):
    """A file of results that is damaged, of an older schema, or holds nothing to show or compare."""

    exit_code = 34
    default_remedy = "measure again with `tinyedge bench` or `tinyedge eval`"


class TaskFileError(TinyEdgeError):
    """A file of questions that is malformed, with the line that is."""

    exit_code = 35
    default_remedy = "give the file as its benchmark publishes it"


class EvaluationError(TinyEdgeError):
    """A text, a base model or a set of questions that this model cannot be measured with."""

    exit_code = 36
    default_remedy = "give a longer text, or a base with the same vocabulary"


class PeerError(TinyEdgeError):
    """A program to measure beside that is not installed, or failed."""

    exit_code = 37
    default_remedy = "install it, or leave --peer out"


class SlowerError(TinyEdgeError):
    """A comparison that fell below the ratio it was to hold."""

    exit_code = 38
    default_remedy = "look for what changed, or lower --fail-below"
