//! What a policy makes of a request that was let out before, by what is known of it: no more can be found out.

use super::{Action, Decision, Mode, Needs, Policy, Query, RouteId, RouteSpec, Step, Walk};

impl Policy {
    /// The decision, where whatever is not known can only make a refusal of it; nothing where it might let the request out.
    ///
    /// Rules that block by what is not known are passed over: behind a refusal they change nothing.
    pub fn decide_by_what_is_known<'p>(&'p self, query: &Query<'_>) -> Option<Decision<'p>> {
        let mut walk = Walk::default();
        loop {
            match self.step(&mut walk, query) {
                Step::Decided(decision) => return Some(decision),
                Step::Needs(Needs::Machine) => return None,
                Step::Needs(Needs::Addresses | Needs::FirstFlight) => {
                    let at = walk.at?;
                    let rule = self.rules.get(at)?;
                    let is_harmless = match &rule.action {
                        Action::Block(_) => true,
                        // What it sets matters to no refusal, but for what rules may see.
                        Action::Continue => rule.sniff.is_none(),
                        Action::Route(_) => false,
                    };
                    if !is_harmless && rule.mode != Mode::Report {
                        return None;
                    }
                    walk.at = Some(at + 1);
                }
            }
        }
    }

    /// Whether some rule looks at what a plain request says beside its target.
    pub fn looks_at_heads(&self) -> bool {
        self.rules.iter().any(|rule| rule.matcher.looks_at_heads())
    }

    /// Whether a route leads straight to the target, and nowhere else.
    pub fn is_straight(&self, id: RouteId) -> bool {
        match &self.route(id).spec {
            RouteSpec::Direct => true,
            RouteSpec::Chain(chain) => chain.hops.iter().all(|hop| self.is_straight(hop.route)),
            RouteSpec::Group(_)
            | RouteSpec::Upstream(_)
            | RouteSpec::Pac(_)
            | RouteSpec::Faulty { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use jiff::Timestamp;

    use crate::client::{Claim, Client};
    use crate::config::{self, Environment, Options, Source};
    use crate::policy::flight::Flight;
    use crate::policy::{Lookup, Query, Scheme, Verdict};
    use crate::target::Target;

    /// What is decided of a tunnel to `a.example:443`: `refused by NAME`, `out`, or `unsure`.
    fn decide(rules: &str, default: &str, address: Option<&str>, sni: Option<&str>) -> String {
        let text = format!("version: 1\nrules: [{rules}]\ndefault: {{{default}}}\n");
        let source = Source::Text {
            name: "p.yaml".to_owned(),
            text,
        };
        let options = Options::check(Timestamp::UNIX_EPOCH);
        let loaded = config::load(&source, &Environment::default(), &options);
        let policy = loaded.unwrap_or_else(|report| panic!("{report}")).policy;
        let flight = sni.map(|sni| Flight::tls(Some(sni), []));
        let query = Query {
            client: &Client {
                peer: "127.0.0.1:9".parse().unwrap(),
                local: "127.0.0.1:3128".parse().unwrap(),
                listener: "proxy".into(),
            },
            claim: &Claim::NONE,
            scheme: Scheme::Connect,
            method: &Method::CONNECT,
            target: &Target::from_authority("a.example:443").unwrap(),
            path: None,
            headers: None,
            is_here: None,
            addresses: address.map(|ip| Lookup::Among(ip.parse().unwrap())),
            first_flight: flight.as_ref(),
            now: Timestamp::UNIX_EPOCH,
        };
        match policy.decide_by_what_is_known(&query) {
            None => "unsure".to_owned(),
            Some(decision) => match decision.verdict {
                Verdict::Route(_) => "out".to_owned(),
                Verdict::Deny(_) => {
                    let rule = decision.rule.map_or("a guard", |rule| &rule.name);
                    format!("refused by {rule}")
                }
            },
        }
    }

    #[test]
    fn what_is_not_known_speaks_for_a_request() {
        let (direct, block) = ("direct: true", "block: true");
        let inside = "ip: 10.0.0.0/8, resolve";
        for (rule, default, address, sni, expected) in [
            (
                "match: {host: a.example}, block: true",
                direct,
                None,
                None,
                "refused by r",
            ),
            (
                "match: {host: b.example}, block: true",
                direct,
                None,
                None,
                "out",
            ),
            (
                "match: {host: a.example}, block: true, mode: report",
                direct,
                None,
                None,
                "out",
            ),
            (
                "match: {host: b.example}, direct: true",
                block,
                None,
                None,
                "refused by default",
            ),
            // The client's first word.
            (
                "match: {sni: b.example}, block: true",
                direct,
                None,
                None,
                "out",
            ),
            (
                "match: {sni: b.example}, block: true",
                block,
                None,
                None,
                "refused by default",
            ),
            (
                "match: {sni: b.example}, direct: true",
                block,
                None,
                None,
                "unsure",
            ),
            (
                "match: {sni: b.example}, direct: true, mode: report",
                block,
                None,
                None,
                "refused by default",
            ),
            (
                "match: {sni: b.example}, block: true",
                direct,
                None,
                Some("b.example"),
                "refused by r",
            ),
            (
                "match: {sni: b.example}, direct: true",
                block,
                None,
                Some("c.example"),
                "refused by default",
            ),
            (
                "match: {sni: b.example}, continue: true, sniff: always",
                block,
                None,
                None,
                "unsure",
            ),
            (
                "match: {sni: b.example}, continue: true, timeouts: {idle: 1m}",
                block,
                None,
                None,
                "refused by default",
            ),
            // One address of several, perhaps.
            (
                &format!("match: {{{inside}: any}}, block: true"),
                direct,
                Some("10.1.2.3"),
                None,
                "refused by r",
            ),
            (
                &format!("match: {{{inside}: any}}, block: true"),
                direct,
                Some("192.0.2.1"),
                None,
                "out",
            ),
            (
                &format!("match: {{{inside}: any}}, block: true"),
                direct,
                None,
                None,
                "out",
            ),
            (
                &format!("match: {{{inside}: any}}, direct: true"),
                block,
                Some("10.1.2.3"),
                None,
                "out",
            ),
            (
                &format!("match: {{{inside}: any}}, direct: true"),
                block,
                Some("192.0.2.1"),
                None,
                "unsure",
            ),
            (
                &format!("match: {{{inside}: all}}, direct: true"),
                block,
                Some("10.1.2.3"),
                None,
                "unsure",
            ),
            (
                &format!("match: {{{inside}: all}}, direct: true"),
                block,
                Some("192.0.2.1"),
                None,
                "refused by default",
            ),
            (
                &format!("match: {{{inside}: all}}, direct: true"),
                block,
                None,
                None,
                "unsure",
            ),
            (
                &format!("match: {{not: {{{inside}: any}}}}, block: true"),
                direct,
                Some("192.0.2.1"),
                None,
                "out",
            ),
            (
                &format!("match: {{not: {{{inside}: all}}}}, block: true"),
                direct,
                Some("192.0.2.1"),
                None,
                "refused by r",
            ),
        ] {
            let rules = format!("{{name: r, {rule}}}");
            assert_eq!(
                decide(&rules, default, address, sni),
                expected,
                "{rule}, default {default}, {address:?}, {sni:?}"
            );
        }
    }
}
