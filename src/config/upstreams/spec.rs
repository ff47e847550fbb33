//! What is said of an upstream beside its URL.

use super::tls;
use crate::config::check::Context;
use crate::config::diag::Findings;
use crate::config::env::{ProxyUrl, UrlScheme};
use crate::config::{groups, raw};
use crate::policy::upstream::{Auth, Forward, Protocol, ProxyProtocol, Send, Upstream, Versions};

/// Compiles what is said beside the URL, noting what does not fit its scheme.
pub(super) fn compile(
    proxy: &ProxyUrl,
    raw: &raw::upstreams::Upstream,
    auth: Option<Auth>,
    context: &Context<'_>,
    findings: &mut Findings<'_>,
) -> Upstream {
    let scheme = proxy.scheme;
    let versions = match &raw.http {
        Some(http) if scheme.is_socks() => {
            findings.error(http.place, "`http` is of no meaning to a SOCKS server");
            Versions::Auto
        }
        Some(http)
            if http.value == raw::upstreams::HttpVersion::Two && scheme != UrlScheme::Https =>
        {
            let message = "HTTP/2 is spoken with an https upstream only";
            findings
                .error(http.place, message)
                .with_help("write `url: https://host:port`, or `http: 1`");
            Versions::Auto
        }
        Some(http) => match http.value {
            raw::upstreams::HttpVersion::Auto => Versions::Auto,
            raw::upstreams::HttpVersion::One => Versions::One,
            raw::upstreams::HttpVersion::Two => Versions::Two,
        },
        None => Versions::Auto,
    };
    if let Some(at) = raw.tls.as_ref().filter(|_| scheme != UrlScheme::Https) {
        let message = format!(
            "`tls` needs an https upstream; this one is {}",
            scheme.as_str()
        );
        findings.error(at.place, message);
    }
    let implied = match scheme {
        UrlScheme::Http | UrlScheme::Https => None,
        UrlScheme::Socks5 => Some(Send::Ip),
        UrlScheme::Socks5h => Some(Send::Host),
    };
    let written = raw.send.as_ref().map(|send| match send.value {
        raw::upstreams::Send::Host => Send::Host,
        raw::upstreams::Send::Ip => Send::Ip,
    });
    if let (Some(at), Some(implied), Some(written)) = (&raw.send, implied, written)
        && implied != written
    {
        let message = format!("{}:// says otherwise", scheme.as_str());
        findings
            .error(at.place, message)
            .with_help("socks5:// sends addresses that were found here, socks5h:// sends names");
    }
    let send = implied.or(written).unwrap_or(Send::Host);
    let wants_tunnel = raw
        .forward
        .as_ref()
        .is_some_and(|forward| forward.value == raw::upstreams::Forward::Connect);
    let is_tunnelled =
        wants_tunnel || scheme.is_socks() || send == Send::Ip || versions == Versions::Two;
    let protocol = match scheme {
        UrlScheme::Http => Protocol::Http,
        UrlScheme::Https => {
            let tls = tls::compile(raw.tls.as_ref(), versions, context, findings);
            Protocol::Https(Box::new(tls))
        }
        UrlScheme::Socks5 | UrlScheme::Socks5h => Protocol::Socks5,
    };
    let connections = raw.limits.as_ref().and_then(|limits| {
        let at = limits.connections.as_ref()?;
        if at.0 == 0 {
            findings.error(
                at.place,
                "with 0 connections nothing goes through; leave it out for no limit",
            );
        }
        usize::try_from(at.0).ok()
    });
    Upstream {
        proxy: proxy.target.clone(),
        protocol,
        forward: if is_tunnelled {
            Forward::Tunnel
        } else {
            Forward::Absolute
        },
        send,
        auth,
        proxy_protocol: raw.proxy_protocol.as_ref().and_then(|at| match at.value {
            raw::upstreams::ProxyProtocol::None => None,
            raw::upstreams::ProxyProtocol::V1 => Some(ProxyProtocol::V1),
            raw::upstreams::ProxyProtocol::V2 => Some(ProxyProtocol::V2),
        }),
        connections,
        health: groups::health(raw.health.as_ref(), findings),
    }
}
