//! Renders the report as one HTML page in the style of run pages. The page loads nothing from the network.

use super::elements::{PlotRow, escaped, forest_figure, head, named, number, path, percent};
use crate::label::record::annotator::AnnotatorKind;
use crate::label::report::contents::{Agreement, JudgeReport, LabelReport};
use crate::label::results::ranking::SourceRanking;
use crate::label::results::verdict::Aggregation;
use crate::report::count;
use crate::runs::page::document::document;
use crate::runs::page::escape::name;
use crate::stats::bootstrap::Estimate;
use crate::stats::proportion::Proportion;
use maud::{Markup, PreEscaped, html};

/// Renders the page.
pub fn render(report: &LabelReport) -> String {
    let body = html! {
        (header(report))
        (tiles(report))
        (findings(report))
        (agreement(&report.agreement))
        (ranking(&report.ranking))
        (judges(&report.judges))
        (length(report))
        footer { "ft " (report.ft_version) " · intervals are 95 %" }
    };
    document(&report.title, &body.into_string())
}

fn header(report: &LabelReport) -> Markup {
    let judges = report.judged_by.iter().map(|who| name(who)).collect::<Vec<_>>().join(", ");
    let aggregation = match report.aggregation {
        Aggregation::Majority => "majority",
        Aggregation::DawidSkene => "Dawid and Skene's model",
    };
    html! {
        header {
            h1 { (named(&report.title)) }
            p.sub {
                "Labels of " (count(report.counts.prompts as u64)) " prompts, judged by " (PreEscaped(judges))
                "; verdicts by " (aggregation) "."
            }
        }
    }
}

fn tile(name: &str, value: &str, small: &str) -> Markup {
    html! { div.tile { span { (name) } b { (value) } small { (escaped(small)) } } }
}

fn tiles(report: &LabelReport) -> Markup {
    let c = &report.counts;
    let n = |x: usize| count(x as u64);
    let decided: usize = ["a", "b"].iter().map(|k| report.verdicts[k]).sum();
    let undecided = format!("{} ties, {} both bad", n(report.verdicts["tie"]), n(report.verdicts["both_bad"]));
    let alpha = report.agreement.alpha_nominal;
    let shown = alpha.map_or("–".into(), |a| format!("{:.2}", a.value));
    let range = alpha.map_or("no pair was judged by two".into(), interval);
    html! {
        div.tiles {
            (tile("pairs", &n(c.pairs), &format!("of {} answers, {} hidden repeats", n(c.candidates), n(c.repeats))))
            (tile("votes", &n(c.votes), &format!("{} people, {} machines, {} skips", c.people, c.machines, n(c.skips))))
            (tile("pairs with a better answer", &n(decided), &undecided))
            (tile("Krippendorff's alpha", &shown, &range))
            (best(&report.ranking))
        }
    }
}

fn best(ranking: &SourceRanking) -> Markup {
    let first = ranking.sources.first();
    let strength = first.map_or("–".into(), |s| format!("{:.0}", s.bradley_terry.value));
    tile("strongest source", &strength, first.map_or("no two sources were compared", |s| &s.source))
}

fn interval(e: Estimate) -> String {
    e.interval.map_or("no interval".into(), |[low, high]| format!("{low:.2} to {high:.2}"))
}

fn findings(report: &LabelReport) -> Markup {
    html! {
        section {
            h2 { "Findings" }
            @if report.counts.votes == 0 {
                p { "Nobody has voted yet." }
            } @else if report.findings.is_empty() {
                p.well { "No problem detected in these labels." }
            }
            @for finding in report.findings.iter().filter(|_| report.counts.votes > 0) {
                div.card.finding.grave[finding.grave] {
                    h3 { (escaped(&finding.what)) }
                    p { (escaped(&finding.next)) }
                }
            }
        }
    }
}

