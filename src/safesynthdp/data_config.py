"""The ``data`` section of a config: which records, which columns, which labels.

Here: the keys and what they refuse. Elsewhere: reading (records.py).
"""

from dataclasses import dataclass, fields
from pathlib import Path

from safesynthdp.errors import ConfigError

BUILTIN_DATA = ("vader",)
_MAX_HOLDOUT_PERCENT = 90
_MIN_MAX_LENGTH = 8


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which records are read, from where, and what is public about them."""

    train_file: str | None = None
    """Private records: a .csv, .jsonl or .parquet file (UTF-8). One of train_file, dataset_name, builtin."""
    dataset_name: str | None = None
    """Private records: a name or a local folder that ``datasets.load_dataset`` takes (it keeps a copy in its cache)."""
    dataset_config: str | None = None
    """Configuration of the dataset, where it has several."""
    dataset_split: str | None = None
    """Split of the dataset; "train" if not given."""
    builtin: str | None = None
    """Demo records from the package index: vader (public text; its epsilon protects nobody)."""
    text_column: str = "text"
    """Column that holds the text."""
    label_column: str = "label"
    """Column that holds the label; for vader: label (the domain) or sentiment."""
    user_column: str | None = None
    """Column that says whose record it is; needed by privacy.unit=user. The split then goes by user."""
    prompt_template: str | None = None
    """What stands before the text, with {label} once, for example "A {label} review: "; public."""
    label_descriptions: dict[str, str] | None = None
    """What a label is called in the prompt where its name says little, for example {"neg": "negative film review"};
    public. A label that is not listed is called by its name."""
    max_length: int = 128
    """Longest example, prompt and end of text included, tokens; longer ones are cut."""
    max_records: int | None = None
    """Train on at most so many records, chosen by a hash; neighbours are then defined on the kept ones."""
    labels: list[str] | None = None
    """Every label there is, known without looking at the data; without it the label set is read from private data."""
    membership_file: str | None = None
    """Parquet (record_id, member): train on the members alone. For shadow models."""
    nominal_num_records: int | None = None
    """Units (records, or users) that sample rate and steps are planned with, in place of how many members there are:
    that number is random, and would tell. Needs membership_file."""
    holdout_percent: int = 20
    """Records never trained on, percent, 0 to 90; a hash of each text (or user) decides, so copies stay together."""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; make paths absolute, so that a later stage finds them from anywhere.

        Raises:
            ConfigError: With the key, its value and the way out.
        """
        self._refuse_unclear_source()
        self._refuse_bad_columns()
        self._refuse_bad_numbers()
        self._refuse_bad_labels()
        self._refuse_bad_descriptions()
        _refuse_bad_template(self.prompt_template)
        for key in ("train_file", "membership_file"):
            if (value := getattr(self, key)) is not None:
                object.__setattr__(self, key, str(Path(value).expanduser().absolute()))
        if self.dataset_name is not None and Path(self.dataset_name).expanduser().is_dir():
            object.__setattr__(self, "dataset_name", str(Path(self.dataset_name).expanduser().absolute()))

    @property
    def label_source(self) -> str:
        """The column that is read as the label (the builtin calls its domain ``label``, too)."""
        return "label" if self.builtin is not None and self.label_column == "domain" else self.label_column

    def _refuse_unclear_source(self) -> None:
        sources = ("train_file", "dataset_name", "builtin")
        given = [f"data.{key}" for key in sources if getattr(self, key) is not None]
        empty = [f"data.{f.name}" for f in fields(self) if getattr(self, f.name) == "" and f.name != "prompt_template"]
        if empty:
            raise ConfigError(f"{empty[0]} is empty; give a value or leave the key out")
        if not given:
            raise ConfigError("data.train_file is missing; give data.train_file, data.dataset_name or data.builtin")
        if len(given) > 1:
            raise ConfigError(f"{given[0]} and {given[1]} are both given; keep one")
        if self.builtin is not None and self.builtin not in BUILTIN_DATA:
            raise ConfigError(f"data.builtin={self.builtin} is unknown; there are: {', '.join(BUILTIN_DATA)}")
        for key in ("dataset_config", "dataset_split"):
            if getattr(self, key) is not None and self.dataset_name is None:
                raise ConfigError(f"data.{key} needs data.dataset_name; leave it out")

    def _refuse_bad_columns(self) -> None:
        named = {"text_column": self.text_column, "label_column": self.label_column, "user_column": self.user_column}
        seen = dict[str, str]()
        for key, value in named.items():
            if value in seen:
                raise ConfigError(f"data.{key}={value} is also data.{seen[value]}; name another column")
            if value is not None:
                seen[value] = key
        if self.builtin is None:
            return
        allowed = {
            "text_column": ("text",),
            "label_column": ("label", "domain", "sentiment"),
            "user_column": ("source", None),
        }
        for key, choices in allowed.items():
            if named[key] not in choices:
                there = ", ".join(str(choice) for choice in choices if choice is not None)
                raise ConfigError(f"data.{key}={named[key]} is no column of builtin {self.builtin}; there are: {there}")

    def _refuse_bad_numbers(self) -> None:
        if not 0 <= self.holdout_percent <= _MAX_HOLDOUT_PERCENT:
            raise ConfigError(
                f"data.holdout_percent={self.holdout_percent} is outside 0 to {_MAX_HOLDOUT_PERCENT}; 20 is usual"
            )
        if self.max_length < _MIN_MAX_LENGTH:
            raise ConfigError(f"data.max_length={self.max_length} is too short; give at least {_MIN_MAX_LENGTH} tokens")
        if self.max_records is not None and self.max_records < 1:
            raise ConfigError(f"data.max_records={self.max_records} keeps nothing; give at least 1 or leave it out")
        if self.nominal_num_records is not None and self.nominal_num_records < 1:
            raise ConfigError(f"data.nominal_num_records={self.nominal_num_records}: give a whole number above 0")
        if self.nominal_num_records is not None and self.membership_file is None:
            raise ConfigError(
                f"data.nominal_num_records={self.nominal_num_records} needs data.membership_file; leave it out"
            )

    def _refuse_bad_labels(self) -> None:
        if self.labels is None:
            return
        if not self.labels:
            raise ConfigError("data.labels is empty; list every label or leave the key out")
        if any(not isinstance(label, str) for label in self.labels):
            raise ConfigError("data.labels holds something that is not text; quote the items")
        if any(not label.strip() for label in self.labels):
            raise ConfigError("data.labels holds an empty label; take it out")
        twice = [label for index, label in enumerate(self.labels) if label in self.labels[:index]]
        if twice:
            raise ConfigError(f"data.labels holds {twice[0]!r} twice; list each label once")

    def _refuse_bad_descriptions(self) -> None:
        for label, words in (self.label_descriptions or {}).items():
            if not isinstance(words, str) or not words.strip():
                raise ConfigError(f"data.label_descriptions.{label} is empty; say in words what the label means")
            if self.labels is not None and label not in self.labels:
                raise ConfigError(
                    f"data.label_descriptions.{label} describes no label of data.labels; correct it or take it out"
                )


def _refuse_bad_template(template: str | None) -> None:
    if template is None:
        return
    if template.count("{label}") != 1:
        raise ConfigError(f"data.prompt_template={template!r} must hold {{label}} exactly once")
    if set("{}") & set(template.replace("{label}", "")):
        raise ConfigError(f"data.prompt_template={template!r} holds a brace other than {{label}}; take it out")
