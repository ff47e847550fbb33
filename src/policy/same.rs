//! Whether two policies mean the same by a name: ids are places, and say nothing from one policy to another.

use std::sync::Arc;

use super::chain::{Chain, Hop};
use super::group::{Group, Member};
use super::{Policy, RouteId, RouteSpec};

impl Policy {
    /// The names of upstreams that another policy has no more, or has another upstream by.
    pub fn changed_hops(&self, other: &Self) -> Vec<Arc<str>> {
        let is_kept = |at: usize| {
            let mut theirs = (0..other.routes.len()).map(RouteId);
            theirs.any(|theirs| self.is_same_route(RouteId(at), other, theirs))
        };
        let upstreams =
            self.routes.iter().enumerate().filter(|(at, route)| {
                matches!(route.spec, RouteSpec::Upstream(_)) && !is_kept(*at)
            });
        upstreams.map(|(_, route)| route.name.clone()).collect()
    }

    /// Whether a route is, by its name and all that it is made of, a route of another policy.
    pub fn is_same_route(&self, id: RouteId, other: &Self, theirs: RouteId) -> bool {
        let (ours, theirs) = (self.route(id), other.route(theirs));
        let same = |one: RouteId, two: RouteId| self.is_same_route(one, other, two);
        ours.name == theirs.name
            && match (&ours.spec, &theirs.spec) {
                (RouteSpec::Direct, RouteSpec::Direct) => true,
                (RouteSpec::Pac(one), RouteSpec::Pac(two)) => one == two,
                (RouteSpec::Upstream(one), RouteSpec::Upstream(two)) => one == two,
                (RouteSpec::Chain(one), RouteSpec::Chain(two)) => {
                    let hop = |one: &Hop, two: &Hop| {
                        one.next_on == two.next_on && same(one.route, two.route)
                    };
                    frame_of_chain(one) == frame_of_chain(two) && all(&one.hops, &two.hops, hop)
                }
                (RouteSpec::Group(one), RouteSpec::Group(two)) => {
                    let member = |one: &Member, two: &Member| {
                        one.weight == two.weight && same(one.route, two.route)
                    };
                    frame_of_group(one) == frame_of_group(two)
                        && all(&one.members, &two.members, member)
                }
                (
                    RouteSpec::Faulty { inner, fault },
                    RouteSpec::Faulty {
                        inner: two,
                        fault: their_fault,
                    },
                ) => fault == their_fault && same(*inner, *two),
                _ => false,
            }
    }
}

/// All of a chain but its hops.
fn frame_of_chain(chain: &Chain) -> Chain {
    Chain {
        hops: Vec::new(),
        ..chain.clone()
    }
}

/// All of a group but its members.
fn frame_of_group(group: &Group) -> Group {
    Group {
        members: Vec::new(),
        ..group.clone()
    }
}

/// Whether two lists are as long as each other, and alike in each place.
fn all<T>(one: &[T], two: &[T], alike: impl Fn(&T, &T) -> bool) -> bool {
    one.len() == two.len() && one.iter().zip(two).all(|(one, two)| alike(one, two))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, Environment, Options, Source};

    fn policy(text: &str) -> Policy {
        let source = Source::Text {
            name: "policy.yaml".to_owned(),
            text: format!("version: 1\n{text}default: {{direct: true}}\n"),
        };
        let options = Options::check(jiff::Timestamp::UNIX_EPOCH);
        config::load(&source, &Environment::default(), &options)
            .unwrap()
            .policy
    }

    fn id(policy: &Policy, name: &str) -> RouteId {
        let at = policy.routes.iter().position(|route| &*route.name == name);
        RouteId(at.unwrap())
    }

    #[test]
    fn a_route_is_the_same_wherever_it_stands_and_another_where_anything_of_it_changed() {
        let before = policy(
            "upstreams: {a: {url: 'http://192.0.2.1:1'}, b: {url: 'http://192.0.2.2:1'}}\n\
             groups: {both: {members: [a, b]}}\nchains: {out: {hops: [both, direct]}}\n",
        );
        for (text, changed) in [
            (
                "upstreams: {b: {url: 'http://192.0.2.2:1'}, aa: {url: 'http://192.0.2.3:1'}, a: {url: 'http://192.0.2.1:1'}}\n\
                 groups: {both: {members: [a, b]}}\nchains: {out: {hops: [both, direct]}}\n",
                &[][..],
            ),
            (
                "upstreams: {a: {url: 'http://192.0.2.2:1'}, b: {url: 'http://192.0.2.2:1'}}\n\
                 groups: {both: {members: [a, b]}}\nchains: {out: {hops: [both, direct]}}\n",
                &["a", "both", "out"],
            ),
            (
                "upstreams: {a: {url: 'http://192.0.2.1:1'}, b: {url: 'http://192.0.2.2:1', send: ip}}\n\
                 groups: {both: {members: [a]}}\nchains: {out: {hops: [a, direct]}}\n",
                &["b", "both", "out"],
            ),
            (
                "upstreams: {a: {url: 'http://192.0.2.1:1'}, b: {url: 'http://192.0.2.2:1'}}\n\
                 groups: {both: {members: [a, b], balance: fastest}}\nchains: {out: {hops: [b, direct]}}\n",
                &["both", "out"],
            ),
        ] {
            let after = policy(text);
            for name in ["direct", "a", "b", "both", "out"] {
                let is_same = before.is_same_route(id(&before, name), &after, id(&after, name));
                assert_eq!(is_same, !changed.contains(&name), "{name} in {text}");
            }
            let hops = before.changed_hops(&after);
            let upstreams = changed.iter().filter(|name| name.len() == 1);
            assert!(
                hops.iter().map(|name| &**name).eq(upstreams.copied()),
                "{hops:?}"
            );
            assert!(!before.is_same_route(id(&before, "a"), &after, id(&after, "b")));
        }
    }
}
