"""A run's settings as one frozen value: read from TOML and flags, checked, and written back.

Takes a file and `--section.key value` flags; gives Config. Every refusal names the key, the value and what was
expected; an unknown key is told with the nearest known one. Knows no model.
"""

import json
import tomllib
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import tomlkit
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from loramux_train.about_settings import AboutSettings
from loramux_train.adapter_settings import AdapterSettings
from loramux_train.base_settings import BUILTIN, BaseSettings
from loramux_train.data_settings import DataSettings
from loramux_train.errors import BadSetting
from loramux_train.loss_settings import LossSettings
from loramux_train.optimiser_settings import OptimiserSettings
from loramux_train.output_settings import OutputSettings
from loramux_train.recipe import Recipe
from loramux_train.run_settings import RunSettings
from loramux_train.samples_settings import SamplesSettings
from loramux_train.section import Section
from loramux_train.target_settings import TargetSettings
from loramux_train.token_settings import TokenSettings

_RATES = {"prodigy": 1.0}
_RATE, _BUILTIN_RATE = 1e-4, 1e-3
_TOKENS_RATE = 5  # times the usual rate


class Config(Section):
    """All settings of a run."""

    data: DataSettings
    base: BaseSettings = BaseSettings()
    adapter: AdapterSettings = AdapterSettings()
    targets: TargetSettings = TargetSettings()
    tokens: TokenSettings = TokenSettings()
    optimiser: OptimiserSettings = OptimiserSettings()
    loss: LossSettings = LossSettings()
    run: RunSettings = RunSettings()
    samples: SamplesSettings = SamplesSettings()
    output: OutputSettings = OutputSettings()
    about: AboutSettings = AboutSettings()

    @property
    def recipe(self) -> Recipe:
        """What the loop follows."""
        return Recipe(self.adapter, self.optimiser, self.loss, self.run, self.tokens)


def read(
    file: Path | None, flags: Sequence[str] = (), resolution_of: Callable[[str], int] = lambda base: 512
) -> Config:
    """Settings of a TOML file, with flags put over them; rates and resolution are resolved.

    resolution_of: the pixels that a base was trained at, asked where no resolution is given.

    Raises:
        BadSetting: names everything that is wrong.
    """
    given: dict[str, Any] = {} if file is None else _toml(file)
    _overlay(given, flags)
    config = resolved(parse(given))
    if "resolution" in given["data"]:
        return config
    given["data"]["resolution"] = resolution_of(config.base.path)
    return resolved(parse(given))


def parse(given: dict[str, Any]) -> Config:
    """Checked settings. Values go through JSON, whose arrays and strings pydantic's strict mode takes for tuples and
    paths, and no word for a number. Where a list is expected, one value alone is a list of it.

    Raises:
        BadSetting: names everything that is wrong.
    """
    lists = {name for name, field in fields() if _is_list(field)}
    try:
        return Config.model_validate_json(json.dumps(_listed(given, lists), default=str))
    except ValidationError as error:
        raise BadSetting("\n".join(_lines(error.errors()))) from error


def _listed(given: dict[str, Any], lists: Collection[str], before: str = "") -> dict[str, Any]:
    """lists: dotted names of the settings that are some."""
    made: dict[str, Any] = {}
    for key, value in given.items():
        if f"{before}{key}" in lists:
            made[key] = value if isinstance(value, list | tuple) else [value]
        else:
            made[key] = _listed(value, lists, f"{before}{key}.") if isinstance(value, dict) else value
    return made


def resolved(config: Config) -> Config:
    """With the learning rates that unset ones stand for."""
    own = config.optimiser
    usual = _BUILTIN_RATE if config.base.path == BUILTIN else _RATE
    rate = own.rate or _RATES.get(own.name, usual)
    text = own.text_encoder_rate or (rate if own.name == "prodigy" else rate / 2)
    vectors = config.tokens.rate or (rate if own.name == "prodigy" else usual * _TOKENS_RATE)
    return config.model_copy(update={
        "optimiser": own.model_copy(update={"rate": rate, "text_encoder_rate": text}),
        "tokens": config.tokens.model_copy(update={"rate": vectors}) if config.tokens.new else config.tokens,
    })  # fmt: skip


def as_values(config: Config) -> dict[str, Any]:
    """The settings as JSON and TOML can hold them, unset ones left out."""
    return _filled(config.model_dump(mode="json", exclude_none=True))


def _filled(values: dict[str, Any]) -> dict[str, Any]:
    """Without sections that say nothing."""
    inner = {key: _filled(value) if isinstance(value, dict) else value for key, value in values.items()}
    return {key: value for key, value in inner.items() if value != {}}


