"""What `verify` says about a file, as values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from tinyedge.errors import VerificationError
from tinyedge_quantize.verification.tensors import TensorErrors

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, whether it PASSED, FAILED or was SKIPPED, and what was found, in a sentence.

    `remedy` is what to do about a failure where making the file again is not it.
    """

    name: str
    result: str
    detail: str
    remedy: str | None = None


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
    def share_of_bound(self) -> float:
        """Its error as a share of the bound, infinite where the error is no number; 0 without a source."""
        relative = self.errors.relative_rms if self.errors else 0.0
        return math.inf if math.isnan(relative) else relative / self.bound

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
        """The tensors that have errors by falling relative RMS error; those beyond their bound before all others."""

        def badness(tensor: TensorReport) -> tuple[bool, float]:
            relative = tensor.errors.relative_rms if tensor.errors else 0.0
            return not tensor.within_bound, math.inf if math.isnan(relative) else relative

        return tuple(sorted((tensor for tensor in self.tensors if tensor.errors), key=badness, reverse=True))

    def require(self) -> None:
        """Raises VerificationError with the first check that failed and its remedy, unless all passed."""
        failed = [check for check in self.checks if check.result == FAILED]
        if failed:
            more = f" ({len(failed) - 1} more checks failed)" if len(failed) > 1 else ""
            raise VerificationError(f"{self.path} did not pass: {failed[0].name}: {failed[0].detail}{more}", failed[0].remedy)
