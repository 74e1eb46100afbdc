"""wmkit's own parts by name: the table that ``wmkit list KIND`` prints."""

from __future__ import annotations

from wmkit.registry import register

_PARTS: dict[str, dict[str, str]] = {
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
        "batch_norm_image_decoder": "wmkit.codecs:BatchNormImageDecoder",
        "batch_norm_image_encoder": "wmkit.codecs:BatchNormImageEncoder",
        "convolutional_image_decoder": "wmkit.codecs:ConvolutionalImageDecoder",
        "convolutional_image_encoder": "wmkit.codecs:ConvolutionalImageEncoder",
        "decoder": "wmkit.codecs:Decoder",
        "encoder": "wmkit.codecs:Encoder",
        "pooled_image_decoder": "wmkit.codecs:PooledImageDecoder",
        "pooled_image_encoder": "wmkit.codecs:PooledImageEncoder",
        "unpadded_image_decoder": "wmkit.codecs:UnpaddedImageDecoder",
        "unpadded_image_encoder": "wmkit.codecs:UnpaddedImageEncoder",
    },
    "controller": {  # and what it is made of
        "actor_critic": "wmkit.control:ActorCritic",
        "all_states": "wmkit.control:AllStates",
        "entropy_bonus": "wmkit.control:EntropyBonus",
        "entropy_floor": "wmkit.control:EntropyFloor",
        "mixed_gradient": "wmkit.control:MixedGradient",
        "pair_starts": "wmkit.control:PairStarts",
        "prefix_starts": "wmkit.control:PrefixStarts",
        "reinforce": "wmkit.control:Reinforce",
        "replay_critic": "wmkit.control:ReplayCritic",
        "sampled_starts": "wmkit.control:SampledStarts",
        "state_returns": "wmkit.control:StateReturns",
        "through_dynamics": "wmkit.control:ThroughDynamics",
        "transition_returns": "wmkit.control:TransitionReturns",
    },
    "dynamics": {
        "long_short": "wmkit.dynamics:LongShortRSSM",
        "rssm": "wmkit.dynamics:RSSM",
        "token": "wmkit.dynamics:TokenDynamics",
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
        "cross_entropy_latents": "wmkit.objectives:CrossEntropyLatents",
        "entropy_hinge": "wmkit.objectives:EntropyHinge",
        "head_losses": "wmkit.objectives:HeadLosses",
        "kl": "wmkit.objectives:KL",
        "kl_balance": "wmkit.objectives:KLBalance",
        "lambda_return_jumpy": "wmkit.objectives:LambdaReturnJumpy",
        "long_branch": "wmkit.objectives:LongBranch",
        "own_value_return": "wmkit.objectives:OwnValueReturn",
        "reconstruction": "wmkit.objectives:Reconstruction",
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
        "craftground": "wmkit.envs.craftground:CraftGroundEnv",
        "crafter": "wmkit.envs.crafter_env:CrafterEnv",
        "dmc_proprio": "wmkit.envs.dmc:dmc_proprio",
        "dmc_vision": "wmkit.envs.dmc:dmc_vision",
        "gym": "wmkit.envs.gymnasium_env:gymnasium_env",
        "minedojo": "wmkit.envs.minedojo:MineDojoEnv",
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
