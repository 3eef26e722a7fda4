"""The store against a model of it that fits on a page: whatever is done in whatever order, both tell the same."""

import contextlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adapter_files as af
import pytest
from failing_disk import FailingDisk, PowerCut
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from loramux_store import AdapterChange, InterpretOptions, Published, Store, Unfinished, UploadSpec
from loramux_store.errors import Changed, InvalidArgument, NotFound, PinNotFound, UploadNotFound, WrongOffset
from loramux_store.record import Pin, Tier

PATH = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
NAMES = st.sampled_from(["a", "b", "a.b"])
CONTENTS = st.tuples(st.integers(0, 2), st.sampled_from([None, 1.0]))
"""A file's number and the alpha that it is read with."""
STOPS = st.integers(20, 29) | st.integers(0, 34)
"""Operations of the disk that are still done. An upload has about 30; from the 20th on its files get their names."""
ATS = st.sampled_from(["", "1", "2", "prod", "next"])
"""What a reference has behind its name."""


@dataclass
class Model:
    """What is known of a name."""

    versions: list[tuple[int, float | None]] = field(default_factory=list[tuple[int, float | None]])
    labels: dict[str, str] = field(default_factory=dict[str, str])
    aliases: dict[str, int] = field(default_factory=dict[str, int])
    pins: dict[str, Tier] = field(default_factory=dict[str, Tier])
    deleted: bool = False

    def means(self, at: str) -> bool:
        """Whether a version is what stands behind the name: nothing, a number or an alias."""
        if self.deleted:
            return False
        return at == "" or at in self.aliases or (at.isdigit() and 1 <= int(at) <= len(self.versions))


@dataclass
class Going:
    """An upload on its way."""

    id: str
    name: str
    content: tuple[int, float | None]
    received: int = 0


def reference(name: str, at: str) -> str:
    return f"{name}@{at}" if at else name


def spec_of(name: str, content: tuple[int, float | None], labels: dict[str, str]) -> UploadSpec:
    return UploadSpec(name=name, options=InterpretOptions(alpha=content[1]), labels=labels)


