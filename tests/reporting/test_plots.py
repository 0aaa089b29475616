"""Plots: what is drawn of which results, missing parts, names that are no formulas, files."""

import math
import re
from xml.etree import ElementTree

import matplotlib as mpl
import pytest

from hf_era.evaluation.relearn.result import RelearnCurve, RelearnPoint, RelearnTrial
from hf_era.reporting.plots import PLOT_KINDS, figure_svg, inline_svg, plot_kinds, save_plots
from hf_era.reporting.plots import relearn as relearn_plot
from hf_era.reporting.plots import token_weights as token_weights_plot
from hf_era.reporting.plots.style import (
    CONTROL_COLOUR,
    INK,
    METHOD_COLOURS,
    NO_ROUTING,
    SERIES,
    UNTOUCHED_COLOUR,
    looks,
)

from .samples import (
    HOSTILE,
    attack,
    bare_run,
    comparison,
    estimate,
    hostile_run,
    model_result,
    profile_values,
    run_of_modules,
    run_result,
    stock_result,
)  # fmt: skip

KINDS = {kind.name: kind for kind in PLOT_KINDS}


def texts(figure):
    """Every text of the file, spelled as a reader sees it."""
    root = ElementTree.fromstring(figure_svg(figure))
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def test_which_kinds_there_are_data_for():
    assert [kind.name for kind in plot_kinds([run_of_modules()])] == list(KINDS)
    assert [kind.name for kind in plot_kinds([run_result()])] == [name for name in KINDS if name != "profiles"]
    assert [kind.name for kind in plot_kinds([stock_result()])] == ["relearn_curves", "trade_off", "training"]
    assert [kind.name for kind in plot_kinds([model_result()])] == ["relearn_curves", "trade_off"]
    assert [kind.name for kind in plot_kinds(comparison())] == ["relearn_curves", "trade_off", "selectivity"]
    assert plot_kinds([bare_run()]) == []
    with pytest.raises(ValueError, match="`results` is empty"):
        plot_kinds([])


@pytest.mark.parametrize("kind", PLOT_KINDS, ids=lambda kind: kind.name)
def test_without_data_a_figure_says_so(kind):
    [text] = texts(kind.draw([bare_run()]))
    assert re.search(r"No |not measured", text)


def test_files_are_the_same_every_time(tmp_path):
    paths = save_plots([run_result()], tmp_path / "plots")
    assert [path.name for path in paths] == [f"{name}.svg" for name in KINDS if name != "profiles"]
    again = figure_svg(KINDS["leak_audit"].draw([run_result()]))
    assert paths[-1].read_text(encoding="utf-8") == again
    assert all(ElementTree.parse(path).getroot().tag.endswith("svg") for path in paths)


def test_names_are_text_and_no_formulas():
    shown = texts(KINDS["trade_off"].draw([run_result(name="$x_1$ <b>"), run_result(name="_hidden"), hostile_run()]))
    assert "$x_1$ <b>" in shown
    assert "_hidden" in shown
    assert HOSTILE[:33] + "…" in shown


def test_a_users_own_settings_of_matplotlib_neither_count_nor_change():
    kind = KINDS["selectivity"]
    expected = figure_svg(kind.draw([run_result()]))
    with mpl.rc_context({"font.size": 30.0, "text.parse_math": True, "axes.facecolor": "red"}):
        assert figure_svg(kind.draw([run_result()])) == expected
        assert mpl.rcParams["font.size"] == 30.0


def test_trials_mean_keeps_the_last_loss_of_a_trial_that_stopped():
    def trial(number, *losses):
        points = [RelearnPoint(step, loss, 0.0) for step, loss in enumerate(losses)]
        return RelearnTrial("full", 4, 1e-4, number, number, RelearnCurve(points))

    steps, estimates = relearn_plot.trials_mean([trial(0, 3.0, 1.0, 2.5), trial(1, 3.0, 2.0)], "forget_loss")
    assert steps == [0, 1, 2]
    # At step 2: (2.5 + the last loss of the other trial, 2.0) / 2.
    assert [part.value for part in estimates] == [3.0, 1.5, 2.25]
    # t(1) = 12.706205; the deviation of 1 and 2 is 1 / sqrt(2), over sqrt(2) trials: 0.5.
    assert estimates[1].low == pytest.approx(1.5 - 12.706205 * 0.5)


