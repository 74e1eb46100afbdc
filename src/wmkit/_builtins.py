"""wmkit's own parts by name: the table that ``wmkit list KIND`` prints."""

from __future__ import annotations

from wmkit.registry import register

_PARTS: dict[str, dict[str, str]] = {
    "system": {
        "dreamer_v1": "wmkit.systems.build:build",
        "dreamer_v2": "wmkit.systems.build:build",
        "dreamer_v3": "wmkit.systems.build:build",
        "dreamer_v3_2023": "wmkit.systems.build:build",
        "dreamer_v3_2024": "wmkit.systems.build:build",
        "ls_imagine": "wmkit.systems.build:build",
        "storm": "wmkit.systems.build:build",
        "transdreamer": "wmkit.systems.build:build",
        "twm": "wmkit.systems.build:build",
    },
    "backbone": {
        "block_gru": "wmkit.backbones.block_gru:BlockGRU",
        "gpt": "wmkit.backbones.gpt:GPT",
        "gru": "wmkit.backbones.gru:GRU",
        "ln_gru": "wmkit.backbones.ln_gru:LayerNormGRU",
        "ln_gru_bias": "wmkit.backbones.ln_gru:BiasedLayerNormGRU",
        "lstm": "wmkit.backbones.lstm:LSTM",
        "s5": "wmkit.backbones.s5:S5",
        "stacked_transformer": "wmkit.backbones.stacked:StackedTransformer",
        "transformer_xl": "wmkit.backbones.transformer_xl:TransformerXL",
    },
    "codec": {
        "decoder": "wmkit.codecs:Decoder",
        "encoder": "wmkit.codecs:Encoder",
    },
    "head": {
        "continue": "wmkit.heads:ContinueHead",
        "continuous_actor": "wmkit.heads:ContinuousActor",
        "critic": "wmkit.heads:Critic",
        "discrete_actor": "wmkit.heads:DiscreteActor",
        "head": "wmkit.heads:Head",
        "jump_flag": "wmkit.heads:JumpFlagHead",
        "jump_return": "wmkit.heads:JumpReturnHead",
        "jump_span": "wmkit.heads:JumpSpanHead",
        "reward": "wmkit.heads:RewardHead",
        "tanh_normal_actor": "wmkit.heads:TanhNormalActor",
        "truncated_normal_actor": "wmkit.heads:TruncatedNormalActor",
    },
    "objective": {
        "actor_critic": "wmkit.objectives:ActorCriticLoss",
        "actor_critic_2020": "wmkit.objectives:ActorCriticLoss2020",
        "dream_actor_critic": "wmkit.objectives:DreamActorCritic",
        "lambda_return_jumpy": "wmkit.objectives:LambdaReturnJumpy",
        "replay_critic": "wmkit.objectives:ReplayCriticLoss",
        "scaled_dream_actor_critic": "wmkit.objectives:ScaledDreamActorCritic",
        "token_world_model": "wmkit.objectives:TokenWorldModelLoss",
        "world_model": "wmkit.objectives:WorldModelLoss",
    },
    "sampler": {
        "online": "wmkit.data.samplers:OnlineQueue",
        "uniform": "wmkit.data.samplers:Uniform",
        "visit_balanced": "wmkit.data.samplers:VisitBalanced",
    },
    "env": {
        "atari": "wmkit.envs.atari:atari",
        "atari100k": "wmkit.envs.atari:atari100k",
        "counting": "wmkit.envs.counting:CountingEnv",
        "crafter": "wmkit.envs.crafter_env:CrafterEnv",
        "dmc_proprio": "wmkit.envs.dmc:dmc_proprio",
        "dmc_vision": "wmkit.envs.dmc:dmc_vision",
        "gym": "wmkit.envs.gymnasium_env:gymnasium_env",
        "minigrid": "wmkit.envs.minigrid_env:MinigridEnv",
        "vizdoom/harvest_log_in_plains": "wmkit.envs.vizdoom.env:harvest_log_in_plains",
        "vizdoom/harvest_sand": "wmkit.envs.vizdoom.env:harvest_sand",
        "vizdoom/harvest_water_with_bucket": "wmkit.envs.vizdoom.env:harvest_water_with_bucket",
        "vizdoom/mine_iron_ore": "wmkit.envs.vizdoom.env:mine_iron_ore",
        "vizdoom/shear_sheep": "wmkit.envs.vizdoom.env:shear_sheep",
    },
    "scorer": {
        "embedded": "wmkit.affordance.scorers.embedded:EmbeddedScorer",
        "hf_clip": "wmkit.affordance.scorers.hf_clip:HFClipScorer",
        "labels": "wmkit.affordance.scorers.label_scorer:LabelScorer",
    },
}

for _kind, _names in _PARTS.items():
    for _name, _target in _names.items():
        register(_kind, _name, _target)
