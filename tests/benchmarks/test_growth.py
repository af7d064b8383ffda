from xml.etree import ElementTree

from benchmarks.serve.figures.growth import CLIENT_COUNTS, MODEL_COUNTS, copies, plot
from benchmarks.serve.summary import Spread
from model import checkpoint


def test_plot_has_a_line_for_every_number_of_models_and_the_limit() -> None:
    rates = {
        (clients, models): Spread(median=clients / models, low=0.0, high=1.0)
        for clients in CLIENT_COUNTS
        for models in MODEL_COUNTS
    }
    root = ElementTree.fromstring(plot(rates, limit=20.0))
    svg = "{http://www.w3.org/2000/svg}"
    lines = list(root.iter(f"{svg}polyline"))
    assert len(lines) == len(MODEL_COUNTS)
    assert {len(line.attrib["points"].split()) for line in lines} == {len(CLIENT_COUNTS)}
    words = {label.text for label in root.iter(f"{svg}text")}
    assert {"1 model", "4 models", "network's limit", "clients", "images/s"} <= words


def test_copies_are_other_models_that_answer_alike() -> None:
    with copies(3) as folder:
        found = [checkpoint.load(path) for path in sorted(folder.iterdir())]
    assert len({copy.digest for copy in found}) == 3
    first, *others = [copy.network.state_dict() for copy in found]
    for other in others:
        for name, weight in first.items():
            assert other[name].allclose(weight, rtol=1e-4), name