class Shelf(RuleBasedStateMachine):
    """Uploads, whole or in parts, changes, pins, deletions, restarts, and machines that stop in between."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.files = [
            af.write(self.folder / f"{seed}.safetensors", af.peft_tensors(af.factors(af.TOY_SD1, [PATH], seed=seed)))
            for seed in range(3)
        ]
        self.model: dict[str, Model] = {}
        self.events: list[tuple[str, str]] = []
        self.pinned: list[tuple[str, str]] = []  # names and what stands behind them, in the order of pinning
        self.digests: dict[tuple[int, float | None], str] = {}
        self.begun = 0
        self.going: Going | None = None
        self.store = Store.open(self.folder / "store")
        self.store.register_layout(af.TOY_SD1)

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(name=NAMES, content=CONTENTS, label=st.sampled_from(["", "x", "y"]))
    def upload(self, name: str, content: tuple[int, float | None], label: str) -> None:
        said = {"l": label} if label else {}
        self.check(self.store.publish(self.files[content[0]], spec_of(name, content, said)), name, content, said)

    @rule(name=NAMES, content=CONTENTS, last=st.booleans())
    def go_on(self, name: str, content: tuple[int, float | None], last: bool) -> None:
        """Some bytes of an upload that was begun, or of a new one; last: all that are left."""
        if self.going is None:
            self.begun += 1
            self.going = Going(f"upload-{self.begun}", name, content)
        data = self.files[self.going.content[0]].read_bytes()
        spec = spec_of(self.going.name, self.going.content, {})
        self.refused(WrongOffset, lambda: self.store.begin_upload(spec, self.going.id, self.going.received + 1))
        with self.store.begin_upload(spec, self.going.id, self.going.received) as upload:
            assert upload.received == self.going.received
            part = data[upload.received :] if last else data[upload.received : upload.received + 100]
            self.going.received = upload.write(part)
            if not last:
                upload.leave()
                return
            published = upload.commit()
        again = self.store.find_upload(self.going.id)
        assert (again.version, again.created) == (published.version, published.created)
        self.check(published, self.going.name, self.going.content, {})
        self.going = None

    @rule()
    def abort(self) -> None:
        if self.going is None:
            self.refused(UploadNotFound, lambda: self.store.abort_upload("upload-none"))
        else:
            self.store.abort_upload(self.going.id)
            self.refused(UploadNotFound, lambda upload=self.going.id: self.store.find_upload(upload))
            self.going = None

    @rule(name=NAMES, content=CONTENTS, after=STOPS)
    def crash(self, name: str, content: tuple[int, float | None], after: int) -> None:
        """The machine stops somewhere in an upload, or just after it: the upload has been, or has not."""
        self.store.close()
        disk, published = FailingDisk(10_000), None
        store = Store.open(self.folder / "store", disk=disk)
        disk.left = after
        with disk.with_commits(), contextlib.suppress(PowerCut):
            published = store.publish(self.files[content[0]], spec_of(name, content, {}))
        store.close()
        self.restart()
        if published is not None:
            self.check(published, name, content, {})
        elif len(self.store.list_events(1000).items) > len(self.events):
            self.took(name, content, {})
            self.digests.setdefault(content, self.store.resolve(name).digest)

    @rule()
    def gc(self) -> None:
        """At once, what is deleted."""
        deleted = sorted(name for name, known in self.model.items() if known.deleted)
        assert list(self.store.gc(0).adapters) == deleted
        for name in deleted:
            del self.model[name]
        self.pinned = [(name, at) for name, at in self.pinned if name not in deleted]
        self.events += [("purge", name) for name in deleted] + ([("gc", "")] if deleted else [])

    def check(self, published: Published, name: str, content: tuple[int, float | None], said: dict[str, str]) -> None:
        """The store says of an upload what the model says."""
        created = self.took(name, content, said)
        assert (published.created, published.version.number) == (created, len(self.model[name].versions))
        assert self.digests.setdefault(content, published.version.digest) == published.version.digest

    def took(self, name: str, content: tuple[int, float | None], said: dict[str, str]) -> bool:
        """An upload has been; whether it made a version."""
        known = self.model.setdefault(name, Model())
        created = not known.versions or known.versions[-1] != content
        if created or known.deleted or (said and said != known.labels):
            self.events.append(("upload", name))
        known.versions += [content] if created else []
        known.labels, known.deleted = said or known.labels, False
        return created

    @rule(name=NAMES, alias=st.sampled_from(["prod", "next"]), number=st.integers(1, 4), old=st.booleans())
    def point(self, name: str, alias: str, number: int, old: bool) -> None:
        known = self.model.get(name)
        change = AdapterChange(aliases={**(known.aliases if known else {}), alias: number})
        etag = "" if known is None or known.deleted else self.store.get_adapter(name).etag
        if known is None or known.deleted:
            self.refused(NotFound, lambda: self.store.update_adapter(name, change))
        elif old:
            self.refused(Changed, lambda: self.store.update_adapter(name, change, etag=etag + "0"))
        elif number > len(known.versions):
            self.refused(InvalidArgument, lambda: self.store.update_adapter(name, change, etag=etag))
        else:
            self.store.update_adapter(name, change, etag=etag)
            if known.aliases.get(alias) != number:
                self.events.append(("update", name))
            known.aliases[alias] = number

    @rule(name=NAMES)
    def forget_aliases(self, name: str) -> None:
        known = self.model.get(name)
        if known is not None and not known.deleted:
            self.store.update_adapter(name, AdapterChange(aliases={}))
            if known.aliases:
                self.events.append(("update", name))
            known.aliases = {}

    @rule(name=NAMES, at=ATS, tier=st.sampled_from(["host", "device"]))
    def pin(self, name: str, at: str, tier: Tier) -> None:
        """What means nothing cannot be pinned; a pin in another tier takes the place of the one before."""
        known, ref = self.model.get(name), reference(name, at)
        if known is None or not known.means(at):
            self.refused(NotFound, lambda: self.store.pin_adapter(ref, tier))
            return
        assert self.store.pin_adapter(ref, tier).pins[ref] == tier
        if known.pins.get(at) != tier:
            self.events.append(("pin", name))
            self.pinned = [*(pin for pin in self.pinned if pin != (name, at)), (name, at)]
        known.pins[at] = tier

    @rule(name=NAMES, at=ATS)
    def unpin(self, name: str, at: str) -> None:
        """Also what means nothing any more."""
        known, ref = self.model.get(name), reference(name, at)
        if known is None or known.deleted:
            self.refused(NotFound, lambda: self.store.unpin_adapter(ref))
        elif at not in known.pins:
            self.refused(PinNotFound, lambda: self.store.unpin_adapter(ref))
        else:
            assert ref not in self.store.unpin_adapter(ref).pins
            self.events.append(("unpin", name))
            self.pinned.remove((name, at))
            del known.pins[at]

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        known = self.model.get(name)
        if known is None or known.deleted:
            self.refused(NotFound, lambda: self.store.delete_adapter(name))
        else:
            self.store.delete_adapter(name)
            self.events.append(("delete", name))
            known.deleted = True

    @rule(name=NAMES)
    def undelete(self, name: str) -> None:
        known = self.model.get(name)
        if known is None:
            self.refused(NotFound, lambda: self.store.undelete_adapter(name))
        else:
            self.store.undelete_adapter(name)
            if known.deleted:
                self.events.append(("undelete", name))
            known.deleted = False

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = Store.open(self.folder / "store")
        self.store.reclaim()

    def refused(self, error: type[Exception], act: Any) -> None:
        with pytest.raises(error):
            act()

    @invariant()
    def lists_agree(self) -> None:
        live = sorted(name for name, known in self.model.items() if not known.deleted)
        found = self.store.list_adapters(10).items
        assert [record.name for record in found] == live
        for record in found:
            known = self.model[record.name]
            assert (record.labels, record.aliases) == (known.labels, known.aliases)
            assert record.pins == {reference(record.name, at): tier for at, tier in known.pins.items()}
            assert record.latest_version.number == len(known.versions)
        assert {record.name for record in self.store.list_adapters(10, deleted=True).items} == self.model.keys()
        told = [(event.action, event.adapter) for event in self.store.list_events(1000).items]
        assert told == self.events[::-1]

    @invariant()
    def pins_agree(self) -> None:
        """Servers are told those of adapters that are there, the oldest first: deleting hides them, no more."""
        wanted = [
            Pin(reference(name, at), self.model[name].pins[at])
            for name, at in self.pinned
            if not self.model[name].deleted
        ]
        assert self.store.pins() == wanted

    @invariant()
    def references_agree(self) -> None:
        for name, known in self.model.items():
            wanted = {f"{name}@{number}": content for number, content in enumerate(known.versions, 1)}
            wanted |= {f"{name}@{alias}": known.versions[number - 1] for alias, number in known.aliases.items()}
            for ref, content in {**wanted, name: known.versions[-1]}.items():
                if known.deleted:
                    self.refused(NotFound, lambda ref=ref: self.store.resolve(ref))
                else:
                    assert self.store.resolve(ref).digest == self.digests[content]
            self.refused(NotFound, lambda name=name: self.store.resolve(f"{name}@none"))

    @invariant()
    def uploads_agree(self) -> None:
        if self.going is not None:
            found = self.store.find_upload(self.going.id)
            assert isinstance(found, Unfinished) and found.received == self.going.received

    @invariant()
    def files_agree(self) -> None:
        """As many as there are contents, in spite of all that was deleted; each as it was uploaded."""
        contents = {content for known in self.model.values() for content in known.versions}
        stats = self.store.stats()
        assert stats.blobs == len({seed for seed, _ in contents})
        assert stats.versions == sum(len(known.versions) for known in self.model.values() if not known.deleted)
        files = [path for path in (self.folder / "store" / "compiled").rglob("*") if path.is_file()]
        assert {path.stem for path in files} == {self.digests[content] for content in contents}


@pytest.mark.parametrize("examples", [8, pytest.param(400, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_the_store_is_its_model(examples: int) -> None:
    steps = 20 if examples < 100 else 60
    run_state_machine_as_test(Shelf, settings=settings(max_examples=examples, stateful_step_count=steps))
