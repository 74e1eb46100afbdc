"""wmkit's own parts by name: the table that ``wmkit list KIND`` prints."""

from __future__ import annotations

from wmkit.registry import register

for _name in ("dreamer_v3_2023", "ls_imagine"):
    register("system", _name, "wmkit.systems.build:build")

for _name, _target in {
    "gru": "wmkit.backbones.gru:GRU",
    "ln_gru": "wmkit.backbones.ln_gru:LayerNormGRU",
}.items():
    register("backbone", _name, _target)

for _name, _target in {
    "labels": "wmkit.affordance.scorers.labels:LabelScorer",
    "embedded": "wmkit.affordance.scorers.embedded:EmbeddedScorer",
    "hf_clip": "wmkit.affordance.scorers.hf_clip:HFClipScorer",
}.items():
    register("scorer", _name, _target)

for _name, _target in {
    "uniform": "wmkit.data.samplers:Uniform",
    "online": "wmkit.data.samplers:OnlineQueue",
    "visit_balanced": "wmkit.data.samplers:VisitBalanced",
}.items():
    register("sampler", _name, _target)

for _task in (
    "harvest_log_in_plains",
    "harvest_sand",
    "harvest_water_with_bucket",
    "mine_iron_ore",
    "shear_sheep",
):
    register("env", f"vizdoom/{_task}", f"wmkit.envs.vizdoom_env:{_task}")
register("env", "counting", "wmkit.envs.counting:CountingEnv")
