"""Every case of a size, in the order of the pipeline."""

from benchmarks.case import Case
from benchmarks.cases import features, loading, predict, sample, step1, step2
from benchmarks.sizes import Size


def all_cases(size: Size) -> list[Case]:
    """Names begin with loading, step1, step2, extract, select, sample, predict."""
    return [
        *loading.cases(size), *step1.CASES, *step2.cases(size), *features.CASES, *sample.cases(size),
        *predict.cases(size),
    ]  # fmt: skip
