//! What a fault of the policy gives the client in place of an answer of ours.

use std::fmt;

use super::classify::classify_upstream;
use crate::cause::Kind;
use crate::net::upstream::{Reply, UpstreamError};
use crate::policy::fault::Page;

/// An end of a request that is staged: it reaches the client as it is, as from whoever stands in our place.
#[derive(Debug)]
pub struct Staged {
    /// How it ends.
    pub with: With,
    /// Whether the request is a plain one, so that the origin may answer it; a CONNECT is answered by proxies.
    pub is_plain: bool,
}

/// How a request ends that a fault strikes.
#[derive(Debug)]
pub enum With {
    /// With this answer, word for word.
    Page(Page),
    /// With a reset of the client's connection.
    Reset,
    /// With its end, and no answer.
    Close,
}

impl Staged {
    /// Whether the client gets no answer.
    pub fn is_silent(&self) -> bool {
        !matches!(self.with, With::Page(_))
    }

    /// Whether the client's connection is reset.
    pub fn is_reset(&self) -> bool {
        matches!(self.with, With::Reset)
    }

    /// The status that the client reads.
    pub(super) fn status(&self) -> Option<u16> {
        match &self.with {
            With::Page(page) => Some(page.status.as_u16()),
            With::Reset | With::Close => None,
        }
    }
}

impl std::error::Error for Staged {}

impl fmt::Display for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.with {
            With::Page(page) => write!(f, "answered {} {}", page.status.as_u16(), page.reason),
            With::Reset => f.write_str("reset the client's connection"),
            With::Close => f.write_str("closed the client's connection without an answer"),
        }
    }
}

/// Names the cause that the same would have in reality: of a plain request the origin's doing, of a CONNECT a proxy's.
pub(super) fn classify(staged: &Staged) -> Kind {
    match (&staged.with, staged.is_plain) {
        (With::Page(page), true) => match page.status.as_u16() {
            511 => Kind::HttpCaptivePortal,
            status @ 400.. => Kind::HttpStatus(status),
            // A page in the origin's place.
            _ => Kind::HttpCaptivePortal,
        },
        (With::Reset, true) => Kind::HttpResetBeforeResponse,
        (With::Close, true) => Kind::HttpEmptyReply,
        (With::Page(page), false) => {
            classify_upstream(&UpstreamError::Refused(Box::new(reply(page))))
        }
        (With::Reset, false) => Kind::UpstreamReset,
        (With::Close, false) => Kind::UpstreamClosed,
    }
}

/// A page as an upstream's answer.
pub fn reply(page: &Page) -> Reply {
    let fields: Vec<_> = page
        .headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .collect();
    Reply::of(page.status, page.reason.as_bytes(), &fields).with_body(page.body.as_bytes())
}