def test_one_line_per_number_of_stories_of_the_strongest_attack():
    relearning = attack((3.3, 3.0), 0.4)
    strongest = relearn_plot.strongest_per_stories(relearning)
    assert list(strongest) == [1, 4, 16, 64]
    assert {(part.kind, part.learning_rate) for part in strongest.values()} == {("full", 2e-4)}
    panels = KINDS["relearn_curves"].draw([run_result()]).axes
    # Four curves, and in the forget panel the level before the method and that of recovery.
    assert [len(panel.lines) for panel in panels] == [6, 5]
    assert [line.get_ydata()[0] for line in panels[0].lines[4:]] == pytest.approx([3.036, 3.086])


def one_curve(name, seed, before, *losses):
    """A run with one trial of one attack on 4 examples, and a level before the method."""
    points = [{"step": 5 * step, "forget_loss": loss, "retain_loss": 3.0} for step, loss in enumerate(losses)]
    values = attack((3.3, 3.0), 0.4, before, trials=1).to_dict()
    [trial] = [trial for trial in values["trials"] if (trial["kind"], trial["stories"], trial["learning_rate"]) ==
               ("full", 4, 2e-4)]  # fmt: skip
    return run_result(name=name, seed=seed, attack={**values, "trials": [{**trial, "curve": {"points": points}}]})


def test_seeds_are_averaged_as_differences_from_the_loss_before():
    seeds = [
        one_curve("mine", 0, {"forget": 3.0, "retain": 3.0}, 3.3, 3.1),
        one_curve("mine", 1, {"forget": 2.0, "retain": 3.0}, 2.5, 2.3, 2.4),
    ]
    results = [seeds[0], one_curve("other", 0, {"forget": 3.0, "retain": 3.0}, 3.0), seeds[1]]
    forget = KINDS["relearn_curves"].draw(results).axes[0]
    mine, other, before, recovered = forget.lines
    assert list(mine.get_xdata()) == [0, 5, 10]
    # 0.3 and 0.5, 0.1 and 0.3; then the last of one, 0.1, and 0.4.
    assert list(mine.get_ydata()) == pytest.approx([0.4, 0.2, 0.25])
    assert list(other.get_ydata()) == [0.0]
    assert (before.get_ydata()[0], recovered.get_ydata()[0]) == (0.0, 0.05)
    [band] = forget.collections  # from the lowest seed to the highest; one trial of one seed has none
    corners = {(round(x, 3), round(y, 3)) for x, y in band.get_paths()[0].vertices}
    assert {(0, 0.3), (0, 0.5), (5, 0.1), (5, 0.3), (10, 0.1), (10, 0.4)} <= corners
    assert "the band reaches from the lowest seed to the highest" in KINDS["relearn_curves"].caption(results)
    # What it was before is not known of all: losses as they are, without levels.
    unknown = [*results, one_curve("third", 0, None, 3.2)]
    assert [line.get_ydata()[0] for line in KINDS["relearn_curves"].draw(unknown).axes[0].lines] == [2.9, 3.0, 3.2]
    assert "Losses as they are" in KINDS["relearn_curves"].caption(unknown)


def test_a_colour_is_of_the_method_whatever_else_is_shown():
    results = [*comparison(), model_result(name="rmu")]
    shown = looks(results)
    assert looks(results[::-1]) == shown
    for result in results:
        assert looks([result])[result.name].color == shown[result.name].color
    routed, other = shown["posttrain_fullseq"], shown["posttrain_concept"]
    assert routed.color == other.color in METHOD_COLOURS
    assert (routed.line_style, routed.marker) != (other.line_style, other.marker)
    assert shown["rmu"].color in METHOD_COLOURS
    assert shown[stock_result().name].color == CONTROL_COLOUR
    untouched = stock_result("base")
    assert looks([untouched])[untouched.name].color == UNTOUCHED_COLOUR
    unrouted = run_result(config={"routing": {"rule": "none"}})
    assert looks([unrouted])[unrouted.name].color == NO_ROUTING


def test_every_colour_follows_a_dark_page(repository_root):
    page = (repository_root / "hf_era" / "reporting" / "html" / "base.html").read_text(encoding="utf-8")
    assert {*METHOD_COLOURS, CONTROL_COLOUR, UNTOUCHED_COLOUR, NO_ROUTING} <= {*SERIES, INK}
    dark = re.findall(r"--series-(\d+): (#\w+)", page)
    assert [int(number) for number, _ in dark] == list(range(len(SERIES)))
    assert len({colour for _, colour in dark}) == len(SERIES)