fn agreement(a: &Agreement) -> Markup {
    let rows: Vec<PlotRow> = [
        ("alpha, choices", a.alpha_nominal),
        ("alpha, ranks", a.alpha_ordinal),
        ("alpha, distances", a.alpha_interval),
        ("Fleiss' kappa", a.fleiss.map(|f| f.kappa)),
        ("equal votes", a.raw),
        ("with oneself", a.self_consistency.map(|r| Estimate { value: r.share, interval: Some(r.interval) })),
    ]
    .into_iter()
    .filter_map(|(name, e)| e.map(|e| (name.to_string(), e.value, e.interval)))
    .collect();
    if rows.is_empty() {
        return html! {};
    }
    let couples: Vec<PlotRow> =
        a.cohen.iter().map(|c| (format!("{} – {} ({})", c.a, c.b, c.pairs), c.kappa.value, c.kappa.interval)).collect();
    let rounded = |v: f64| format!("{v:.2}");
    let all = forest_figure(
        "Agreement",
        "1: full agreement, 0: no more than by chance; below the line at 0.667 no conclusion should be drawn. Equal votes and hidden repeats are plain shares",
        "agreement measures",
        &rows,
        rounded,
        0.667,
        Some([0.0, 1.0]),
    );
    html! {
        section {
            h2 { "Agreement" }
            div.columns {
                (all)
                @if !couples.is_empty() {
                    (forest_figure(
                        "Each two annotators",
                        "Cohen's kappa of two annotators over the pairs that both judged (in parentheses: how many)",
                        "Cohen's kappa",
                        &couples,
                        rounded,
                        0.0,
                        Some([0.0, 1.0]),
                    ))
                }
            }
        }
    }
}

fn ranking(r: &SourceRanking) -> Markup {
    if r.sources.is_empty() {
        return html! {};
    }
    let rows: Vec<PlotRow> =
        r.sources.iter().map(|s| (s.source.clone(), s.bradley_terry.value, s.bradley_terry.interval)).collect();
    html! {
        section {
            h2 { "Sources" }
            (forest_figure(
                "Strength of the sources",
                "Bradley-Terry in Elo points around 1000: a lead of 400 wins ten of eleven; ties are half a win",
                "Bradley-Terry strength",
                &rows,
                |v| format!("{v:.0}"),
                1000.0,
                None,
            ))
            div.card style="margin-top:12px" {
                div.scroll {
                    table {
                        (head(&["source"], &["strength", "Elo", "wins", "losses", "ties"]))
                        @for s in &r.sources {
                            tr {
                                (path(&s.source))
                                (number(format!("{:.0}", s.bradley_terry.value)))
                                (number(format!("{:.0}", s.elo.value)))
                                (number(s.wins)) (number(s.losses)) (number(s.comparisons - s.wins - s.losses))
                            }
                        }
                    }
                }
                details {
                    summary { "one against another" }
                    div.scroll {
                        table {
                            (head(&["a", "b"], &["a wins", "ties", "b wins"]))
                            @for d in &r.duels {
                                tr { (path(&d.a)) (path(&d.b)) (number(d.a_wins)) (number(d.ties)) (number(d.b_wins)) }
                            }
                        }
                    }
                }
            }
        }
    }
}

fn judges(judges: &[JudgeReport]) -> Markup {
    if judges.is_empty() {
        return html! {};
    }
    let figure = |title: &str, note: &str, rate: &dyn Fn(&JudgeReport) -> Option<Proportion>| {
        let row = |j: &JudgeReport| rate(j).map(|r| (j.habits.name.clone(), r.share, Some(r.interval)));
        let rows: Vec<PlotRow> = judges.iter().filter_map(row).collect();
        match rows.is_empty() {
            true => html! {},
            false => forest_figure(title, note, title, &rows, percent, 0.5, Some([0.0, 1.0])),
        }
    };
    let numbers = ["votes", "seconds", "left", "longer", "length r", "itself", "reliability", "kappa with verdicts"];
    html! {
        section {
            h2 { "Judges" }
            div.card {
                div.scroll {
                    table {
                        (head(&["judge"], &numbers))
                        @for judge in judges { (judge_row(judge)) }
                    }
                }
            }
            div.columns {
                (figure("Left side", "how often the answer on the left is chosen; half: no bias", &|j| j.habits.left))
                (figure("Longer answer", "how often the longer answer is chosen", &|j| j.habits.longer))
                (figure(
                    "With the verdicts",
                    "how often a judge whose votes do not count says the same",
                    &|j| j.with_verdicts.map(|w| w.same),
                ))
                (figure(
                    "Order",
                    "how often a machine's verdict changes with the order",
                    &|j| j.habits.order.map(|o| o.flipped),
                ))
            }
        }
    }
}

