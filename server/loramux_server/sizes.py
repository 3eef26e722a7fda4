"""What SDXL is told of a picture's size: fields left open, and those out of range.

Takes a request and the job it becomes; gives the job with both settled, or what is wrong. It knows no base, no protobuf
and no tensors.
"""

from dataclasses import fields, replace

from loramux_server.errors import Violation
from loramux_server.requests import AskedSizes, GenerationRequest, Job, SizeConditioning

MAX_SIZE = 65535


def violations(request: GenerationRequest, base_name: str, *, taken: bool) -> list[Violation]:
    """What is wrong with both fields. taken: whether the base takes them."""
    asked = {"size_conditioning": request.sizes, "negative_size_conditioning": request.negative_sizes}
    given = {field: sizes for field, sizes in asked.items() if sizes is not None}
    if not taken:
        return [Violation(field, f"is given, the base {base_name} takes none") for field in given]
    return [violation for field, sizes in given.items() for violation in _out_of_range(field, sizes)]


def settled(job: Job, request: GenerationRequest) -> Job:
    """The job with what both of its rows are told. What is left open is as in diffusers' pipeline: the picture has its
    own size, nothing was cut off, and the unconditional row is told the same."""
    sizes = _filled(request.sizes or AskedSizes(), job)
    negative = sizes if request.negative_sizes is None else _filled(request.negative_sizes, job)
    return replace(job, sizes=sizes, negative_sizes=negative if job.guided else None)


def _out_of_range(field: str, sizes: AskedSizes) -> list[Violation]:
    found: list[Violation] = []
    for each in fields(sizes):
        value, low = getattr(sizes, each.name), 0 if each.name.startswith("crop") else 1
        if value is not None and not low <= value <= MAX_SIZE:
            found.append(Violation(f"{field}.{each.name}", f"is {value}, expected {low} to {MAX_SIZE}"))
    return found


def _filled(sizes: AskedSizes, job: Job) -> SizeConditioning:
    own = SizeConditioning(job.width, job.height, 0, 0, job.width, job.height)
    given = {each.name: getattr(sizes, each.name) for each in fields(sizes)}
    return replace(own, **{name: value for name, value in given.items() if value is not None})