def to_toml(config: Config) -> str:
    """The settings as a file that `read` takes."""
    return tomlkit.dumps(as_values(config))


def fields(model: type[BaseModel] = Config, before: str = "") -> Iterable[tuple[str, FieldInfo]]:
    """Dotted names of all settings, with what is known of each."""
    for name, field in model.model_fields.items():
        inner = section_of(field.annotation)
        if inner is None or _is_list(field):
            yield f"{before}{name}", field
        else:
            yield from fields(inner, f"{before}{name}.")


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise BadSetting(f"settings {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadSetting(f"settings {file} are no TOML: {error}") from error


def _overlay(given: dict[str, Any], flags: Sequence[str]) -> None:
    words = list(flags)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise BadSetting(f"{word!r} is no flag; expected --section.key VALUE, such as --adapter.rank 8")
        name, equals, text = word.removeprefix("--").replace("-", "_").partition("=")
        if equals:
            text = word.partition("=")[2]
        elif words:
            text = words.pop(0)
        else:
            raise BadSetting(f"{word} has no value")
        _put(given, name.split("."), text)


def _put(given: dict[str, Any], path: list[str], text: str) -> None:
    *sections, key = path
    place: Any = given
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise BadSetting(f"--{'.'.join(path)}: {section} is no section")
    place[key] = _value(_field(path), text)


def _value(field: FieldInfo | None, text: str) -> Any:
    """A flag's text: as it is where a setting takes words only, else as TOML, a list also without its brackets, else as
    it is."""
    if field is not None and _words_only(field.annotation):
        return text
    for toml in (text, f"[{text}]") if field is not None and _is_list(field) else (text,):
        try:
            return tomllib.loads(f"value = {toml}")["value"]
        except tomllib.TOMLDecodeError:
            continue
    return text


def _field(path: list[str]) -> FieldInfo | None:
    return dict(fields()).get(".".join(path))


def _is_list(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is tuple


def _words_only(annotation: Any) -> bool:
    kinds = [kind for kind in _alternatives(annotation) if kind is not type(None)]
    return all(kind in (str, Path) for kind in kinds)


def _alternatives(annotation: Any) -> Iterable[Any]:
    if get_origin(annotation) in (Union, UnionType):
        for inner in get_args(annotation):
            yield from _alternatives(inner)
    elif get_origin(annotation) is Literal:
        yield from {type(value) for value in get_args(annotation)}
    elif hasattr(annotation, "__metadata__"):
        yield from _alternatives(get_args(annotation)[0])
    else:
        yield annotation


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation stands for, also an optional one."""
    for kind in _alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _lines(faults: Iterable[Any]) -> list[str]:
    """A line for each setting at fault; what each kind of value it may have expects is one line."""
    known = {name for name, _ in fields()}
    lines: dict[str, list[str]] = {}
    for fault in faults:
        place = [str(part) for part in fault["loc"]]
        whole = next((".".join(place[:end]) for end in range(len(place)) if ".".join(place[:end]) in known), None)
        several = whole is not None and not place[len(whole.split("."))].isdigit()
        name = whole if whole is not None and several else ".".join(place)
        lines.setdefault(name, []).append(_fault(name, fault))
    return [f"{name}{' or'.join(dict.fromkeys(said))}" for name, said in lines.items()]


def _fault(name: str, fault: Any) -> str:
    """What follows the name."""
    if fault["type"] == "extra_forbidden":
        *sections, key = name.split(".")
        return f" is no setting; {_hint(sections, key)}"
    if fault["type"] == "missing":
        return " is missing"
    said = fault["msg"].removeprefix("Value error, ")
    return f": {said}" if isinstance(fault["input"], dict) else f" is {fault['input']!r}: {said}"


def _hint(sections: list[str], key: str) -> str:
    """One of the section that is spelled almost so, else those of other sections whose name the key is or ends with,
    else any that is spelled almost so, else what there is."""
    keys = _keys([section for section in sections if not section.isdigit()])
    near = [".".join([*sections, name]) for name in get_close_matches(key, keys, 1, 0.6)]
    names = [name for name, _ in fields()]
    near = near or [name for name in names if f"_{key}".endswith(f"_{name.rpartition('.')[2]}")]
    near = near or get_close_matches(".".join([*sections, key]), names, 1, 0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(keys)}"


def _keys(sections: Sequence[str]) -> list[str]:
    model: type[BaseModel] = Config
    for section in sections:
        field = model.model_fields.get(section)
        inner = None if field is None else section_of(field.annotation)
        if inner is None:
            return []
        model = inner
    return list(model.model_fields)
