//! An explanation for people.

use std::fmt;
use std::net::IpAddr;

use super::{Asked, Does, Explanation, Injected, Request, hops};

impl fmt::Display for Explanation {
    /// For people: the decision first, then the rules on the way to it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request {
            method,
            target,
            client,
            user,
            label,
            roles,
            addresses,
            first_flight,
            ..
        } = &self.request;
        write!(f, "{method} {target} from {client}")?;
        for (word, name) in [("user", user), ("label", label)] {
            if let Some(name) = name {
                write!(f, ", {word} {name}")?;
            }
        }
        if !roles.is_empty() {
            write!(f, ", role {}", roles.join(" and "))?;
        }
        writeln!(f)?;
        let decision = &self.decision;
        let does = match (&decision.upstream, &decision.route) {
            (Some(upstream), Some(route)) => format!("goes through upstream {route} ({upstream})"),
            (None, Some(route)) if !decision.hops.is_empty() => {
                format!("goes via {route}: {}", hops::line(&decision.hops))
            }
            (None, Some(route)) if decision.action == Does::Via => format!("goes via {route}"),
            (None, Some(_)) => "goes direct".to_owned(),
            (_, None) => format!("is refused with {}", decision.status.unwrap_or(403)),
        };
        write!(f, "  {does}, by {}", decision.rule)?;
        if let Some(source) = &decision.source {
            write!(f, " ({source})")?;
        }
        if let Some(reason) = &decision.reason {
            write!(f, ": {reason}")?;
        }
        writeln!(f)?;
        if let Some(word) = decision.on_dns_error {
            writeln!(
                f,
                "  its name could not be looked up (on_dns_error: {word})"
            )?;
        }
        hops::tell(decision.commit, decision.retry.as_ref(), f)?;
        if let Some(preflight) = decision.preflight {
            writeln!(
                f,
                "  after a preflight: {preflight}, within {}",
                self.timeouts.hello
            )?;
        }
        for Injected { name, hop, does } in &decision.faults {
            let hop = hop.as_ref().map(|hop| format!(" on {hop}"));
            let hop = hop.unwrap_or_default();
            writeln!(f, "  with the fault {name}{hop}: {does}")?;
        }
        if let Some(would) = &decision.would {
            writeln!(f, "  in report mode: {would} would have decided otherwise")?;
        }
        let is_plain = |dns: &&Asked| dns.server == "system" && dns.by == "default";
        if let Some(dns) = self.dns.as_ref().filter(|dns| !is_plain(dns)) {
            write!(f, "  its name is asked of {}", dns.server)?;
            if let Some(transport) = dns.transport {
                write!(f, " by {transport}")?;
            }
            if let Some(via) = &dns.via {
                write!(f, " through {via}")?;
            }
            writeln!(f, " ({})", dns.by)?;
        }
        if let Some(flight) = first_flight {
            write!(f, "  first flight: {}", flight.proto)?;
            if let Some(sni) = &flight.sni {
                write!(f, ", SNI {sni}")?;
            }
            if !flight.alpn.is_empty() {
                write!(f, ", ALPN {}", flight.alpn.join(" "))?;
            }
            writeln!(f)?;
        }
        if let Some(addresses) = addresses {
            let addresses: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
            writeln!(f, "  looked up: {}", addresses.join(", "))?;
        }
        if let Some(list) = &self.no_proxy {
            let verdict = match (&list.entry, &list.reason) {
                (Some(entry), Some(reason)) => format!("bypass, by {entry:?} ({reason})"),
                (None, Some(reason)) => format!("bypass ({reason})"),
                (_, None) => "no entry, so through a proxy".to_owned(),
            };
            writeln!(f, "  NO_PROXY: {verdict}")?;
        }
        if !self.passed.is_empty() {
            writeln!(f, "rules before it:")?;
        }
        let width = self.passed.iter().map(|p| p.rule.chars().count()).max();
        for passed in &self.passed {
            writeln!(
                f,
                "  {:width$}  {}  ({})",
                passed.rule,
                passed.why,
                passed.source,
                width = width.unwrap_or(0).min(30)
            )?;
        }
        Ok(())
    }
}
