//! Charts, as SVG that takes its colours from the page.

use maud::{Markup, PreEscaped, html};
use plotters::backend::SVGBackend;
use plotters::chart::ChartBuilder;
use plotters::drawing::IntoDrawingArea as _;
use plotters::element::Rectangle;
use plotters::style::{Color as _, IntoFont as _, RGBColor};

use crate::observe::kept::{Beat, PULSE};
use crate::record::timeline::Span;

/// Seconds of one bar.
const STEP: usize = 5;

/// Colours that stand for the page's own, which differ by light and dark.
const TONES: [(RGBColor, &str); 4] = [
    (INK, "var(--muted)"),
    (GOOD, "var(--accent)"),
    (BAD, "var(--bad)"),
    (DENIED, "var(--warn)"),
];
const INK: RGBColor = RGBColor(1, 1, 1);
const GOOD: RGBColor = RGBColor(2, 2, 2);
const BAD: RGBColor = RGBColor(3, 3, 3);
const DENIED: RGBColor = RGBColor(4, 4, 4);

/// The requests of the last minutes, stacked by what became of them.
pub(super) fn pulse(beats: &[Beat], now: i64) -> Markup {
    let bars = bars(beats, now);
    let drawn = draw(&bars).unwrap_or_default();
    let [failed, denied, good] = bars
        .iter()
        .fold([0; 3], |[a, b, c], [x, y, z]| [a + x, b + y, c + z]);
    let told = format!(
        "Requests of the last five minutes: {good} went well, {failed} failed, {denied} were denied"
    );
    html! {
        figure.chart {
            div role="img" aria-label=(told) { (PreEscaped(drawn)) }
            figcaption {
                span.key data-tone="accent" { "went well" }
                span.key data-tone="bad" { "failed" }
                span.key data-tone="warn" { "denied" }
            }
        }
    }
}

/// For each bar: failed, denied, went well.
fn bars(beats: &[Beat], now: i64) -> Vec<[u32; 3]> {
    let mut bars = vec![[0; 3]; PULSE / STEP];
    for beat in beats {
        let ago = usize::try_from(now - beat.second).unwrap_or(0);
        let place = (bars.len() - 1).checked_sub(ago / STEP);
        if let Some(bar) = place.and_then(|place| bars.get_mut(place)) {
            let [failed, denied, good] = bar;
            *failed += beat.failures;
            *denied += beat.denied;
            *good += beat.requests.saturating_sub(beat.failures + beat.denied);
        }
    }
    bars
}

fn draw(bars: &[[u32; 3]]) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (960, 180)).into_drawing_area();
        let most = bars.iter().map(|bar| bar.iter().sum()).max().unwrap_or(0);
        let top = most.max(4) + most / 8;
        let minutes = f64::from(u32::try_from(PULSE)?) / 60.0;
        let mut chart = ChartBuilder::on(&area)
            .margin(4)
            .margin_right(24)
            .x_label_area_size(24)
            .y_label_area_size(40)
            .build_cartesian_2d(-minutes..0.0, 0..top)?;
        let label = ("sans-serif", 13).into_font().color(&INK);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(INK.mix(0.0))
            .bold_line_style(INK.mix(0.25))
            .axis_style(INK.mix(0.4))
            .x_labels(6)
            .y_labels(4)
            .x_label_formatter(&|minute| {
                if *minute > -0.5 {
                    "now".to_owned()
                } else {
                    format!("{:.0} min ago", -minute)
                }
            })
            .y_label_formatter(&|count| count.to_string())
            .label_style(label)
            .draw()?;
        let step = f64::from(u32::try_from(STEP)?) / 60.0;
        let mut from = -minutes;
        for bar in bars {
            let mut floor = 0;
            for (count, tone) in bar.iter().zip([BAD, DENIED, GOOD]) {
                if *count > 0 {
                    // A gap of a fifth.
                    let corners = [(from, floor), (from + step * 0.8, floor + count)];
                    chart.draw_series([Rectangle::new(corners, tone.filled())])?;
                    floor += count;
                }
            }
            from += step;
        }
        area.present()?;
    }
    for (RGBColor(red, green, blue), tone) in TONES {
        svg = svg.replace(
            &format!("\"#{red:02X}{green:02X}{blue:02X}\""),
            &format!("\"{tone}\""),
        );
    }
    // It is as wide as there is room.
    Ok(svg.replacen("<svg width=\"960\" height=\"180\"", "<svg", 1))
}

/// The phases of a request, one behind the other, with the cut marked.
pub(super) fn timeline(spans: &[Span]) -> Markup {
    let whole = spans.last().map_or(1.0, |span| span.to_ms).max(0.001);
    let percent = |ms: f64| format!("{:.2}%", ms / whole * 100.0);
    let told: Vec<String> = spans.iter().map(told).collect();
    html! {
        figure.phases {
            svg role="img" aria-label=(told.join(", ")) width="100%" height="40" {
                @for span in spans {
                    rect class=(format!("phase {}", span.phase)) data-cut=[span.is_cut.then_some("")]
                        x=(percent(span.from_ms)) width=(percent((span.to_ms - span.from_ms).max(whole / 250.0)))
                        y="6" height="28" { title { (self::told(span)) } }
                    @if span.is_cut {
                        line.cut x1=(percent(span.to_ms - whole / 500.0)) x2=(percent(span.to_ms - whole / 500.0)) y1="0" y2="40" {}
                    }
                }
            }
            figcaption {
                @for span in spans {
                    span.key data-phase=(span.phase) data-cut=[span.is_cut.then_some("")] { (self::told(span)) }
                }
            }
        }
    }
}

fn told(span: &Span) -> String {
    let phase = match &*span.phase {
        "first_byte" => "first byte",
        "rest" => "the rest",
        phase => phase,
    };
    let took = crate::observe::text::milliseconds(span.to_ms - span.from_ms);
    let cut = if span.is_cut { ", then it failed" } else { "" };
    format!("{phase} {took}{cut}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_hold_what_fell_into_their_seconds() {
        let beat = |second, requests, failures, denied| Beat {
            second,
            requests,
            failures,
            denied,
        };
        let beats = [
            beat(1, 9, 9, 0),
            beat(991, 3, 1, 1),
            beat(998, 2, 0, 0),
            beat(1000, 1, 1, 0),
        ];
        let bars = bars(&beats, 1000);
        assert_eq!(bars.len(), 60);
        assert_eq!(bars[58..], [[1, 1, 1], [1, 0, 2]]);
        assert!(bars[..58].iter().all(|bar| *bar == [0; 3]));
    }

    #[test]
    fn a_chart_takes_its_colours_from_the_page() {
        let drawn = draw(&[[1, 2, 3]; 60]).unwrap();
        for tone in ["var(--bad)", "var(--warn)", "var(--accent)", "var(--muted)"] {
            assert!(drawn.contains(tone), "{tone} in {drawn}");
        }
        assert!(
            !drawn.contains("\"#0") && !drawn.contains("style="),
            "{drawn}"
        );
        assert!(drawn.starts_with("<svg viewBox="), "{drawn}");
    }
}
