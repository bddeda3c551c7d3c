"""What `verify` says about a file, as values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import VerificationError
from tinyedge_quantize.verification.tensors import TensorErrors

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, whether it PASSED, FAILED or was SKIPPED, and what was found, in a sentence."""

    name: str
    result: str
    detail: str


@dataclass(frozen=True)
class TensorReport:
    """One tensor of the file: `shape` in GGUF order, SHA-256 of its data, and its errors where there was a source.

    `bound` is the relative RMS error it may have; `valid` says that it holds no NaN or infinity.
    """

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    sha256: str
    valid: bool
    bound: float
    errors: TensorErrors | None

    @property
    def within_bound(self) -> bool:
        """Whether its error is within the bound, which NaN is not."""
        return self.errors is None or self.errors.relative_rms <= self.bound


@dataclass(frozen=True)
class FileReport:
    """A file: its size and the SHA-256 of all of it."""

    path: Path
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Verification:
    """What was found in a model. `files` are its parts, mostly one; `against` is the source it was compared with.

    `tensors` are in the order of the files.
    """

    path: Path
    files: tuple[FileReport, ...]
    against: Path | None
    checks: tuple[Check, ...]
    tensors: tuple[TensorReport, ...]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not any(check.result == FAILED for check in self.checks)

    @property
    def worst_first(self) -> tuple[TensorReport, ...]:
        """The tensors that have errors, those with the largest share of their bound first."""

        def share(tensor: TensorReport) -> float:
            relative = tensor.errors.relative_rms if tensor.errors else 0.0
            return relative / tensor.bound if relative == relative else float("inf")

        return tuple(sorted((tensor for tensor in self.tensors if tensor.errors), key=share, reverse=True))

    def require(self) -> None:
        """Raises VerificationError, naming the first check that failed, unless all passed."""
        failed = [check for check in self.checks if check.result == FAILED]
        if failed:
            more = f" ({len(failed) - 1} more checks failed)" if len(failed) > 1 else ""
            raise VerificationError(f"{self.path} did not pass: {failed[0].name}: {failed[0].detail}{more}")
