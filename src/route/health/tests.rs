//! When an upstream counts as down, by a clock that the tests turn.

use tokio::time::advance;

use super::super::testing::{Does, Scripted, Shared, plan};
use super::*;
use crate::exchange::Trail;
use crate::policy::health::Probe;
use crate::route::{Dial as _, Plan};

const TIMEOUT: Duration = Duration::from_secs(30);
const ALMOST: Duration = Duration::from_millis(29_999);

/// An upstream that three failures in 30 s take down.
struct Corp {
    upstream: Arc<Scripted>,
    watched: Watched,
}

impl Corp {
    fn new(does: Does) -> Self {
        Self::with(does, None)
    }

    fn with(does: Does, probe: Option<Probe>) -> Self {
        let upstream = Scripted::new("corp", does);
        let spec = Spec {
            max_fails: 3,
            fail_timeout: TIMEOUT,
            probe,
        };
        let health = Arc::new(Health::new("corp".into(), spec, None));
        let watched = Watched::new(Box::new(Shared(upstream.clone())), health);
        Self { upstream, watched }
    }

    /// What a request for `host` that has another way ends with: the id of its cause.
    async fn ask_for(&self, host: &str) -> Option<String> {
        let plan = Plan {
            passes_over: true,
            ..plan("127.0.0.1", &format!("{host}:443"))
        };
        let asked = self.watched.dial(&plan, &Trail::default()).await;
        asked
            .err()
            .map(|failure| classify(&failure).id().into_owned())
    }

    async fn ask(&self) -> Option<String> {
        self.ask_for("a.example").await
    }

    /// Asks so often.
    async fn ask_times(&self, times: usize) {
        for _ in 0..times {
            self.ask().await;
        }
    }

    fn is_down(&self) -> bool {
        self.watched.health().is_down()
    }
}

const UP: Does = Does::Serve(Duration::ZERO);
const OPEN: Option<&str> = Some("upstream.circuit_open");

