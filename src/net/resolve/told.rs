//! What the servers of a lookup said, and which of it counts.

use std::sync::Arc;

use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::Name;

use super::ask::{Family, Missed};
use super::error::code_of;
use super::facts::{Asked, Facts, Transport};
use super::journal::{Seen, Story, is_unhelpful};

/// One family's outcome, with what its servers said.
pub(super) struct Told {
    pub(super) got: Result<Family, NetError>,
    pub(super) page: Read,
}

/// A page of the journal that has been read.
pub(super) struct Read {
    pub(super) story: Arc<Story>,
    pub(super) seen: Seen,
    pub(super) is_cached: bool,
}

impl Told {
    /// `got` is missing where the time was over.
    pub(super) fn new(got: Option<Result<Family, NetError>>, page: (Arc<Story>, bool)) -> Self {
        let (mut story, mut is_cached) = page;
        let got = got.unwrap_or(Err(NetError::Timeout));
        if is_cached && got.as_ref().is_err_and(|error| code_of(error).is_none()) {
            // Nobody could be asked: what an earlier lookup heard has no part in it.
            (story, is_cached) = (Arc::default(), false);
        }
        let seen = story.read();
        Self {
            got: got.map_err(|error| if is_cached { error } else { said(error, &seen) }),
            page: Read {
                story,
                seen,
                is_cached,
            },
        }
    }
}

/// What servers said comes before the silence of others, which may be all that the library's error tells.
fn said(error: NetError, seen: &Seen) -> NetError {
    if !matches!(
        error,
        NetError::Timeout | NetError::NoConnections | NetError::Io(_) | NetError::Truncated
    ) {
        return error;
    }
    match &seen.reply {
        None if seen.strays == 0 => match (&error, &seen.error) {
            (NetError::NoConnections, Some(kept)) => NetError::Io(kept.clone()),
            _ => error,
        },
        Some(reply) if !reply.is_truncated && is_unhelpful(reply.code) => {
            DnsError::ResponseCode(reply.code).into()
        }
        Some(reply) if reply.is_truncated && reply.transport == Transport::Udp => {
            NetError::Truncated
        }
        Some(reply) if reply.is_truncated => NetError::from("the reply by TCP is truncated"),
        None => NetError::from("what came answers another question than ours"),
        Some(_) => error,
    }
}

/// A failure; the page that tells it comes first.
pub(super) fn missed(name: &Name, error: NetError, pages: Vec<Read>) -> Missed {
    let is_denied = code_of(&error) == Some(ResponseCode::NXDomain);
    let reply = pages.first().and_then(|page| page.seen.reply.as_ref());
    let is_unsigned = is_denied && reply.is_some_and(|reply| !reply.has_soa);
    Missed {
        error,
        unsigned: is_unsigned.then(|| name.clone()),
        facts: facts_of(pages, None),
    }
}

pub(super) fn facts_of(pages: Vec<Read>, ttl: Option<u32>) -> Facts {
    let mut asked: Vec<Asked> = Vec::new();
    for more in pages.iter().flat_map(|page| &page.seen.asked) {
        let known = asked
            .iter_mut()
            .find(|known| (known.server, known.transport) == (more.server, more.transport));
        match known {
            Some(known) => known.times += more.times,
            None => asked.push(*more),
        }
    }
    let replies = || pages.iter().filter_map(|page| page.seen.reply.as_ref());
    let told = pages.iter().find(|page| page.seen.reply.is_some());
    let reply = told.and_then(|page| page.seen.reply.as_ref());
    let records = replies().map(|reply| reply.records);
    Facts {
        question: None,
        is_suffixed: false,
        server: reply.map(|reply| reply.server),
        transport: reply.map(|reply| reply.transport),
        is_cached: told.is_some_and(|page| page.is_cached),
        ttl,
        code: reply.map(|reply| reply.code),
        ede: replies().find_map(|reply| reply.ede.clone()),
        records: records.reduce(u32::saturating_add),
        asked,
        waited: pages
            .iter()
            .map(|page| page.seen.waited())
            .max()
            .unwrap_or_default(),
        stories: pages.into_iter().map(|page| page.story).collect(),
    }
}