def test_a_loss_that_is_not_finite_leaves_a_gap():
    points = [{"step": step, "forget_loss": loss, "retain_loss": 3.0} for step, loss in enumerate((3.0, 2.5, math.nan))]
    values = attack((3.3, 3.0), 0.4, trials=1).to_dict()
    values["trials"] = [{**values["trials"][0], "curve": {"points": points}}]
    panel = KINDS["relearn_curves"].draw([run_result(attack=values)]).axes[0]
    assert list(panel.lines[0].get_ydata())[:2] == [3.0, 2.5]
    assert math.isnan(panel.lines[0].get_ydata()[2])


def test_tokens_are_sorted_and_counted():
    assert token_weights_plot.counts(run_result()) == (2, 3, 35)
    shown = texts(KINDS["token_weights"].draw([run_result()]))
    assert shown.index('" tree"') < shown.index('" bird"') < shown.index('" flew"')
    assert '"$x^2$"' in shown


def test_selectivity_without_a_value_or_interval():
    result = run_result(
        selectivity={"10": {"value": 1.2}, "2": estimate(1.5), "0": {"value": None}, "1": {"value": math.nan}}
    )
    panel = KINDS["selectivity"].draw([result]).axes[0]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["2", "10"]


@pytest.mark.parametrize("missing", ["gradient", "ablation"])
def test_half_a_leak_audit(missing):
    audit = {name: part for name, part in run_result().leak_audit.items() if name != missing}
    assert "not measured" in texts(KINDS["leak_audit"].draw([run_result(leak_audit=audit)]))


@pytest.mark.parametrize("number", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_any_number_of_models_fits(number):
    results = [run_result(name=f"recipe_{index}", shift=0.02 * index) for index in range(number)]
    for kind in plot_kinds(results):
        figure = kind.draw(results)
        figure_svg(figure)
        if number == 20:
            names = [text.get_text() for text in figure.legends[0].get_texts()]
            assert names[:20] == sorted(f"recipe_{index}" for index in range(20))
            looks = {
                (line.get_color(), line.get_linestyle(), line.get_marker(), line.get_markerfacecolor())
                for line in figure.legends[0].get_lines()[:20]
            }
            assert len(looks) == 20
        for legend in figure.legends:
            box = legend.get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.x1


def test_inline_plots_follow_the_page_and_share_no_ids():
    figure = KINDS["leak_audit"].draw([run_result()])
    first, second = (inline_svg(figure, name, 'a "label" <b>') for name in ("first", "second"))
    root = ElementTree.fromstring(first)
    [picture] = [element for element in root.iter() if element.get("role") == "img"]
    assert picture.attrib["aria-label"] == 'a "label" <b>'
    assert len(picture) == 3  # a picture per panel
    legend = ["".join(entry.itertext()).strip() for entry in root.iter("li")]
    assert legend == [text.get_text() for text in figure.legends[0].get_texts()]
    ids = [set(re.findall(r' id="([^"]+)"', text)) for text in (first, second)]
    assert ids[0]
    assert not ids[0] & ids[1]
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', first)) <= ids[0]
    assert "currentColor" in first
    assert "var(--series-1, #d55e00)" in first
    assert "#1a1a1b" not in first
    assert not re.search(r"<(style|metadata|script)|https?://(?!www\.w3\.org/)", first)


def test_the_profiles_are_a_heat_map_whose_columns_are_dark_where_their_module_is_off():
    result = run_of_modules(profiles=profile_values(("biology", "$x_1$")))
    figure = KINDS["profiles"].draw([result])
    assert {"core", "core + biology + $x_1$", "3.50", "biology", "$x_1$", "Retain examples"} <= set(texts(figure))
    dark = {(patch.get_x(), patch.get_y()): patch.get_alpha() for patch in figure.axes[0].patches}
    column = [dark[-0.5, row - 0.5] for row in range(4)]  # biology, from core to all on
    assert column == [pytest.approx(part) for part in (0.75, 0, 0.75, 0)]
    assert max(dark[1.5, row - 0.5] for row in range(4)) < 0.1  # retain examples hardly differ