fn judge_row(j: &JudgeReport) -> Markup {
    let h = &j.habits;
    let share = |r: Option<Proportion>| r.map_or("–".into(), |r| format!("{:.0} %", 100.0 * r.share));
    let rounded = |x: Option<f64>, digits: usize| x.map_or("–".into(), |x| format!("{x:.digits$}"));
    let cells = [
        count(h.votes as u64),
        rounded(h.seconds, 1),
        share(h.left),
        share(h.longer),
        rounded(h.length_correlation, 2),
        share(h.consistent),
        rounded(j.reliability, 2),
        rounded(j.with_verdicts.and_then(|w| w.kappa).map(|k| k.value), 2),
    ];
    let kind = if h.kind == AnnotatorKind::Person { "" } else { h.kind.name() };
    html! {
        tr {
            td.path { (named(&h.name)) " " code { (kind) } }
            @for cell in cells { (number(cell)) }
        }
    }
}

fn length(report: &LabelReport) -> Markup {
    let Some(length) = report.length else { return html! {} };
    let rate = |name: &str, r: Proportion| (name.to_string(), r.share, Some(r.interval));
    let rows = [rate("longer wins", length.longer), rate("shorter wins", length.shorter)];
    let note =
        format!("accuracy of a rule that sees nothing but lengths, on {} pairs with a better answer", length.pairs);
    html! {
        section {
            h2 { "Length alone" }
            (forest_figure("What length gets right", &note, "length alone", &rows, percent, 0.5, Some([0.0, 1.0])))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::label::project::fixture::{project, vote};
    use crate::label::record::answer::CandidatePair;
    use crate::label::record::vote::VoteChoice;
    use crate::stats::bootstrap::Bootstrap;
    use serde_json::json;

    const HOSTILE: &str = "<script>alert('\u{202e}&\")</script>";

    /// Reports with all sections, with none, and with names that contain HTML.
    fn reports() -> Vec<LabelReport> {
        let kinds = [("ann", AnnotatorKind::Person), (HOSTILE, AnnotatorKind::Person), ("judge", AnnotatorKind::Judge)];
        let mut judged = project(40, &kinds);
        judged.settings.title = HOSTILE.into();
        judged.candidates[0].source = HOSTILE.into();
        judged.pairs.push(CandidatePair { id: 100, repeat_of: Some(0), ..judged.pairs[0].clone() });
        for i in 0..40 {
            let choice = [VoteChoice::A, VoteChoice::B, VoteChoice::B, VoteChoice::Tie][i as usize % 4];
            vote(&mut judged, i, 0, choice).seconds = Some(i as f64);
            vote(&mut judged, i, 1, if i % 3 == 0 { VoteChoice::A } else { choice });
            vote(&mut judged, i, 2, choice).detail = json!({ "ab": { "choice": "a" }, "ba": { "choice": "b" } });
        }
        vote(&mut judged, 100, 0, VoteChoice::A);
        let mut one = project(2, &kinds[..1]);
        vote(&mut one, 0, 0, VoteChoice::A);
        let bootstrap = Bootstrap { replicates: 50, seed: 1 };
        [judged, one, project(1, &[])]
            .iter()
            .map(|p| LabelReport::of(p, None, Aggregation::Majority, &bootstrap))
            .collect()
    }

    #[test]
    fn pages_show_what_there_is_and_names_stay_text() {
        let [all, one, none] = &reports()[..] else { panic!() };
        assert!(
            all.ranking.sources.len() > 1
                && all.judges.iter().any(|j| j.habits.order.is_some())
                && all.length.is_some()
        );
        let page = render(all);
        for part in
            ["<h2>Sources</h2>", "<h2>Judges</h2>", "one against another", "Each two annotators", "Length alone"]
        {
            assert!(page.contains(part), "{part}");
        }
        assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;alert"), "{page}");
        assert!(render(one).contains("<h2>Judges</h2>"));
        assert!(render(none).contains("Nobody has voted yet.") && !render(none).contains("<h2>Judges</h2>"));
    }
}
