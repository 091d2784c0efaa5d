"""The configuration of a run: frozen dataclasses, read from YAML files and command-line overrides."""

from dataclasses import dataclass, field

from gems_jax.config.base_model import ModelConfig, NullSpaceConfig, PretrainConfig
from gems_jax.config.data import DataConfig, TextConfig
from gems_jax.config.evaluate import EvaluateConfig
from gems_jax.config.items import ItemsConfig
from gems_jax.config.optimiser import GemsConfig, LoraConfig, OrbitConfig
from gems_jax.config.train import MeshConfig, TrainConfig


@dataclass(frozen=True)
class Config:
    """Everything a run is made of.

    Attributes:
      name: name of the run in tables.
    """

    name: str = "GEMS"
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    null_space: NullSpaceConfig = field(default_factory=NullSpaceConfig)
    items: ItemsConfig = field(default_factory=ItemsConfig)
    gems: GemsConfig = field(default_factory=GemsConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    orbit: OrbitConfig = field(default_factory=OrbitConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
