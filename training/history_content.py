"""History rows with content (`model.history.content`): what an event's item is, told beside its id. Content comes from the item tower, so
what training learns of it there counts in histories at once, and films seen once or twice read like others of their kind.

Serving looks rows up by id and knows no content of a history's items: when training ends, ids and content are summed up in a table of the
history's own (`folded`), and vectors stay as they were.

Legend: V rows of the item id vocabulary, R distinct rows of a batch, I items of the catalogue, D dim.
"""

from dataclasses import replace
from functools import reduce

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from towers.columns import FIRST_ROW, ITEM_ID, PAD_ROW
from towers.errors import ConfigError
from towers.features import missing_value
from towers.lookups import HISTORY_TABLE
from towers.model import TwoTower
from towers.model_config import InputSpec, ModelConfig
from training.interactions import Interactions

ITEM = f"item.{ITEM_ID}"


class ContentTower(TwoTower):
    """Towers whose history rows are what the item tower sums up before it divides by the length: the id's row and the content's.

    Raises:
        ConfigError: items have nothing but their ids.
    """

    pools_rows = False

    def __init__(self, config: ModelConfig, data: Interactions, device: torch.device) -> None:
        super().__init__(config, data.preprocessor.inputs, data.preprocessor.event_rows)
        self._specs = [spec for spec in self.plan.item_specs if spec.name != ITEM]
        if not self._specs:
            raise ConfigError(
                "model.history.content: items have no features but their ids. Declare some in data.features, or set it to false"
            )
        self._content = {spec.name: by_id(spec, data, device) for spec in self._specs}
        self._read = [entry for entry in self.plan.item if entry.source in self._content]

    def history_rows(self, ids: Tensor) -> Tensor:
        distinct_R, place = torch.unique(ids, return_inverse=True)
        gathered = self.gather({name: values_V[distinct_R] for name, values_V in self._content.items()}, self._read)
        content_RD = reduce(torch.add, (self.item_features.part(spec, gathered, self.small_tables) for spec in self._specs))
        return super().history_rows(ids) + F.embedding(place, content_RD * (distinct_R != PAD_ROW).unsqueeze(1))


def by_id(spec: InputSpec, data: Interactions, device: torch.device) -> Tensor:
    """A feature's input by row of the item id vocabulary, [V, ...]: missing for ids that stand for no item of the catalogue."""
    values_I = data.item_features[spec.name]
    id_I = np.asarray(data.item_features[ITEM], np.int64)
    known_I = id_I >= FIRST_ROW
    rows = len(data.preprocessor.vocabularies[ITEM_ID])
    values_V = missing_value(spec, torch.zeros((rows, *values_I.shape[1:]), dtype=torch.from_numpy(np.array(values_I[:0])).dtype))
    values_V[torch.from_numpy(id_I[known_I])] = torch.from_numpy(np.array(values_I[known_I]))
    return values_V.to(device)


def build(config: ModelConfig, data: Interactions, device: torch.device) -> TwoTower:
    """The model that training moves, on the device."""
    if config.history.content:
        return ContentTower(config, data, device).to(device)
    return TwoTower(config, data.preprocessor.inputs, data.preprocessor.event_rows).to(device)


def folded(model: TwoTower, data: Interactions) -> TwoTower:
    """The same towers with their history rows summed up in a table; a model without content in its history is returned as it is."""
    if not isinstance(model, ContentTower):
        return model
    device = next(model.parameters()).device
    config = replace(model.config, history=replace(model.config.history, share_item_table=False))
    plain = TwoTower(config, data.preprocessor.inputs, data.preprocessor.event_rows)
    with torch.no_grad():
        rows_VD = model.history_rows(torch.arange(len(data.preprocessor.vocabularies[ITEM_ID]), device=device))
    plain.load_state_dict({**model.state_dict(), f"tables.{HISTORY_TABLE}.weight": rows_VD})
    return plain.to(device).eval()
