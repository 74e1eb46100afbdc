"""Run folders that would execute, import, write or tell something, if what they name were believed.

    folders = hostile_folders(tmp_path / "hostile", run, tmp_path / "marks")

Each is a copy of a good run with another ``config.yaml``. What executes makes a file in the folder of marks;
what tells shows the environment variable ``SECRET`` in the report, in a message, or in a file's name.
"""

from __future__ import annotations

import copy
import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

MODULE, SECRET = "hostile_module", "WMKIT_TEST_SECRET"
Edit = Callable[[dict[str, Any]], Any]


def write_module(folder: Path, marks: Path) -> None:
    """A module that marks its import; put ``folder`` on ``sys.path``."""
    folder.mkdir(parents=True, exist_ok=True)
    marks.mkdir(parents=True, exist_ok=True)
    code = f"""
        from pathlib import Path
        import gymnasium
        Path({str(marks / "imported")!r}).touch()
        def mark(*args, **keywords):
            Path({str(marks / "called")!r}).touch()
        class Env(gymnasium.Env):
            observation_space = action_space = gymnasium.spaces.Discrete(2)
        gymnasium.register("Hostile-v0", entry_point=Env)
    """
    (folder / f"{MODULE}.py").write_text(textwrap.dedent(code))


def targets(marks: Path) -> dict[str, dict[str, Any]]:
    """Parts that are none, by a name for each."""
    mark = str(marks / "mark")
    shell, code = f"touch {mark}", f"open({mark!r}, 'w')"
    inner = {"_target_": "os.system", "command": shell}
    return {
        "os_system": inner,
        "posix_system": {"_target_": "posix.system", "command": shell},
        "subprocess": {"_target_": "subprocess.check_output", "_args_": [["touch", mark]]},
        "popen": {"_target_": "subprocess.Popen", "args": ["touch", mark]},
        "collect_env": {"_target_": "torch.utils.collect_env.run", "command": shell},
        "eval": {"_target_": "builtins.eval", "_args_": [code]},
        "exec": {"_target_": "builtins.exec", "_args_": [code]},
        "open": {"_target_": "builtins.open", "file": mark, "mode": "w"},
        "import": {"_target_": "builtins.__import__", "name": MODULE},
        "import_module": {"_target_": "importlib.import_module", "name": MODULE},
        "through_registry": {"_target_": "wmkit.registry.importlib.import_module", "name": MODULE},
        "through_nn": {"_target_": "wmkit.nn.mlp.torch.hub.load", "repo_or_dir": mark, "model": "x"},
        "through_a_class": {"_target_": "wmkit.nn.MLP.__init__.__globals__", "x": 1},
        "registered": {"_target_": "wmkit.registry.register", "kind": "env", "name": "x", "target": MODULE},
        "resolved": {"_target_": "wmkit.registry.resolve", "kind": "env", "name": "gym"},
        "add_pages": {"_target_": "wmkit.registry.add_pages", "where": MODULE},
        "run_directory": {"_target_": "wmkit.training.run.RunDirectory.create", "config": {"run_dir": mark}},
        "main": {"_target_": "wmkit.cli.app.main"},
        "train": {"_target_": "wmkit.training.train", "config": {"run_dir": mark}},
        "save_affordance": {"_target_": "wmkit.affordance.save_affordance", "path": mark},
        "replay": {
            "_target_": "wmkit.data.ReplayStreams",
            "directory": mark,
            "num_streams": 1,
            "capacity": 9,
        },
        "torch_load": {"_target_": "torch.load", "f": mark, "weights_only": False},
        "torch_save": {"_target_": "torch.save", "obj": [1], "f": mark},
        "numpy_load": {"_target_": "numpy.load", "file": mark, "allow_pickle": True},
        "pickle": {"_target_": "pickle.loads", "_args_": ["x"]},
        "instantiate": {"_target_": "hydra.utils.instantiate", "config": inner},
        "call": {"_target_": "hydra.utils.call", "config": inner},
        "partial": {"_target_": "functools.partial", "_args_": [inner]},
        "path": {"_target_": "pathlib.Path.touch", "self": {"_target_": "pathlib.Path", "_args_": [mark]}},
        "rmtree": {"_target_": "shutil.rmtree", "path": str(marks)},
        "copy": {"_target_": "shutil.copy", "src": "/etc/hostname", "dst": mark},
        "module": {"_target_": f"{MODULE}.mark"},
        "just_a_module": {"_target_": MODULE},
        "colon": {"_target_": f"{MODULE}:mark"},
        "spaces": {"_target_": " os.system", "command": shell},
        "no_text": {"_target_": ["os", "system"], "command": shell},
        "getenv": {"_target_": "os.getenv", "key": SECRET},
        "warn": {"_target_": "warnings.warn", "message": f"${{oc.env:{SECRET}}}"},
    }


