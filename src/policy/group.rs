//! Groups: upstreams that are as good as each other, and which of them serves.

use sha2::{Digest as _, Sha256};

use super::RouteId;

/// Ways out of which one serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The members, in order; at least one, none twice.
    pub members: Vec<Member>,
    /// Which of them is tried first.
    pub balance: Balance,
    /// What happens where the circuits of all of them are open.
    pub all_down: AllDown,
}

/// An element of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The way out: an upstream, or direct.
    pub route: RouteId,
    /// Its share beside the others': 1 to 1000.
    pub weight: u32,
}

/// How a member is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// The first that is up.
    #[default]
    First,
    /// Each in its turn, as often as its weight says.
    RoundRobin,
    /// The one with the fewest open connections for its weight.
    LeastConn,
    /// The same one for the same host.
    HashHost,
    /// The same one for the same client.
    HashClient,
    /// The one that opened connections fastest of late.
    Fastest,
}

impl Balance {
    /// The word in a policy.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::RoundRobin => "round_robin",
            Self::LeastConn => "least_conn",
            Self::HashHost => "hash_host",
            Self::HashClient => "hash_client",
            Self::Fastest => "fastest",
        }
    }

    /// Whether it asks for weights.
    pub fn weighs(self) -> bool {
        match self {
            Self::RoundRobin | Self::LeastConn | Self::HashHost | Self::HashClient => true,
            Self::First | Self::Fastest => false,
        }
    }
}

/// What happens where the circuits of all members are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllDown {
    /// They are tried all the same, the first one first.
    #[default]
    TryFirst,
    /// The request fails at once.
    Fail,
}

/// Ranks things for a key, best first, by weighted rendezvous: where one goes, only its own keys move, and to each of the
/// others as many as its weight says. Stable over restarts, machines and the order of the things.
///
/// Source: Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998); its weights as in Schindelhauer
/// and Schomaker, "Weighted distributed hash tables" (2005), logarithmic method.
pub fn rank<'n>(key: &str, things: impl Iterator<Item = (&'n str, u32)>) -> Vec<usize> {
    let mut ranked: Vec<(usize, f64)> = things
        .enumerate()
        .map(|(at, (name, weight))| (at, -unit(key, name).ln() / f64::from(weight.max(1))))
        .collect();
    ranked.sort_by(|(_, one), (_, other)| one.total_cmp(other));
    ranked.into_iter().map(|(at, _)| at).collect()
}

/// A number between 0 and 1, neither included, that hangs on both texts alone.
fn unit(key: &str, name: &str) -> f64 {
    let mut hash = Sha256::new();
    hash.update(key);
    // No name and no host holds it: `a` and `bc` are not `ab` and `c`.
    hash.update([0]);
    hash.update(name);
    let digest = hash.finalize();
    let high = digest
        .iter()
        .take(4)
        .fold(0_u32, |number, byte| number << 8 | u32::from(*byte));
    (f64::from(high) + 0.5) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn first<'n>(key: &str, things: &[(&'n str, u32)]) -> &'n str {
        things[rank(key, things.iter().copied())[0]].0
    }

    #[test]
    fn a_key_keeps_its_place_over_restarts() {
        // Written down: another order would send every client of a running fleet elsewhere.
        let things = [("m1", 1), ("m2", 1), ("m3", 1)];
        let chosen = [
            "a.example",
            "b.example",
            "c.example",
            "d.example",
            "192.0.2.1",
        ]
        .map(|key| first(key, &things));
        assert_eq!(chosen, ["m1", "m3", "m1", "m1", "m1"]);
    }

    #[test]
    fn weights_are_shares() {
        let things = [("m1", 3), ("m2", 1), ("m3", 4)];
        let mut counts = [0_u32; 3];
        for host in 0..8000 {
            counts[rank(&format!("host-{host}.example"), things.iter().copied())[0]] += 1;
        }
        for (count, (name, weight)) in counts.iter().zip(things) {
            let expected = 1000 * weight;
            assert!(
                count.abs_diff(expected) < 200,
                "{name}: {count} of {expected}"
            );
        }
    }

    proptest! {
        #[test]
        fn only_the_keys_of_the_one_that_goes_move(
            key in "[a-z]{1,12}\\.example",
            weights in proptest::collection::vec(1_u32..100, 2..8),
            gone in 0_usize..8,
        ) {
            let names: Vec<String> = (0..weights.len()).map(|at| format!("m{at}")).collect();
            let all: Vec<(&str, u32)> = names.iter().map(String::as_str).zip(weights).collect();
            let gone = all[gone % all.len()].0;
            let rest: Vec<_> = all.iter().copied().filter(|(name, _)| *name != gone).collect();
            let order: Vec<&str> = rank(&key, all.iter().copied()).into_iter().map(|at| all[at].0).collect();
            let left: Vec<&str> = rank(&key, rest.iter().copied()).into_iter().map(|at| rest[at].0).collect();
            let expected: Vec<&str> = order.into_iter().filter(|name| *name != gone).collect();
            prop_assert_eq!(left, expected);
        }

        #[test]
        fn the_order_of_the_things_does_not_matter(key in ".{0,20}") {
            let things = [("m1", 2), ("m2", 1), ("m3", 5)];
            let turned = [("m3", 5), ("m1", 2), ("m2", 1)];
            prop_assert_eq!(first(&key, &things), first(&key, &turned));
        }
    }
}
