"""Frappe in the publisher's layout: tab-separated, quotes as plain characters, unknown values, no times."""

from pathlib import Path

import pyarrow as pa
import pytest

from towers.errors import DataError
from training.sources import open_source

LOG = """user\titem\tcnt\tdaytime\tweekday\tisweekend\thomework\tcost\tweather\tcountry\tcity
0\t10\t3\tmorning\tsunday\tweekend\tunknown\tfree\tsunny\tSpain\t0
0\t10\t1\tnight\tmonday\tworkday\thome\tfree\tunknown\tSpain\t369
7\t11\t28752\tnight\tmonday\tworkday\twork\tpaid\tcloudy\tunknown\t369
"""
APPS = """item\tpackage\tcategory\tdownloads\tdeveloper\ticon\tlanguage\tdescription\tname\tprice\trating\tshort desc
10\ta.b\tTools\t10,000 - 50,000\tA\thttp://x\ten\tThe "best" lamp \u2713\tLamp "Pro\tFree\t4.5\tlight
11\tc.d\tunknown\tunknown\tunknown\thttp://y\tunknown\tunknown\tunknown\t$2.99\tunknown\tunknown
12\te.f\tGames\t10+\tB\thttp://z\tes\tjuego\tJuego\t1,99\tn/a\tx
"""


@pytest.fixture
def frappe(tmp_path: Path) -> Path:
    (tmp_path / "frappe.csv").write_text(LOG)
    (tmp_path / "meta.csv").write_text(APPS, encoding="utf-8")
    return tmp_path


def test_log_and_apps(data_config, frappe: Path) -> None:
    source = open_source(data_config("frappe", path=str(frappe), chunk_rows=2))
    log = pa.concat_tables(source.interactions())
    assert [len(chunk) for chunk in source.interactions()] == [2, 1]
    assert log["timestamp"].null_count == 3 and log["value"].to_pylist() == [3.0, 1.0, 28752.0]
    assert log["user_id"].to_pylist() == ["0", "0", "7"] and log["item_id"].to_pylist() == ["10", "10", "11"]
    assert log["homework"].to_pylist() == [None, "home", "work"] and log["weather"].to_pylist() == ["sunny", None, "cloudy"]
    assert log["country"].to_pylist() == ["Spain", "Spain", None] and log["city"].to_pylist() == [None, "369", "369"]
    assert "cost" not in log.column_names  # of the app, not of the moment
    items = source.items.to_pylist()
    assert [item["title"] for item in items] == ['Lamp "Pro', None, "Juego"]
    assert [item["categories"] for item in items] == [["Tools"], [], ["Games"]]
    assert [item["rating"] for item in items] == [4.5, None, None]
    assert items[0]["description"] == 'The "best" lamp \u2713' and len(source.users) == 0


def test_price_and_cost_are_item_columns(data_config, frappe: Path) -> None:
    features = [{"name": "price", "kind": "numeric", "owner": "item"}, {"name": "cost", "kind": "categorical", "owner": "item"}]
    items = open_source(data_config("frappe", path=str(frappe), features=features)).items
    assert items["price"].to_pylist() == [0.0, 2.99, None]
    assert items["cost"].to_pylist() == ["free", "paid", None]


def test_what_is_not_as_published_is_refused(data_config, frappe: Path) -> None:
    (frappe / "frappe.csv").write_text(LOG.replace("28752", "many"))
    with pytest.raises(DataError, match="'cnt' is no number"):
        open_source(data_config("frappe", path=str(frappe)))
    (frappe / "frappe.csv").write_text(LOG.replace("\tcity", "\ttown"))
    with pytest.raises(DataError, match=r"frappe\.csv: not as published.*city"):
        open_source(data_config("frappe", path=str(frappe)))
    (frappe / "meta.csv").unlink()
    with pytest.raises(DataError, match=r"meta\.csv"):
        (frappe / "frappe.csv").write_text(LOG)
        open_source(data_config("frappe", path=str(frappe)))


@pytest.mark.realdata
def test_real_frappe(data_config, real_data) -> None:
    source = open_source(data_config("frappe", path=str(real_data("frappe"))))
    log = pa.concat_tables(source.interactions())
    assert (len(log), len(set(log["user_id"].to_pylist())), len(source.items)) == (96_203, 957, 4_082)
    assert len(log) - log["city"].null_count == 96_203 - 38_052
