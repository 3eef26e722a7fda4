"""Writes the reference in docs/api.md from the schema: `make api`.

Takes the page, whose part between the marks it replaces; the schema, the scopes of access.py and the reasons of
docs/errors.md give that part. It does not know what protoc says (schema.py does).
"""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import schema

from loramux_server.access import NEEDED

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "loramux.v1."
BEGIN, END = "<!-- api -->\n", "<!-- /api -->\n"
_WELL_KNOWN = "https://protobuf.dev/reference/protobuf/google.protobuf/#"


class Reference:
    """The reference as Markdown."""

    def __init__(self, read: schema.Schema, reasons: Iterable[str]) -> None:
        self._read = read
        self._reasons = frozenset(reasons)
        rpcs = [rpc.name for service in read.services for rpc in service.rpcs]
        kinds = [named.name for named in (*read.messages, *read.enums)]
        self._types = {PACKAGE + name: name for name in kinds}
        self._named = {name for name in (*rpcs, *kinds) if re.fullmatch(r"(?:[A-Z][a-z]+){2,}", name)}
        twice = [name for name, count in Counter(map(_anchor, (*rpcs, *kinds))).items() if count > 1]
        if twice:
            raise schema.SchemaError(f"several headings have the anchors {', '.join(twice)}")

    def text(self) -> str:
        """All of it; paragraphs are on one line each."""
        return "\n".join(self._lines()) + "\n"

    def _lines(self) -> Iterator[str]:
        for service in self._read.services:
            yield from ("", f"## {service.name.removeprefix(PACKAGE)}", "")
            yield from (self._said(service.text), "")
            yield from ("| RPC | asks | answers | scope |", "|---|---|---|---|")
            for rpc in service.rpcs:
                cells = f"[{rpc.name}](#{_anchor(rpc.name)})", self._asks(rpc), self._answers(rpc), _scope(service, rpc)
                yield f"| {' | '.join(cells)} |"
            for rpc in service.rpcs:
                yield from ("", f"### {rpc.name}", "", f"`/{service.name}/{rpc.name}`", "", self._said(rpc.text))
        yield from ("", "## Messages")
        for message in self._read.messages:
            yield from ("", f"### {message.name}", "", self._said(message.text))
            yield from self._fields(message)
        yield from ("", "## Enums")
        for enum in self._read.enums:
            yield from ("", f"### {enum.name}", "", self._said(enum.text), "")
            yield from ("| value | number | is |", "|---|---|---|")
            yield from (f"| `{name}` | {number} | {self._cell(text)} |" for name, number, text in enum.values)

    def _fields(self, message: schema.Message) -> Iterator[str]:
        for name, text in message.oneofs.items():
            yield from ("", f"One of `{name}`: {self._said(text)}")
        groups = list[list[schema.Field]]()
        for field in message.fields:
            if field.above or not groups:
                groups.append([])
            groups[-1].append(field)
        for group in groups:
            if group[0].above:
                yield from ("", self._said(group[0].above))
            yield from ("", "| field | number | type | is |", "|---|---|---|---|")
            for field in group:
                yield f"| `{field.name}` | {field.number} | {self._type(field)} | {self._cell(field.text)} |"

    def _type(self, field: schema.Field) -> str:
        link = self._link(field.type)
        if field.key:
            return f"map of {field.key} to {link}"
        return " ".join(filter(None, (field.label, link, f"(of `{field.oneof}`)" if field.oneof else "")))

    def _link(self, name: str) -> str:
        if name in self._types:
            return f"[{self._types[name]}](#{_anchor(self._types[name])})"
        if name.startswith("google.protobuf."):
            return f"[{name}]({_WELL_KNOWN}{_kebab(name.rpartition('.')[2])})"
        return name

    def _asks(self, rpc: schema.Rpc) -> str:
        return f"{'stream of ' if rpc.asks_stream else ''}{self._link(rpc.asks)}"

    def _answers(self, rpc: schema.Rpc) -> str:
        return f"{'stream of ' if rpc.answers_stream else ''}{self._link(rpc.answers)}"

    def _cell(self, text: str) -> str:
        return self._said(text).replace("\n\n", "<br>").replace("|", "\\|")

    def _said(self, text: str) -> str:
        """A comment as Markdown: code stays, all else is text, in which names of the schema, reasons and pages link."""
        parts = text.split("`")
        if len(parts) % 2 == 0:
            raise schema.SchemaError(f"a backtick stands alone in {text!r}")
        return "".join(f"`{part}`" if at % 2 else self._linked(part) for at, part in enumerate(parts))

    def _linked(self, text: str) -> str:
        plain = re.sub(r"[\\*<]|(?<=\])\(", r"\\\g<0>", text)
        plain = re.sub(r"\bdocs/([\w-]+\.md)", r"[\1](\1)", plain)
        plain = re.sub(r"\b\w*[A-Z_]{5,}\w*\b|\b\w+_\w+\b", self._word, plain)
        return re.sub(r"\b(?:[A-Z][a-z]+){2,}\b", self._name, plain)

    def _word(self, found: re.Match[str]) -> str:
        """Names of fields, reasons and codes."""
        name = found[0]
        return f"[`{name}`](errors.md#reasons)" if name in self._reasons else f"`{name}`" if "_" in name else name

    def _name(self, found: re.Match[str]) -> str:
        return f"[{found[0]}](#{_anchor(found[0])})" if found[0] in self._named else found[0]


def _scope(service: schema.Service, rpc: schema.Rpc) -> str:
    scope = NEEDED[f"/{service.name}/{rpc.name}"]
    return "any token" if scope is None else f"`{scope.value}`"


def _anchor(heading: str) -> str:
    return heading.lower().replace(".", "")


def _kebab(name: str) -> str:
    return "-".join(re.findall(r"[A-Z][a-z]*", name)).lower()


def _page(page: str, reference: str) -> str:
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise schema.SchemaError(f"the page has no marks {BEGIN.strip()} and {END.strip()}")
    return before + begin + reference + "\n" + end + after


def main(place: Path) -> None:
    """Writes the reference into the page."""
    reasons = re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.M)
    reference = Reference(schema.read(ROOT / "proto"), reasons).text()
    place.write_text(_page(place.read_text("utf-8"), reference), "utf-8")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except schema.SchemaError as wrong:
        sys.exit(str(wrong))
