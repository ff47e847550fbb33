//! Which member of a group is tried first, and which behind it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Member;
use crate::policy::group::{Balance, rank};
use crate::route::Plan;

/// Of so many connections one goes to the member that was measured longest ago: it may have become the fastest.
const EXPLORATION: usize = 16;

/// Chooses among members, and remembers what it needs for that.
#[derive(Debug)]
pub(super) struct Balancer {
    balance: Balance,
    /// How often it was asked.
    count: AtomicUsize,
    /// What each member has saved up for its turn.
    credit: Mutex<Vec<i64>>,
}

impl Balancer {
    pub(super) fn new(balance: Balance, members: usize) -> Self {
        Self {
            balance,
            count: AtomicUsize::new(0),
            credit: Mutex::new(vec![0; members]),
        }
    }

    /// Those of the members that are `up`, the one to try first in front.
    pub(super) fn order(&self, members: &[Member], up: &[usize], plan: &Plan) -> Vec<usize> {
        if up.len() < 2 {
            return up.to_vec();
        }
        match self.balance {
            Balance::First => up.to_vec(),
            Balance::RoundRobin => self.in_turn(members, up),
            Balance::LeastConn => self.least(members, up),
            Balance::HashHost => ranked(&plan.target.host.to_string(), members, up),
            Balance::HashClient => ranked(&plan.client.ip().to_string(), members, up),
            Balance::Fastest => self.fastest(members, up),
        }
    }

    /// Smooth weighted round robin, as nginx has it: each saves its weight, and the one that has saved most pays for all.
    /// So the turns of a heavy member do not follow each other where they need not.
    fn in_turn(&self, members: &[Member], up: &[usize]) -> Vec<usize> {
        let mut credit = self.credit.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = 0;
        for at in up {
            if let (Some(credit), Some(member)) = (credit.get_mut(*at), members.get(*at)) {
                *credit += i64::from(member.weight);
                all += i64::from(member.weight);
            }
        }
        let saved = |at: &usize| credit.get(*at).copied().unwrap_or_default();
        let mut order = up.to_vec();
        order.sort_by_key(|at| std::cmp::Reverse(saved(at)));
        if let Some(credit) = order.first().and_then(|first| credit.get_mut(*first)) {
            *credit -= all;
        }
        order
    }

    /// The one that would have the fewest connections for its weight with one more. Among equals each in its turn.
    fn least(&self, members: &[Member], up: &[usize]) -> Vec<usize> {
        let mut order = up.to_vec();
        order.rotate_left(self.count.fetch_add(1, Ordering::Relaxed) % up.len());
        order.sort_by_cached_key(|at| {
            members.get(*at).map(|member| {
                let connections = member.health.open() as u64 + 1;
                connections * 1_000_000 / u64::from(member.weight.max(1))
            })
        });
        order
    }

    /// The one that opened connections fastest of late; one that was never measured comes first, and now and then the one that
    /// was measured longest ago.
    fn fastest(&self, members: &[Member], up: &[usize]) -> Vec<usize> {
        let pace = |at: &usize| members.get(*at).and_then(|member| member.health.pace());
        let mut order = up.to_vec();
        order.sort_by(|one, other| {
            let average = |at| pace(at).map_or(0.0, |pace| pace.average);
            average(one).total_cmp(&average(other))
        });
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        if count % EXPLORATION == EXPLORATION - 1 {
            let oldest = order
                .iter()
                .copied()
                .min_by_key(|at| pace(at).map(|pace| pace.at));
            if let Some(oldest) = oldest {
                order.retain(|at| *at != oldest);
                order.insert(0, oldest);
            }
        }
        order
    }
}

fn ranked(key: &str, members: &[Member], up: &[usize]) -> Vec<usize> {
    let names = members
        .iter()
        .map(|member| (&*member.health.name, member.weight));
    let mut order = rank(key, names);
    order.retain(|at| up.contains(at));
    order
}