def put(path: str, value: Any) -> Edit:
    """Put ``value`` at a dotted path, blocks made on the way."""

    def edit(config: dict[str, Any]) -> None:
        *parts, last = path.split(".")
        for part in parts:
            config = config.setdefault(part, {})
            assert isinstance(config, dict), path
        config[last] = value

    return edit


def edits(marks: Path) -> dict[str, Edit]:
    """What is done to a good configuration, by a name for each."""
    mark = str(marks / "mark")
    found = {f"exploration_{name}": put("exploration", node) for name, node in targets(marks).items()}
    bad = targets(marks)["os_system"]
    places = {
        "head": "world_model.heads.more",
        "optimiser": "schedule.learners.joint.optimizer",
        "norm": "controller.return_norm",
        "hook": "controller.hooks.more",
        "style": "style.activation",
        "env_option": "env.options.thing",
        "env_name": "env.name",
        "training": "training.replay.sampler",
        "pairs": "training.pairs.more",
        "affordance": "affordance.transform",
        "size": "size.units",
        "seed": "seed",
        "nobody": "nobody.reads.this",
    }
    found |= {f"at_{name}": put(place, bad) for name, place in places.items()}
    found |= {f"partial_at_{name}": put(place, bad | {"_partial_": True}) for name, place in places.items()}
    told = f"${{oc.env:{SECRET}}}"
    found |= {
        "in_a_list": put("controller.hooks", [[{"a": bad}]]),
        "in_arguments": put("exploration", {"_target_": "wmkit.nn.MLP", "_args_": [bad]}),
        "args": put("critic._args_", [bad]),
        "recursive": put("critic._recursive_", False),
        "convert": put("critic._convert_", "object"),
        "partial_text": put("critic._partial_", "${oc.env:HOME}"),
        "target_from_a_key": lambda config: (
            put("nobody", "os.system")(config),
            put("exploration", {"_target_": "${nobody}", "command": f"touch {mark}"})(config),
        ),
        "part_from_a_key": lambda config: (
            put("nobody", bad)(config),
            put("exploration", "${nobody}")(config),
        ),
        "target_in_pieces": lambda config: (
            put("nobody", {"a": "os.", "b": "system"})(config),
            put("exploration", {"_target_": "${nobody.a}${nobody.b}", "command": f"touch {mark}"})(config),
        ),
        "env_module": put("env.name", f"{MODULE}:Hostile-v0"),
        "env_module_in_gym": put("env.name", f"gym/{MODULE}:Hostile-v0"),
        "env_module_from_a_key": lambda config: (
            put("nobody", f"{MODULE}:Hostile-v0")(config),
            put("env.name", "${nobody}")(config),
        ),
        "env_module_in_pieces": lambda config: (
            put("nobody", MODULE)(config),
            put("env.name", "${nobody}:Hostile-v0")(config),
        ),
        "env_module_as_option": lambda config: (
            put("env.name", "gym")(config),
            put("env.options", {"env_id": f"{MODULE}:Hostile-v0"})(config),
        ),
        "env_module_of_a_number": lambda config: (
            put("env.name", "gym")(config),
            put("env.options", {"env_id": f"{MODULE}:1"})(config),
        ),
        "env_module_in_evaluation": put("env.evaluation", {"env_id": f"{MODULE}:Hostile-v0"}),
        "told_in_seed": put("nobody", told),
        "told_in_name": put("env.name", told),
        "told_in_folder": put("run_dir", f"{marks}/{told}"),
        "told_in_list": put("observations.images", [told]),
        "told_by_decode": put("nobody", f"${{oc.decode:{told}}}"),
        "told_by_default": put("nobody", f"${{oc.select:none,{told}}}"),
        "told_by_pieces": lambda config: (
            put("a", {"b": "env"})(config),
            put("nobody", f"${{oc.${{a.b}}:{SECRET}}}")(config),
        ),
        "told_when_read_again": put("nobody", f"\\{told}"),
        "told_when_joined": lambda config: (
            put("a", {"b": "$", "c": f"{{oc.env:{SECRET}}}"})(config),
            put("nobody", "${a.b}${a.c}")(config),
        ),
        "told_by_hydra": put("nobody", "${hydra:runtime.cwd}"),
        "told_by_values": put("nobody", "${oc.dict.values:env}"),
        "created": put("nobody", "${oc.create:{_target_: os.system}}"),
        "deprecated": put("nobody", "${oc.deprecated:seed}"),
        "search_path": put("hydra", {"searchpath": [f"file://{marks}"]}),
        "defaults": put("defaults", [{"/exploration": "evil"}]),
        "references_that_multiply": lambda config: config.update(
            {"x0": "aaaaaaaaaa"},
            **{f"x{i}": {str(k): f"${{x{i - 1}}}" for k in range(9)} for i in range(1, 12)},
        ),
        "references_in_a_chain": lambda config: config.update(
            {"x0": "a"}, **{f"x{i}": f"${{x{i - 1}}}" for i in range(1, 2000)}
        ),
        "reference_to_no_index": lambda config: config.update({"x": [1], "nobody": "${x.²}"}),
    }
    return found


