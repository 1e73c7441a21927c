"""From a YAML file and dotted flags to one frozen dataclass, or one line that names the wrong key.

Here: parsing, refusing, and writing a resolved config back. Elsewhere: what the keys mean (each section's dataclass
stands beside the code that uses it). Source: jsonargparse; its lenient defaults are switched off one by one below.
"""

import dataclasses
import difflib
import hashlib
import json
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from safesynthdp.errors import ConfigError

Config = TypeVar("Config")


def parse(config_class: type[Config], argv: Sequence[str], *, prog: str, positional: str | None = None) -> Config:
    """Return ``config_class`` filled from ``--config FILE`` and the ``--section.key value`` flags after it.

    Args:
        config_class: A frozen dataclass; nested dataclasses are the dotted sections. The docstring under a field is
            its ``--help``.
        argv: The command line without the program's name.
        prog: The name shown by ``--help``.
        positional: A field of type ``list[str]`` that is filled by the words without a flag.

    Raises:
        ConfigError: If a key or flag is unknown, a value has the wrong type or a section refuses it. The message is
            one line and starts with the key.
    """
    import jsonargparse

    argv = _spell_out_switches(config_class, argv)
    _refuse_overrides_before_config(argv)
    _refuse_whole_sections(config_class, argv)
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog=prog,
        description=(config_class.__doc__ or "").strip(),
        allow_abbrev=False,
        exit_on_error=False,
        default_env=False,
    )
    parser.add_argument("--config", action="config", help="YAML file with the same keys; flags after it override it")
    for path in _config_files(argv):
        check_yaml(path)
    skip = set[str | int]()
    if positional is not None:
        skip.add(positional)
        parser.add_argument(positional, nargs="+", type=str)
    parser.add_class_arguments(config_class, as_group=False, skip=skip)
    try:
        namespace = parser.parse_args(list(argv))
        filled = parser.instantiate(namespace)
    except (jsonargparse.ArgumentError, TypeError, ValueError, OSError) as error:
        raise _one_line(error, config_class, positional) from error
    values = {f.name: getattr(filled, f.name) for f in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    return config_class(**values)


def check_yaml(path: Path) -> None:
    """Refuse a config file that is missing, is not a mapping, or says a key twice (YAML keeps the last in silence).

    Raises:
        ConfigError: With the file's name and the way out.
    """
    if not path.is_file():
        raise ConfigError(f"config={path} is not a file; give the path of a YAML recipe")
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except UnicodeDecodeError as error:
        raise ConfigError(f"config={path} is not UTF-8 text; save it as UTF-8") from error
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = "" if line is None else f", line {line + 1}"
        raise ConfigError(f"config={path}{where}: {getattr(error, 'problem', None) or 'not valid YAML'}") from error
    if not isinstance(value, Mapping):
        raise ConfigError(f"config={path} holds no keys; it must be a YAML mapping of sections")


def to_mapping(config: Any) -> dict[str, Any]:
    """Return a config dataclass as plain YAML-ready values (tuples become lists, paths strings)."""
    value = json.loads(json.dumps(dataclasses.asdict(config), default=str, allow_nan=False))
    assert isinstance(value, dict)
    return value


def config_hash(values: Mapping[str, Any], *, leave_out: Sequence[str] = ("output_dir",)) -> str:
    """Return the SHA-256 of a config without the keys that only say where the output lies."""
    kept = {key: value for key, value in values.items() if key not in leave_out}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def differing_keys(
    before: Mapping[str, Any], now: Mapping[str, Any], *, leave_out: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys in which two resolved configs differ, with the value before and now; None = not there."""
    found = dict[str, tuple[Any, Any]]()
    for key in dict.fromkeys([*now, *before]):
        old, new = before.get(key), now.get(key)
        if key in leave_out or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found |= {f"{key}.{inner}": pair for inner, pair in differing_keys(old, new).items()}
        else:
            found[key] = (old, new)
    return found


_OF_TRAINING = "train.expected_batch_size"
_PUSH = "safesynthdp push uploads a finished run, with its card"
_MEAN_BATCH = "set train.expected_batch_size (the mean of a draw) and hardware.max_tokens_per_microbatch (memory alone)"
_KNOWN_ELSEWHERE = {
    "per_device_train_batch_size": _MEAN_BATCH,
    "gradient_accumulation_steps": _MEAN_BATCH,
    "batch_size": _MEAN_BATCH,
    "max_grad_norm": "privacy.per_sample_max_grad_norm bounds each record's gradient; a batch is not clipped",
    "packing": "a row with two records has no gradient of one record; leave it out",
    "warmup_ratio": "set train.warmup_steps",
    "torch_dtype": "set model.dtype",
    "bf16": "set model.dtype bfloat16, for the frozen base",
    "fp16": "set model.dtype bfloat16, for the frozen base",
    "push_to_hub": _PUSH,
    "hub_model_id": _PUSH,
}
"""Names that users of transformers and trl bring along to a training config, and what is set instead."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML that refuses a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[Any]()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _config_files(argv: Sequence[str]) -> list[Path]:
    """Return the files named by ``--config F`` and ``--config=F``."""
    following = [Path(argv[i + 1]) for i, word in enumerate(argv[:-1]) if word == "--config"]
    return following + [Path(word.removeprefix("--config=")) for word in argv if word.startswith("--config=")]


def _spell_out_switches(config_class: type[Any], argv: Sequence[str]) -> list[str]:
    """``--json`` alone means ``--json=true``, for every key that is yes or no."""
    switches = {f"--{key}" for key in _known_keys(config_class) if _type_of(config_class, key) is bool}
    words = list[str]()
    for word, following in zip(argv, [*argv, ""][1:], strict=True):
        is_bare = word in switches and following.lower() not in ("true", "false")
        words.append(f"{word}=true" if is_bare else word)
    return words


def _type_of(config_class: type[Any], key: str) -> Any:
    """Return the type of a dotted key."""
    first, _, rest = key.partition(".")
    return _type_of(_sections(config_class)[first], rest) if rest else typing.get_type_hints(config_class)[first]


def _refuse_overrides_before_config(argv: Sequence[str]) -> None:
    """A flag before ``--config`` would lose to the file in silence."""
    position = next((i for i, word in enumerate(argv) if word == "--config" or word.startswith("--config=")), None)
    if position is None:
        return
    early = [word for word in argv[:position] if word.startswith("--")]
    if early:
        raise ConfigError(f"{early[0]} stands before --config and would be overridden by the file; put it after")


def _refuse_whole_sections(config_class: type[Any], argv: Sequence[str]) -> None:
    """``--privacy FILE`` would load a second file past the checks of the first."""
    for name in _sections(config_class):
        if any(word == f"--{name}" or word.startswith(f"--{name}=") for word in argv):
            raise ConfigError(f"{name} is a section, not a key; set its keys, for example --{name}.KEY VALUE")


def _sections(config_class: type[Any]) -> dict[str, type[Any]]:
    """Return the fields that are dataclasses themselves, also behind ``| None``."""
    hints = typing.get_type_hints(config_class)
    options = {name: [hint, *_choices(hint)] for name, hint in hints.items()}
    found = {name: [o for o in choices if dataclasses.is_dataclass(o)] for name, choices in options.items()}
    return {name: choices[0] for name, choices in found.items() if choices and isinstance(choices[0], type)}


def _choices(hint: Any) -> tuple[Any, ...]:
    """Return the types of a union; a list of sections is one key, given as a whole."""
    return () if typing.get_origin(hint) in (list, tuple, dict) else typing.get_args(hint)


def _known_keys(config_class: type[Any], prefix: str = "") -> list[str]:
    """Return every dotted key of a config class."""
    sections = _sections(config_class)
    keys = list[str]()
    for name in (f.name for f in dataclasses.fields(config_class)):
        keys += _known_keys(sections[name], f"{prefix}{name}.") if name in sections else [f"{prefix}{name}"]
    return keys


def _one_line(error: Exception, config_class: type[Any], positional: str | None) -> ConfigError:
    """Turn jsonargparse's page of usage into one line that starts with the key."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigError):
            return cause
        cause = cause.__cause__ or cause.__context__
    text = _innermost(" ".join(str(error).split()))
    if found := re.search(r"Group '([^']+)' does not accept option '([^']+)'", text):
        return _unknown_key(f"{found[1]}.{found[2]}", config_class)
    if found := re.search(r"Parser key \"([^\"]+)\": .*Option '([^']+)' is not accepted", text):
        return _unknown_key(f"{found[1]}.{found[2]}", config_class)
    if found := re.search(r"does not accept option '([^']+)'|Option '([^']+)' is not accepted", text):
        return _unknown_key(found[1] or found[2], config_class)
    if found := re.search(r"unrecognized arguments: (\S+)", text):
        return _unknown_key(found[1].lstrip("-").split("=")[0], config_class)
    if found := re.search(r'Parser key "([^"]+)": (.*)', text):
        hint = "; quote the items" if "list[str]" in found[2] else ""
        return ConfigError(f"{found[1]}: {found[2]}{hint}")
    if found := re.search(r"arguments are required: (.*)", text):
        first = found[1].split(",")[0].strip()
        way = "name them behind the command" if first == positional else f"give --{first} or set it in the config file"
        return ConfigError(f"{found[1]} is missing; {way}")
    return ConfigError(text)


def _innermost(text: str) -> str:
    """Return what is wrong inside a section that may be null, without the list of all that it could have been."""
    section = re.match(r'Parser key "([^"]+)": .*?Problem with given class_path \'[^\']+\': (.*)', text)
    if section is None:
        return text
    name, inside = section.groups()
    if missing := re.match(r"the following arguments are required: (\w+)", inside):
        return f"the following arguments are required: {name}.{missing[1]}"
    wanted = re.match(r"Parser key \"([^\"]+)\": .*?Expected an? (<class '\w+'>|typing\.Literal\[[^]]*\])", inside)
    given = re.search(r"(?:Got|Given) value: (.*?)(?: - Expected .*)?$", inside)
    if wanted is None or given is None:
        return text
    value = inside[given.start(1) :].split(" - Expected ")[0]
    return f'Parser key "{name}.{wanted[1]}": Expected a {wanted[2]}. Got value: {value}'


def _unknown_key(key: str, config_class: type[Any]) -> ConfigError:
    known = _known_keys(config_class)
    way = _KNOWN_ELSEWHERE.get(key.rpartition(".")[2])
    if way is not None and _OF_TRAINING in known:
        return ConfigError(f"{key} is not a key here; {way}")
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    return ConfigError(
        f"{key} is not a key here; " + (f"did you mean {close[0]}?" if close else "--help lists the keys")
    )
