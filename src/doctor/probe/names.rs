//! What each name server says of the target.

use std::net::IpAddr;
use std::sync::Arc;

use super::Doctor;
use crate::doctor::facts::Answer;
use crate::exchange::Trail;
use crate::failure::{Failure, chain, classify};
use crate::net::resolve::{ResolveError, Resolver};
use crate::policy::dns::{AskId, Transport};
use crate::route::Names;
use crate::target::Host;

impl Doctor<'_> {
    /// Asks every name server that policy and system name.
    pub(super) async fn ask_all(&self) -> Vec<Answer> {
        let Host::Name(name) = &self.plan.target.host else {
            return Vec::new();
        };
        let limit = self.policy.timeouts.dns;
        let mut answers = Vec::new();
        if let Some(pinned) = self.policy.pinned(name) {
            return vec![Answer {
                server: "dns.hosts".to_owned(),
                addresses: pinned.to_vec(),
                ..Answer::default()
            }];
        }
        let of_rule = self.plan.bounds.as_ref().and_then(|bounds| bounds.dns);
        let chosen = self.policy.dns.choose(name, of_rule).0;
        let is_system = chosen == AskId::SYSTEM;
        for (at, ask) in self.policy.dns.asks.iter().enumerate() {
            // Unasked, nobody learns of the name who is not asked for it anyway.
            if self.plan.bounds.is_some() && AskId(at) != chosen {
                continue;
            }
            let server = ask.server.as_ref();
            if server.is_none() && !is_system {
                continue; // nobody asks it
            }
            let label = server.map_or("system", |server| &*server.name);
            let is_encrypted = server
                .is_some_and(|server| !matches!(server.transport, Transport::Udp | Transport::Tcp));
            (self.progress)(&format!("asking {label} for {name}"));
            let found = self.names.of_ask(AskId(at));
            let found = found
                .lookup(&self.plan.target.host, limit, &Trail::default())
                .await;
            answers.push(answer(label.to_owned(), is_encrypted, found));
        }
        // One by one they need not agree.
        if is_system && self.plan.servers.len() > 1 {
            for server in &self.plan.servers {
                (self.progress)(&format!("asking {server} for {name}"));
                let alone = Names::new(
                    self.policy.clone(),
                    Arc::new(Resolver::with_servers(&[*server])),
                );
                let found = alone.of_ask(AskId::SYSTEM);
                let found = found
                    .lookup(&self.plan.target.host, limit, &Trail::default())
                    .await;
                answers.push(answer(server.to_string(), false, found));
            }
        }
        answers
    }
}

fn answer(server: String, is_encrypted: bool, found: Result<Vec<IpAddr>, ResolveError>) -> Answer {
    match found {
        Ok(addresses) => Answer {
            server,
            is_encrypted,
            addresses,
            ..Answer::default()
        },
        Err(error) => {
            let message = chain(&error);
            Answer {
                server,
                is_encrypted,
                addresses: Vec::new(),
                cause: Some(classify(&Failure::from(error)).id().into_owned()),
                message: Some(message),
            }
        }
    }
}
