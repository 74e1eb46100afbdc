"""``data=PATH`` on the command line: what it adds to a configuration, and what it takes away.

A run that learns from records needs no environment. It keeps one where it was chosen, for evaluations and to
go on in; the one that a page merely begins with is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf, open_dict

from wmkit.data.recorded.settings import DataSettings
from wmkit.errors import ConfigError
from wmkit.systems.page_files import defaults, find_page, load_whole

KEYS = DataSettings.names()


def as_block(override: str) -> str:
    """``data=PATH`` as the path of a ``data`` block, which no page need have.

    >>> as_block("data=runs/one"), as_block("data.frame_skip=5"), as_block("seed=1")
    ('++data.path=runs/one', '++data.frame_skip=5', 'seed=1')
    """
    key, equals, value = override.partition("=")
    plain = key.lstrip("+")
    if value.strip() and plain == "data":
        return f"++data.path={value}"
    return f"++{plain}={value}" if equals and plain.startswith("data.") else override


def settle(config: DictConfig, system: str, overrides: Sequence[str]) -> None:
    """Fill in the ``data`` block of a composed configuration, and leave out an environment nobody chose.

    Raises:
        ConfigError: a value that does not fit, settings without a data set, or a system that cannot.
    """
    given = [key for key in (o.partition("=")[0].lstrip("+") for o in overrides) if key.startswith("data.")]
    if not OmegaConf.select(config, "data.path"):
        if given:
            raise ConfigError(
                f"{given[0]} is given without a data set: found no data.path, wanted one; write data=PATH as "
                "well"
            )
        with open_dict(config):
            config.pop("data", None)
        return
    block = OmegaConf.to_container(config.data, resolve=True)
    settings = DataSettings.read(block)  # type: ignore[arg-type]
    if config.get("affordance") is not None:
        raise ConfigError(
            f"system {system} cannot learn from data={settings.path}: found that it needs maps of each "
            "frame, which its environment gives, wanted a system without an affordance block; choose another"
        )
    with open_dict(config):
        config.data = vars(settings) | {"keys": None if settings.keys is None else list(settings.keys)}
        if not _chosen(config, system, overrides):
            config.env = None
    if settings.live and config.env is None:
        raise ConfigError(
            "data.live=true needs an environment to go on in: found none, wanted one; write env=NAME as well"
        )


def _chosen(config: DictConfig, system: str, overrides: Sequence[str]) -> bool:
    """Whether an override or a preset brought the environment."""
    if any(o.lstrip("+").startswith(("env=", "env.")) for o in overrides):
        return True
    page = find_page(f"env/{defaults(system).get('env')}")
    return page is None or config.env.get("name") != load_whole(page).get("name")