def texts(marks: Path) -> dict[str, str]:
    """Ends of a ``config.yaml`` that YAML itself would have to refuse."""
    mark = str(marks / "mark")
    levels = "".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]\n" for i in range(1, 12))
    return {
        "yaml_apply": f'nobody: !!python/object/apply:os.system ["touch {mark}"]\n',
        "yaml_new": f"nobody: !!python/object/new:subprocess.Popen [[touch, {mark}]]\n",
        "yaml_name": f"nobody: !!python/name:{MODULE}.mark\n",
        "yaml_module": f"nobody: !!python/module:{MODULE}\n",
        "yaml_merge": f"bad: &bad {{_target_: os.system, command: touch {mark}}}\nnobody: {{<<: *bad}}\n",
        "yaml_laughs": f"x0: &x0 [a, a, a]\n{levels}",
        "yaml_circle": "x0: &x0 [*x0]\n",
        "yaml_deep": f"nobody: {'[' * 5000}{']' * 5000}\n",
        "yaml_two": "---\nnobody: 1\n",
    }


def hostile_folders(into: Path, run: Path, marks: Path) -> list[Path]:
    """Copies of ``run``, each with another hostile ``config.yaml``, in folders of the variants' names."""
    text = (run / "config.yaml").read_text()
    good: Any = OmegaConf.to_container(OmegaConf.create(text))
    configs = {name: text + end for name, end in texts(marks).items()}
    for name, edit in edits(marks).items():
        config = copy.deepcopy(good)
        edit(config)
        configs[name] = OmegaConf.to_yaml(OmegaConf.create(config))
    for name, changed in configs.items():
        shutil.copytree(run, into / name, ignore=shutil.ignore_patterns("replay", "tensorboard", ".lock"))
        (into / name / "config.yaml").write_text(changed)
    return [into / name for name in configs]