#[tokio::test(start_paused = true)]
async fn failures_in_a_row_open_the_circuit_and_nothing_is_dialled_any_more() {
    let corp = Corp::new(Does::Refuse);
    corp.ask_times(2).await;
    assert!(!corp.is_down());
    assert_eq!(
        corp.ask().await.as_deref(),
        Some("upstream.connect.refused")
    );
    assert!(corp.is_down());
    assert_eq!(corp.upstream.dials(), 3);
    assert_eq!(corp.ask().await.as_deref(), OPEN);
    assert_eq!(corp.upstream.dials(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_success_between_them_starts_the_count_anew() {
    let corp = Corp::new(Does::Refuse);
    corp.ask_times(2).await;
    corp.upstream.now(UP);
    assert_eq!(corp.ask().await, None);
    corp.upstream.now(Does::Refuse);
    corp.ask_times(2).await;
    assert!(!corp.is_down());
}

#[tokio::test(start_paused = true)]
async fn failures_far_apart_do_not_add_up() {
    let corp = Corp::new(Does::Refuse);
    for _ in 0..5 {
        corp.ask_times(1).await;
        advance(TIMEOUT * 2 / 3).await;
    }
    assert!(!corp.is_down());
}

#[tokio::test(start_paused = true)]
async fn one_request_tries_it_again_and_its_success_closes_the_circuit() {
    let corp = Corp::new(Does::Refuse);
    corp.ask_times(3).await;
    advance(ALMOST).await;
    assert_eq!(corp.ask().await.as_deref(), OPEN);
    advance(Duration::from_millis(1)).await;
    corp.upstream.dials();
    corp.upstream.now(Does::Serve(Duration::from_secs(1)));
    let (trial, other) = tokio::join!(corp.ask(), corp.ask());
    assert_eq!((trial, other.as_deref()), (None, OPEN));
    assert_eq!(corp.upstream.dials(), 1);
    assert_eq!(corp.ask().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_trial_that_fails_opens_it_for_as_long_again() {
    let corp = Corp::new(Does::Refuse);
    corp.ask_times(3).await;
    advance(TIMEOUT).await;
    assert_eq!(
        corp.ask().await.as_deref(),
        Some("upstream.connect.refused")
    );
    advance(ALMOST).await;
    assert_eq!(corp.ask().await.as_deref(), OPEN);
    advance(Duration::from_millis(1)).await;
    assert_eq!(
        corp.ask().await.as_deref(),
        Some("upstream.connect.refused")
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_proves_nothing_and_the_next_one_tries_again() {
    let corp = Corp::new(Does::Refuse);
    corp.ask_times(3).await;
    advance(TIMEOUT).await;
    corp.upstream.now(Does::Drop);
    tokio::select! {
        biased;
        told = corp.ask() => panic!("{told:?}"),
        () = tokio::time::sleep(Duration::from_secs(1)) => {}
    }
    assert!(!corp.is_down(), "somebody may try");
    corp.upstream.now(UP);
    assert_eq!(corp.ask().await, None);
}

#[tokio::test(start_paused = true)]
async fn what_is_the_last_way_is_tried_whatever_is_known_of_it() {
    let corp = Corp::new(Does::Refuse);
    corp.ask_times(3).await;
    corp.upstream.dials();
    let last = plan("127.0.0.1", "a.example:443");
    for _ in 0..2 {
        let failure = corp.watched.dial(&last, &Trail::default()).await;
        assert_eq!(
            classify(&failure.unwrap_err()).id(),
            "upstream.connect.refused"
        );
    }
    assert_eq!(corp.upstream.dials(), 2);
    corp.upstream.now(UP);
    corp.watched.dial(&last, &Trail::default()).await.unwrap();
    assert!(!corp.is_down());
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_a_sign_of_life_whatever_it_says() {
    for status in [400, 403, 404, 407, 429, 451, 500] {
        let corp = Corp::new(Does::Answer(status, ""));
        corp.ask_times(10).await;
        assert!(!corp.is_down(), "{status}");
        corp.upstream.now(Does::Refuse);
        corp.ask_times(2).await;
        corp.upstream.now(Does::Answer(status, ""));
        corp.ask_times(1).await;
        corp.upstream.now(Does::Refuse);
        corp.ask_times(2).await;
        assert!(!corp.is_down(), "{status} between");
        corp.ask_times(1).await;
        advance(TIMEOUT).await;
        corp.upstream.now(Does::Answer(status, ""));
        corp.ask_times(1).await;
        assert!(!corp.is_down(), "{status} closes it");
        assert_ne!(corp.ask().await.as_deref(), OPEN);
    }
}

#[tokio::test(start_paused = true)]
async fn a_gateway_error_counts_from_the_third_host_on() {
    for status in [502, 503, 504] {
        let corp = Corp::new(Does::Answer(status, ""));
        corp.ask_times(20).await;
        corp.ask_for("b.example").await;
        assert!(!corp.is_down(), "{status} for two hosts");
        corp.ask_for("c.example").await;
        assert!(corp.is_down(), "{status} for three");
        // A trial that fares no better opens it again, and one that goes well does not.
        advance(TIMEOUT + Duration::from_secs(1)).await;
        corp.ask_for("d.example").await;
        assert!(corp.is_down());
        advance(TIMEOUT).await;
        corp.upstream.now(UP);
        assert_eq!(corp.ask().await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_served_clears_the_upstream_of_the_others() {
    let corp = Corp::new(Does::Answer(502, ""));
    corp.ask_times(1).await;
    corp.ask_for("b.example").await;
    corp.upstream.now(UP);
    corp.ask_for("c.example").await;
    corp.upstream.now(Does::Answer(502, ""));
    corp.ask_for("d.example").await;
    corp.ask_for("e.example").await;
    assert!(!corp.is_down());
}

#[tokio::test(start_paused = true)]
async fn a_gateway_error_of_the_upstream_itself_counts_at_once() {
    let corp = Corp::new(Does::Answer(503, "corp; error=proxy_internal_error"));
    corp.ask_times(3).await;
    assert!(corp.is_down());
    // Of a proxy behind it, it does not.
    let behind = "other; error=proxy_internal_error, corp; error=connection_refused";
    let corp = Corp::new(Does::Answer(503, behind));
    corp.ask_times(3).await;
    assert!(!corp.is_down());
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_this_host_is_not_the_upstreams() {
    for does in [Does::NoFds, Does::Full] {
        let corp = Corp::new(does);
        corp.ask_times(10).await;
        assert!(!corp.is_down(), "{does:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_that_was_cut_short_proves_nothing() {
    let corp = Corp::new(Does::Drop);
    for _ in 0..5 {
        let hurried = Plan {
            deadline: Some(Instant::now() + Duration::from_millis(100)),
            ..plan("127.0.0.1", "a.example:443")
        };
        corp.watched
            .dial(&hurried, &Trail::default())
            .await
            .unwrap_err();
    }
    assert!(!corp.is_down());
}

#[tokio::test(start_paused = true)]
async fn a_connection_alone_closes_the_circuit_on_parole() {
    let corp = Corp::new(Does::Refuse);
    corp.ask_times(3).await;
    advance(TIMEOUT).await;
    corp.upstream.now(Does::Accept);
    assert_eq!(corp.ask().await, None);
    assert!(!corp.is_down());
    // The request on it came to nothing.
    let failure = super::super::testing::refused(&"corp".into());
    corp.watched.health().failed(&failure, "a.example");
    assert!(corp.is_down());
    // One that is answered ends the parole.
    advance(TIMEOUT).await;
    corp.ask_times(1).await;
    corp.watched.health().served();
    corp.watched.health().failed(&failure, "a.example");
    assert!(!corp.is_down());
}

#[tokio::test(start_paused = true)]
async fn probes_open_and_close_the_circuit() {
    let probe = Probe {
        connect: None,
        every: Duration::from_secs(10),
        timeout: Duration::from_secs(3),
        rise: 2,
    };
    let corp = Corp::with(Does::Refuse, Some(probe));
    let asked = plan("127.0.0.1", "probe.example:443");
    for is_down in [false, false, true] {
        corp.watched.probe(&asked).await;
        assert_eq!(corp.is_down(), is_down);
    }
    // A refusal says nothing of its health; one success is not enough.
    corp.upstream.now(Does::Answer(407, ""));
    corp.watched.probe(&asked).await;
    corp.upstream.now(UP);
    corp.watched.probe(&asked).await;
    assert!(corp.is_down());
    corp.watched.probe(&asked).await;
    assert!(!corp.is_down());
    // A gateway error is what a probe looks for.
    corp.upstream.now(Does::Answer(502, ""));
    for _ in 0..3 {
        corp.watched.probe(&asked).await;
    }
    assert!(corp.is_down());
    // While probes fail, no request has to try.
    advance(TIMEOUT / 2).await;
    corp.watched.probe(&asked).await;
    advance(TIMEOUT * 2 / 3).await;
    assert_eq!(corp.ask().await.as_deref(), OPEN);
}

#[test]
fn what_is_known_of_an_upstream_outlives_a_reload_while_its_name_and_url_stay() {
    let policy = |upstreams: &str| {
        let text =
            format!("version: 1\nupstreams: {{{upstreams}}}\nrules: []\ndefault: {{via: corp}}\n");
        let source = crate::config::Source::Text {
            name: "p.yaml".to_owned(),
            text,
        };
        let options = crate::config::Options::check(Timestamp::UNIX_EPOCH);
        let environment = crate::config::Environment::default();
        crate::config::load(&source, &environment, &options)
            .unwrap()
            .policy
    };
    let before = of_policy(&policy("corp: {url: 'http://a.example:1'}"), &[]);
    let is_kept = |upstreams: &str| {
        let after = of_policy(&policy(upstreams), &before);
        let known = |of: &[Option<Arc<Health>>]| of[1].as_ref().unwrap().known.clone();
        Arc::ptr_eq(&known(&before), &known(&after))
    };
    assert!(is_kept(
        "corp: {url: 'http://a.example:1', health: {max_fails: 5}}"
    ));
    assert!(!is_kept("corp: {url: 'http://b.example:1'}"));
    assert!(!is_kept(
        "other: {url: 'http://a.example:1'}, corp: {url: 'http://c.example:1'}"
    ));
}
