//! Asks name servers for both families of a name, under each name of the search list.

use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use hickory_resolver::net::{NetError, NoRecords};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::time::sleep;

use super::code_of;
use super::provider::Provider;

/// With the addresses of one family there, the other is waited for no longer than this. RFC 8305,
/// section 3, advises 50 ms; rules judge addresses, so a little more is given to have them all.
const STRAGGLER: Duration = Duration::from_millis(250);

/// Some name servers and the search list that goes with them.
///
/// The library's own lookup of both families waits for the slower one whatever it has, tells the
/// error of A only, and of a search list the last one.
#[derive(Debug)]
pub(super) struct Asker {
    dns: hickory_resolver::Resolver<Provider>,
    search: Vec<Name>,
    ndots: usize,
}

impl Asker {
    pub(super) fn new(config: ResolverConfig, options: ResolverOpts) -> Result<Self, NetError> {
        let (domain, mut search, servers) = config.into_parts();
        if search.is_empty() {
            search.extend(domain);
        }
        let ndots = options.ndots;
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let dns = hickory_resolver::Resolver::builder_with_config(config, Provider::default())
            .with_options(options)
            .build()?;
        Ok(Self { dns, search, ndots })
    }

    /// The addresses of the first name of the search list that has any, IPv6 first.
    pub(super) async fn ask(&self, name: &str) -> Result<Vec<IpAddr>, NetError> {
        let mut failure = None;
        for name in self.candidates(name_of(name)?) {
            let error = match self.both_families(&name).await {
                Ok(addresses) => return Ok(addresses),
                Err(error) => error,
            };
            // Where no server answers, none will for the next name.
            let ends_here = code_of(&error).is_none();
            failure = Some(match failure {
                Some(earlier) => more_telling(earlier, error),
                None => error,
            });
            if ends_here {
                break;
            }
        }
        Err(failure.unwrap_or(NetError::NoConnections))
    }

    /// The name as it is and under each suffix, in the order of resolv.conf(5).
    fn candidates(&self, mut name: Name) -> Vec<Name> {
        if name.is_fqdn() {
            return vec![name];
        }
        let under = |suffix: &Name| name.clone().append_domain(suffix).ok();
        let mut names: Vec<_> = self.search.iter().filter_map(under).collect();
        let dots = usize::from(name.num_labels()).saturating_sub(1);
        name.set_fqdn(true);
        let place = if dots >= self.ndots { 0 } else { names.len() };
        names.insert(place, name);
        names
    }

    async fn both_families(&self, name: &Name) -> Result<Vec<IpAddr>, NetError> {
        let mut v6 = pin!(self.one_family(name, RecordType::AAAA));
        let mut v4 = pin!(self.one_family(name, RecordType::A));
        let (mut got_v6, mut got_v4) = (None, None);
        while got_v6.is_none() || got_v4.is_none() {
            let has_some = matches!(got_v6, Some(Ok(_))) || matches!(got_v4, Some(Ok(_)));
            tokio::select! {
                got = &mut v6, if got_v6.is_none() => got_v6 = Some(got),
                got = &mut v4, if got_v4.is_none() => got_v4 = Some(got),
                () = sleep(STRAGGLER), if has_some => break,
            }
        }
        match (got_v6, got_v4) {
            (Some(Err(v6)), Some(Err(v4))) => Err(of_families(v4, v6)),
            (v6, v4) => {
                let found = [v6, v4].into_iter().flatten().flatten().flatten();
                Ok(found.collect())
            }
        }
    }

    async fn one_family(&self, name: &Name, kind: RecordType) -> Result<Vec<IpAddr>, NetError> {
        let lookup = self.dns.lookup(name.clone(), kind).await?;
        let found = lookup
            .answers()
            .iter()
            .filter_map(|record| record.data.ip_addr());
        let found: Vec<_> = found.collect();
        if found.is_empty() {
            // An alias that leads nowhere.
            let query = Query::query(name.clone(), kind);
            return Err(NoRecords::new(query, ResponseCode::NoError).into());
        }
        Ok(found)
    }
}

/// A name for a query. Every label of a canonical host may be asked for; the library's own reading of text refuses an
/// underscore inside a label, as container names have it.
fn name_of(name: &str) -> Result<Name, NetError> {
    let labels = name.split('.').map(str::as_bytes);
    let mut name = Name::from_labels(labels)?;
    name.set_fqdn(false);
    Ok(name)
}

/// The failure of a name whose two families both failed. NXDOMAIN holds for all types of a name;
/// beside "no such record" it is only a server's way to say that.
fn of_families(v4: NetError, v6: NetError) -> NetError {
    match (code_of(&v4), code_of(&v6)) {
        (Some(ResponseCode::NoError), Some(ResponseCode::NXDomain)) => v4,
        (Some(ResponseCode::NXDomain), Some(ResponseCode::NoError)) => v6,
        (Some(ResponseCode::NXDomain), _) => v4,
        (_, Some(ResponseCode::NXDomain)) => v6,
        _ => more_telling(v4, v6),
    }
}

/// A server's failure before silence, that before a missing address, that before a missing name;
/// the earlier one where they are alike.
fn more_telling(earlier: NetError, later: NetError) -> NetError {
    let rank = |error: &NetError| match (code_of(error), error) {
        (Some(ResponseCode::NXDomain), _) => 0,
        (Some(ResponseCode::NoError), _) => 1,
        (None, NetError::Timeout | NetError::NoConnections | NetError::Io(_)) => 2,
        _ => 3,
    };
    if rank(&later) > rank(&earlier) {
        later
    } else {
        earlier
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use super::*;

    #[tokio::test]
    async fn the_search_list_is_walked_in_its_order() {
        let order = |ndots, search: &[&str], name: &str| {
            let search = search.iter().map(|s| Name::from_str(s).unwrap()).collect();
            let config = ResolverConfig::from_parts(None, search, Vec::new());
            let mut options = ResolverOpts::default();
            options.ndots = ndots;
            let asker = Asker::new(config, options).unwrap();
            let names = asker.candidates(Name::from_ascii(name).unwrap());
            let names: Vec<_> = names.iter().map(Name::to_string).collect();
            names.join(" ")
        };
        let usual = &["corp.example.", "x.example."];
        assert_eq!(
            order(1, usual, "git"),
            "git.corp.example. git.x.example. git."
        );
        assert_eq!(
            order(1, usual, "a.b"),
            "a.b. a.b.corp.example. a.b.x.example."
        );
        assert_eq!(order(1, usual, "a.b."), "a.b.");
        assert_eq!(order(5, &["svc."], "a.b.c"), "a.b.c.svc. a.b.c.");
    }

    #[test]
    fn of_two_failures_the_more_telling_is_told() {
        let none = |code| NetError::from(NoRecords::new(Query::new(), code));
        let (missing, empty) = (
            || none(ResponseCode::NXDomain),
            || none(ResponseCode::NoError),
        );
        let failed = || none(ResponseCode::ServFail);
        for (v4, v6, expected) in [
            (missing(), empty(), ResponseCode::NoError),
            (empty(), missing(), ResponseCode::NoError),
            (empty(), failed(), ResponseCode::ServFail),
            (failed(), missing(), ResponseCode::NXDomain),
            (NetError::Timeout, failed(), ResponseCode::ServFail),
        ] {
            assert_eq!(code_of(&of_families(v4, v6)), Some(expected));
        }
        let silence = of_families(empty(), NetError::Timeout);
        assert!(matches!(silence, NetError::Timeout));
        let suffix = more_telling(failed(), missing());
        assert_eq!(code_of(&suffix), Some(ResponseCode::ServFail));
    }
}
