"""What follows the sum of a tower's inputs."""

from torch import nn

from towers.errors import ConfigError
from towers.features import linear
from towers.model_config import HeadConfig


def make_head(key: str, config: HeadConfig, dim: int) -> nn.Module:
    """What follows a tower's sum: `linear` (the sum is the vector) or `mlp` (ReLU layers, then dim).

    Raises:
        ConfigError: no head has that name, or a hidden layer has no width.
    """
    if config.name == "linear":
        return nn.Identity()
    if config.name != "mlp":
        raise ConfigError(f"model.{key}.name: got {config.name!r}, expected one of linear, mlp")
    if any(width < 1 for width in config.hidden):
        raise ConfigError(f"model.{key}.hidden: got {list(config.hidden)}, expected widths of at least 1")
    layers: list[nn.Module] = []
    width = dim
    for hidden in config.hidden:
        # sqrt(2 / inputs) keeps the scale through ReLU (He et al. 2015)
        layers += [linear(width, hidden, std=(2 / width) ** 0.5), nn.ReLU(), nn.Dropout(config.dropout)]
        width = hidden
    return nn.Sequential(*layers, linear(width, dim))
