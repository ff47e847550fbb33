//! What all pages share.

use axum::response::{Html, IntoResponse, Response};
use jiff::Timestamp;
use maud::{DOCTYPE, Markup, html};

use super::super::Station;

/// The pages, in the order of the head.
const PAGES: [(&str, &str); 5] = [
    ("/", "Now"),
    ("/failures", "Failures"),
    ("/policy", "Policy"),
    ("/upstreams", "Upstreams"),
    ("/lab", "Lab"),
];

/// A page; `at` is its path in the head.
pub(super) fn page(at: &str, title: &str, body: &Markup) -> Response {
    let whole = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Routecause" }
                link rel="icon" type="image/svg+xml" href="/favicon.ico";
                link rel="stylesheet" href="/style.css";
                script src="/live.js" defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    a.brand href="/" { "Routecause" }
                    nav aria-label="Pages" {
                        @for (path, name) in PAGES {
                            a href=(path) aria-current=[(path == at).then_some("page")] { (name) }
                        }
                    }
                    p #live role="status" data-state="off" { "not live" }
                }
                main #main tabindex="-1" { (body) }
            }
        }
    };
    Html(whole.into_string()).into_response()
}

/// A moment: its time for a person, the whole of it on demand.
pub(super) fn moment(at: Timestamp) -> Markup {
    let whole = at.to_string();
    let short = at.strftime("%H:%M:%S").to_string();
    html! { time datetime=(whole) title=(whole) { (short) } }
}

/// That the policy which stands in the file is not the one at work, and why; nothing where it is.
pub(super) fn refused(station: &Station) -> Markup {
    let Some(refusal) = station.standing.refusal() else {
        return html! {};
    };
    html! {
        p.wrong role="alert" {
            "The policy that was read at " (moment(refusal.at)) " is refused; the one before it is at work."
            @for told in refusal.why.iter().take(3) {
                br;
                code { (told.file) @if let Some(line) = told.line { ":" (line) } } " " (told.message)
            }
        }
    }
}

/// A word for a state, in its colour.
pub(super) fn state(word: &str) -> Markup {
    let tone = match word {
        "up" | "success" | "good" => "good",
        "down" | "failure" => "bad",
        _ => "warn",
    };
    html! { span.state data-tone=(tone) { (word) } }
}

/// What stands where there is nothing.
pub(super) fn nothing(words: &str) -> Markup {
    html! { p.nothing { (words) } }
}
