"""Texts that are far longer than they may be are refused by their length, before anything walks them."""

import base64
import unicodedata
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from loramux_store import AdapterChange, UploadSpec
from loramux_store.errors import InvalidArgument
from loramux_store.names import MAX_TRIGGER, check_trigger
from loramux_store.owner_words import check_said
from loramux_store.paging import read_token, write_token
from loramux_store.selection import read_selection


class Unread(str):
    """A text that nobody may walk, split or print whole."""

    __slots__ = ()

    def __iter__(self) -> Iterator[str]:
        raise AssertionError("somebody walks it")

    def split(self, *_: object) -> NoReturn:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise AssertionError("somebody splits it")

    def __repr__(self) -> str:
        raise AssertionError("somebody prints it")


LONG = Unread("a" * 10_000)
CALLS: dict[str, Callable[[], object]] = {
    "description": lambda: check_said(UploadSpec("x", description=LONG)),
    "licence": lambda: check_said(AdapterChange(licence=LONG)),
    "labels": lambda: check_said(UploadSpec("x", labels={LONG: ""})),
    "labels.a": lambda: check_said(UploadSpec("x", labels={"a": LONG})),
    "trigger_words": lambda: check_said(UploadSpec("x", trigger_words=(LONG,))),
    "order_by": lambda: read_selection("", LONG),
    "filter": lambda: read_selection(LONG),
    "trigger": lambda: check_trigger(LONG, "trigger"),
}


@pytest.mark.parametrize("field", CALLS)
def test_a_text_too_long_is_not_walked(field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        CALLS[field]()
    assert caught.value.field == field and len(str(caught.value)) < 1000


def test_a_token_too_long_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base64, "urlsafe_b64decode", lambda text: pytest.fail("somebody decodes it"))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with pytest.raises(InvalidArgument, match="page_token"):
        read_token("a" * 10_000, "adapters", str)


def test_the_longest_filter_goes_on_with_its_token() -> None:
    """500 characters that JSON writes as six each."""
    listing = f"live adapters (update_time desc) ({'é' * 500})"
    assert read_token(write_token(listing, f"{2**62} {'a' * 64}"), listing, str)


def test_a_trigger_is_normalised_only_where_it_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """To put marks in order takes time as their number squared."""
    seen: list[int] = []
    normalize = unicodedata.normalize
    monkeypatch.setattr(unicodedata, "normalize", lambda form, text: seen.append(len(text)) or normalize(form, text))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with pytest.raises(InvalidArgument, match="1 to 256 characters"):
        check_trigger("a" + "\u0301\u0316" * 5000, "trigger")
    assert check_trigger("e\u0301", "trigger") == "\u00e9"
    assert max(seen) <= MAX_TRIGGER
